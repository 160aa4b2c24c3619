"""All runs of a study: each trained once, after what it builds on; failures that cost only what builds
on them; and the files of keys that stages depend on.
"""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import write_task
from safetensors.torch import save_file
from test_plans import VALUES

from adapterfusion import launch, runs
from adapterfusion.config import Config, parse_config
from adapterfusion.launch import train_all, write_keys
from adapterfusion.methods import method
from adapterfusion.paths import Paths
from adapterfusion.plans import Planner, RunError, RunName, study
from adapterfusion.progress import PROGRESS
from adapterfusion.spec import RunSpec, code_sha256

ADAPTERS = {f"03_single_task_adapter-{task}" for task in VALUES["tasks"]}


class Threads(ThreadPoolExecutor):
    """Workers in this process, so that a test can look at them."""

    def __init__(self, n: int, _context, **_only_for_processes):
        super().__init__(n)


@pytest.fixture
def config_of(bert, tmp_path, monkeypatch):
    """A function that makes the configuration of a prepared project; two runs at a time."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv(PROGRESS, "somewhere")
    for i, task in enumerate(VALUES["tasks"]):
        write_task(tmp_path / "data" / "prepared" / "plan" / task, train=20 + i, held_out=6)

    def make(**changes) -> Config:
        values = VALUES | {"training": {"side_by_side": 2}, "controls": ["static", "st_continued"]}
        return parse_config(values | {"backbone": {"name": str(bert.path)}} | changes)

    return make


class Trainer:
    """Stands where training stands: notes each run, and fails where it is told to."""

    def __init__(self):
        self.trained: list[RunName] = []
        self.broken: set[RunName] = set()
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, folder: Path) -> None:
        spec = RunSpec.read(folder / "spec.json")
        run = RunName(spec.method, spec.task, spec.seed)
        with self.lock:
            self.trained.append(run)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            for artifact in (*spec.sources.values(), *([spec.start] if spec.start else [])):
                assert Path(artifact.path).is_file()
            if run in self.broken:
                raise OSError("no memory left")
            identity = spec.identity()
            content = {"x": torch.tensor([int(spec.key()[:12], 16)])}  # other runs, other weights
            save_file(content, folder / "model.safetensors")
            record = {"config": identity, "code_sha256": code_sha256()}
            (folder / "run.json").write_text(json.dumps(record))
        finally:
            with self.lock:
                self.at_once -= 1


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(launch, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(launch, "_train", trainer)
    return trainer


def test_every_run_is_trained_once_and_after_what_it_needs(config_of, trainer):
    config = config_of()
    train_all(config)
    assert sorted(trainer.trained) == sorted(study(config))
    planner = Planner(config)
    for i, run in enumerate(trainer.trained):
        assert planner.needs(run) <= set(trainer.trained[:i])
        assert planner.finished(run)


def test_as_many_runs_are_trained_at_once_as_asked_for(config_of, trainer):
    train_all(config_of(training={"side_by_side": 1}))
    assert trainer.most == 1


def test_a_second_call_trains_nothing(config_of, trainer):
    train_all(config_of())
    trainer.trained.clear()
    train_all(config_of())
    assert trainer.trained == []


def test_a_changed_recipe_trains_what_it_decides_and_what_builds_on_that(config_of, trainer):
    train_all(config_of())
    trainer.trained.clear()
    recipes = VALUES["recipes"]
    train_all(config_of(recipes=recipes | {"fusion": recipes["fusion"] | {"warmup": 0.5}}))
    fusions = {"fusion_st", "fusion_mt", "static", "fusion_st-16rows"}
    assert {run.method for run in trainer.trained} == fusions
    trainer.trained.clear()
    train_all(config_of(recipes=recipes | {"full": recipes["full"] | {"weight_decay": 0.1}}))
    assert {run.method for run in trainer.trained} == {"full", "sequential"}


def test_a_run_that_fails_costs_what_builds_on_it_and_nothing_else(config_of, trainer):
    config = config_of()
    broken = RunName("st_adapter", "small", 2)
    trainer.broken = {broken}
    with pytest.raises(RunError) as caught:
        train_all(config)
    planner = Planner(config)
    lost = {run for run in study(config) if run == broken or broken in planner.needs(run)}
    assert set(trainer.trained) == set(study(config)) - lost | {broken}
    total = len(study(config))
    assert str(caught.value) == (
        f"1 runs failed, {total - len(lost)} of {total} are finished and kept. First: "
        "st_adapter on small, seed 2: no memory left. Run the same command again."
    )
    trainer.broken, trainer.trained = set(), []
    train_all(config)
    assert set(trainer.trained) == lost


def test_all_failures_are_counted(config_of, trainer):
    trainer.broken = {RunName("head", "small", seed) for seed in (1, 2, 3)}
    with pytest.raises(RunError, match=r"3 runs failed.*head on small, seed \d: no memory left"):
        train_all(config_of(methods=["head"], controls=[], low_resource=None))


def test_runs_whose_needs_are_not_in_the_study_are_not_passed_over(config_of, trainer, monkeypatch):
    config = config_of()
    monkeypatch.setattr(launch, "study", lambda _config: [RunName("fusion_st", "small", 1)])
    with pytest.raises(RunError, match="st_adapter"):
        train_all(config)


def test_a_disk_that_is_too_small_is_said_before_anything_is_trained(
    config_of, trainer, bert, monkeypatch
):
    config = config_of(methods=["full"], controls=[], low_resource=None)
    free = 0.0
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=free))
    backbone = (bert.path / "model.safetensors").stat().st_size
    needed = backbone * (len(study(config)) + 8 * 2)  # the weights left, and two runs' checkpoints
    free = 0.99 * needed
    with pytest.raises(RunError, match=r"build/runs: 0\.0 GB are free, and the 4 runs .*Make room"):
        train_all(config)
    assert trainer.trained == []
    free = 1.01 * needed
    train_all(config)
    assert len(trainer.trained) == 4
    free = 0.0
    train_all(config)  # nothing is missing, nothing is needed


# ---- keys


def keys(config: Config) -> dict[str, str]:
    write_keys(config)
    folder = Paths(config.profile).root / "build" / "launch" / config.profile
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_each_execution_of_a_notebook_has_its_runs_keys(config_of, trainer):
    config = config_of()
    train_all(config)
    found = keys(config)
    assert found.keys() == {
        "02_finetuning-head",
        "02_finetuning-full",
        *ADAPTERS,
        "04_multitask",
        *(f"05_fusion-{task}" for task in config.targets),
        "08_ablations",
    }
    planner = Planner(config)
    lines = [line for text in found.values() for line in text.splitlines()]
    assert sorted(lines) == sorted(
        f"{' '.join(map(str, r))} {planner.spec(r).key()}" for r in study(config)
    )
    for name, text in found.items():
        for line in text.splitlines():
            run = line.split()
            assert name.startswith(method(run[0]).notebook)
            if name.startswith(("03", "05")):
                assert name.endswith(f"-{run[1]}")
            if name.startswith("02"):
                assert name.endswith(f"-{run[0]}")
    shown = {line.split()[0] for line in found["04_multitask"].splitlines()}
    assert shown == {"multitask_full", "mt_adapter", "sequential"}


def changed_files(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        ("head", {"02_finetuning-head"}),
        ("full", {"02_finetuning-full", "04_multitask"}),
        ("fusion", {"05_fusion-mid", "05_fusion-small", "08_ablations"}),
        ("joint", {"04_multitask", "05_fusion-mid", "05_fusion-small"}),
        ("st_adapter", {*ADAPTERS, "05_fusion-mid", "05_fusion-small", "08_ablations"}),
    ],
)
def test_key_files_change_only_for_what_changed(config_of, trainer, recipe, changed):
    config = config_of()
    train_all(config)
    before = keys(config)
    assert keys(config) == before
    recipes = VALUES["recipes"]
    other = config_of(recipes=recipes | {recipe: recipes[recipe] | {"learning_rate": 0.01}})
    train_all(other)
    assert changed_files(before, keys(other)) == changed


def test_other_seeds_of_a_task_change_its_files_alone(config_of, trainer):
    before_config = config_of(methods=["head", "st_adapter"], controls=[], low_resource=None)
    train_all(before_config)
    before = keys(before_config)
    tasks = VALUES["tasks"] | {"small": {"seeds": [1, 2]}}
    after_config = config_of(
        methods=["head", "st_adapter"], controls=[], low_resource=None, tasks=tasks
    )
    train_all(after_config)
    changed = changed_files(before, keys(after_config))
    assert changed == {"02_finetuning-head", "03_single_task_adapter-small"}


def test_key_files_of_a_task_that_has_left_are_gone(config_of, trainer):
    config = config_of(controls=[], methods=["head"], low_resource=None)
    train_all(config)
    assert "05_fusion-mid" in keys(config)
    fewer = config_of(controls=[], methods=["head"], low_resource=None, targets=["small"])
    assert "05_fusion-mid" not in keys(fewer)


# ---- for real


def test_a_study_is_trained_by_workers_and_read_back(config_of):
    """Processes of their own; then records by task, a joint run's too."""
    config = config_of(
        methods=["st_adapter", "mt_adapter", "fusion_st", "fusion_mt"],
        tasks={"mid": {"seeds": [7], "epochs": 1}, "small": {"seeds": [1], "epochs": 1}},
        sources=["mid", "small"],
        targets=["small"],
        sequential={},
        controls=["own_only"],
        low_resource=None,
        training={"batch_size": 8, "micro_batch_size": 8},
    )
    train_all(config)
    for name in ("st_adapter", "mt_adapter", "fusion_mt", "own_only"):
        records = runs.run(config, name)
        assert {record["status"] for record in records} == {"finished"}
        assert records == runs.load_runs(config, name)
    joint = runs.load_runs(config, "mt_adapter")
    assert [(r["task"], r["seed"]) for r in joint] == [("mid", 7), ("small", 1)]
    for record in joint:
        assert record["joint"] == ["mid", "small"] and "tasks" not in record
        right = runs.correctness(config, "mt_adapter", record["task"], "held_out")
        assert right.shape == (1, 6)
        assert right.mean() == pytest.approx(record["metrics"]["held_out"]["accuracy"])
        assert all({"train_loss", "validation", "dev"} <= e.keys() for e in record["epochs"])
    own = runs.load_runs(config, "own_only")[0]
    assert own["attention"]["adapters"] == ["small"]
    assert runs.shown(config, "08_ablations") == [own]
    fused = runs.shown(config, "05_fusion", "small")
    assert [record["method"] for record in fused] == ["fusion_st", "fusion_mt"]
    assert fused[1:] == runs.load_runs(config, "fusion_mt")
    assert len(runs.load_runs(config)) == 2 + 2 + 1 + 1  # methods, without controls
    with pytest.raises(RunError, match=r"runs/head/small/seed1/run\.json: missing"):
        runs.load_runs(config, "head")
