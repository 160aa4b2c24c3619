"""From params.yaml to runs: which there are, what each builds on, and how a finished one is found."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_task
from safetensors.torch import save_file

from adapterfusion import methods, plans, runs
from adapterfusion.config import AdapterConfig, Config, Recipe, parse_config
from adapterfusion.methods import CONTROLS, METHODS, low_resource, method, studied
from adapterfusion.paths import Paths
from adapterfusion.plans import Planner, RunError, RunName, seeds_of, study, tasks_of
from adapterfusion.spec import JOINT, Artifact, RunSpec, code_sha256

RECIPES = {
    "head": {"learning_rate": 1.0e-3, "epochs": 1, "patience": 1},
    "full": {"learning_rate": 2.0e-4, "epochs": 2, "patience": 2},
    "st_adapter": {"learning_rate": 3.0e-3, "epochs": 3, "patience": 3, "weight_decay": 0.1},
    "fusion": {"learning_rate": 4.0e-3, "epochs": 4, "patience": 2, "warmup": 0.25},
    "joint": {"learning_rate": 5.0e-4, "epochs": 5, "patience": 5},
}
VALUES = {
    "profile": "plan",
    "data": {"source": "bundled"},
    "tasks": {"big": {"seeds": [1, 2]}, "mid": {"seeds": [7]}, "small": {"seeds": [1, 2, 3]}},
    "sources": ["big", "mid", "small"],
    "targets": ["mid", "small"],
    "methods": list(METHODS),
    "controls": list(CONTROLS),
    "control_targets": ["small"],
    "sequential": {"small": "big"},
    "low_resource": {"targets": ["small"], "rows": [16]},
    "recipes": RECIPES,
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project with the three tasks prepared."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for i, task in enumerate(VALUES["tasks"]):
        write_task(tmp_path / "data" / "prepared" / "plan" / task, train=40 + i)
    return tmp_path


@pytest.fixture
def config_of(bert):
    def make(**changes) -> Config:
        return parse_config(VALUES | {"backbone": {"name": str(bert.path)}} | changes)

    return make


@pytest.fixture
def config(root, config_of) -> Config:
    return config_of()


def pretend(planner: Planner, run: RunName) -> Path:
    """Leave what a finished run leaves, in the run store."""
    spec = planner.write_spec(run)
    folder = planner.folder(run)
    identity = {"identity": json.dumps(spec.identity())}
    save_file({"x": torch.tensor([run.seed])}, folder / "model.safetensors", identity)
    record = {"config": spec.identity(), "code_sha256": code_sha256(), "run": list(run)}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "predictions.parquet").write_text("p")
    return folder


def pretend_with_needs(planner: Planner, run: RunName) -> Path:
    for need in sorted(planner.needs(run)):
        pretend_with_needs(planner, need)
    return pretend(planner, run)


# ---- which runs there are


def test_every_row_of_the_table_names_a_recipe_and_rows_that_exist():
    names = {f.name for f in dataclasses.fields(Config.__annotations__["recipes"])}
    for name, row in (METHODS | CONTROLS).items():
        assert row.name == name and method(name) is row
        assert row.recipe in names and (row.epochs or row.recipe) in names
        for other in (row.sources, row.start):
            assert other is None or other in METHODS
        assert (row.trains == "fusion") == (row.sources is not None)
        assert bool(row.folder) == (name in CONTROLS)
    assert not METHODS.keys() & CONTROLS.keys()


@pytest.mark.parametrize("name", ["nothing", "nothing-16rows", "fusion_st-rows", "static-16rows"])
def test_a_method_that_does_not_exist_is_a_key_error(name):
    with pytest.raises(KeyError):
        method(name)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("head", ["mid", "small"]),
        ("full", ["big", "mid", "small"]),  # big: sequential starts from it
        ("st_adapter", ["big", "mid", "small"]),
        ("st_adapter_houlsby", ["mid", "small"]),
        ("multitask_full", ["big", "mid", "small"]),
        ("mt_adapter", ["big", "mid", "small"]),
        ("sequential", ["small"]),
        ("fusion_st", ["mid", "small"]),
        ("fusion_mt", ["mid", "small"]),
        ("fusion_st-16rows", ["small"]),
        ("st_adapter-16rows", ["small"]),
        *((name, ["small"]) for name in CONTROLS),
    ],
)
def test_tasks_of_each_method_and_control(config, name, tasks):
    assert tasks_of(config, name) == tasks


def test_without_sequential_full_fine_tuning_is_for_targets_alone(root, config_of):
    config = config_of(methods=["full"], controls=[], control_targets=[], low_resource=None)
    assert tasks_of(config, "full") == ["mid", "small"]


def test_an_absent_task_is_in_no_run_and_in_no_fusion(config):
    folder = Paths("plan").prepared / "mid"
    (folder / "info.json").write_text(json.dumps({"task": "mid", "absent": "Ask for it."}))
    assert plans.absent(config, "mid") == "Ask for it."
    assert not any(run.task == "mid" for run in study(config))
    fused = Planner(config).sources(RunName("fusion_st", "small", 1))
    assert list(fused) == ["big", "small"]
    assert tasks_of(config, "mt_adapter") == ["big", "small"]


def test_a_target_whose_sequential_source_is_absent_is_left_out(config):
    (Paths("plan").prepared / "big" / "info.json").write_text(json.dumps({"absent": "Ask."}))
    assert tasks_of(config, "sequential") == []


def test_a_joint_run_has_every_tasks_seeds(config):
    assert seeds_of(config, "mid") == (7,)
    assert seeds_of(config, JOINT) == (1, 2, 3, 7)


def test_the_study_is_every_method_on_its_tasks_with_their_seeds(config):
    found = study(config)
    assert len(set(found)) == len(found)
    count = {name: sum(run.method == name for run in found) for name in studied(config)}
    assert count == {
        "head": 4,
        "full": 6,
        "st_adapter": 6,
        "st_adapter_houlsby": 4,
        "multitask_full": 4,
        "mt_adapter": 4,
        "sequential": 3,
        "fusion_st": 4,
        "fusion_mt": 4,
        **dict.fromkeys(CONTROLS, 3),
        "st_adapter-16rows": 3,
        "fusion_st-16rows": 3,
    }
    assert {run.task for run in found if METHODS.get(run.method, method("head")).joint} == {JOINT}


def test_the_study_holds_all_that_its_runs_need(config):
    planner, found = Planner(config), set(study(config))
    for run in found:
        assert planner.needs(run) <= found


def test_only_what_params_ask_for_is_studied(root, config_of):
    config = config_of(methods=["fusion_st", "st_adapter"], controls=[], low_resource=None)
    assert studied(config) == ["st_adapter", "fusion_st"]
    assert {run.method for run in study(config)} == {"st_adapter", "fusion_st"}


# ---- what a run builds on


def st(task: str, seed: int) -> RunName:
    return RunName("st_adapter", task, seed)


ALL = {"big": st("big", 2), "mid": st("mid", 7), "small": st("small", 2)}
OTHERS = {task: ALL[task] for task in ("big", "mid")}
MT = RunName("mt_adapter", JOINT, 2)
BUILDS_ON = {  # on small, seed 2: sources, start
    "head": ({}, None),
    "full": ({}, None),
    "st_adapter": ({}, None),
    "st_adapter_houlsby": ({}, None),
    "sequential": ({}, RunName("full", "big", 2)),
    "fusion_st": (ALL, None),
    "fusion_mt": (dict.fromkeys(ALL, MT), MT),
    "st_adapter-16rows": ({}, None),
    "fusion_st-16rows": (OTHERS | {"small": RunName("st_adapter-16rows", "small", 2)}, None),
    **dict.fromkeys(CONTROLS, (ALL, None)),
    **dict.fromkeys(("own_only", "own_longer"), ({"small": ALL["small"]}, None)),
    "without_own": (OTHERS, None),
    "one_seed": ({"big": st("big", 1), "mid": ALL["mid"], "small": st("small", 1)}, None),
    "st_continued": ({}, st("small", 2)),
    "st_longer": ({}, None),
}


def test_every_method_of_one_task_is_in_the_list(config):
    joint = {name for name, row in METHODS.items() if row.joint}
    assert BUILDS_ON.keys() == set(studied(config)) - joint


@pytest.mark.parametrize("name", BUILDS_ON)
def test_what_a_run_builds_on(config, name):
    planner, run = Planner(config), RunName(name, "small", 2)
    sources, start = BUILDS_ON[name]
    assert planner.sources(run) == sources and planner.start(run) == start
    assert list(planner.sources(run)) == [t for t in config.sources if t in sources]
    assert planner.needs(run) == set(sources.values()) | ({start} - {None})


@pytest.mark.parametrize("name", ["multitask_full", "mt_adapter"])
def test_a_joint_run_builds_on_nothing(config, name):
    assert Planner(config).needs(RunName(name, JOINT, 1)) == set()


def test_a_source_that_was_not_trained_with_the_seed_gives_its_first(config):
    planner = Planner(config)
    assert planner.sources(RunName("fusion_st", "small", 3))["big"] == st("big", 1)
    assert planner.sources(RunName("fusion_st", "mid", 7))["small"] == st("small", 1)
    assert planner.start(RunName("sequential", "small", 3)) == RunName("full", "big", 1)
    assert planner.start(RunName("fusion_mt", "small", 3)).seed == 3


def test_source_seed_fixes_the_adapters_and_not_the_own_runs_seed(root, config_of):
    planner = Planner(config_of(source_seed=2))
    for seed in (1, 3):
        run = RunName("fusion_st", "small", seed)
        assert planner.sources(run) == ALL
        mt = planner.sources(RunName("fusion_mt", "small", seed))
        assert set(mt.values()) == {MT} == {planner.start(RunName("fusion_mt", "small", seed))}
        assert planner.start(RunName("st_continued", "small", seed)) == st("small", seed)
    cut = planner.sources(RunName("fusion_st-16rows", "small", 3))
    assert cut["small"] == RunName("st_adapter-16rows", "small", 3) and cut["big"].seed == 2


# ---- specs


def test_a_spec_says_what_params_and_table_say(root, config):
    planner = Planner(config)
    run = RunName("fusion_st", "small", 3)
    pretend_with_needs(planner, run)
    spec = planner.spec(run)
    assert (spec.method, spec.task, spec.seed, spec.trains) == (*run, "fusion")
    assert spec.recipe == Recipe(4e-3, 4, 2, warmup=0.25)
    assert spec.adapter is None and spec.fusion == config.fusion
    assert list(spec.data) == ["small"] and list(spec.sources) == ["big", "mid", "small"]
    assert spec.start is None and spec.rows is None and spec.threads == config.training.threads
    for task, artifact in spec.sources.items():
        where = planner.folder(planner.sources(run)[task])
        assert Path(artifact.path).parent == where and len(artifact.sha256) == 64


def test_sections_are_changed_as_the_table_says(config):
    planner = Planner(config)
    houlsby = planner.spec(RunName("st_adapter_houlsby", "small", 1)).adapter
    assert houlsby == AdapterConfig("houlsby", 16, "swish")
    assert planner.spec(st("small", 1)).adapter == AdapterConfig("pfeiffer", 16, "relu")
    assert planner.spec(RunName("full", "small", 1)).adapter is None
    assert planner.spec(RunName("multitask_full", JOINT, 1)).adapter is None
    joint = planner.spec(RunName("mt_adapter", JOINT, 1))
    assert joint.adapter == config.adapter and list(joint.data) == ["big", "mid", "small"]
    for name, row in CONTROLS.items():
        run = RunName(name, "small", 1)
        pretend_with_needs(planner, run)
        spec = planner.spec(run)
        expected = dataclasses.replace(config.fusion, **row.fusion)
        assert spec.fusion == (expected if row.trains == "fusion" else None)
    assert planner.spec(RunName("no_penalty", "small", 1)).fusion.penalty == 0
    assert planner.spec(RunName("average_outputs", "small", 1)).fusion.variant == "average"


def test_recipes_and_epochs(root, config_of):
    config = config_of(tasks=VALUES["tasks"] | {"small": {"seeds": [1], "epochs": 9}})
    planner = Planner(config)
    continued = planner.recipe(RunName("st_continued", "mid", 7))
    assert continued == Recipe(3e-3, 4, 2, weight_decay=0.1)  # its own rate, fusion's budget
    longer = planner.recipe(RunName("longer", "mid", 7))
    assert longer == Recipe(4e-3, 1, 1, warmup=0.25)  # fusion's rate, the head's budget
    assert planner.recipe(RunName("own_longer", "mid", 7)) == longer
    alone = planner.recipe(RunName("st_longer", "mid", 7))
    assert alone == dataclasses.replace(continued, epochs=1, patience=1)  # its own rate
    assert planner.recipe(RunName("sequential", "mid", 7)) == config.recipes.full
    assert planner.recipe(RunName("mt_adapter", JOINT, 1)) == config.recipes.joint
    assert planner.recipe(RunName("own_only", "small", 1)) == Recipe(4e-3, 9, 9, warmup=0.25)


def test_rows_are_those_of_the_name(config):
    planner = Planner(config)
    assert low_resource("fusion_st", 16) == "fusion_st-16rows"
    for base in methods.LOW_RESOURCE:
        run = RunName(low_resource(base, 16), "small", 1)
        pretend_with_needs(planner, run)
        assert planner.spec(run).rows == 16
        assert planner.spec(run).recipe == planner.recipe(RunName(base, "small", 1))
    assert method("fusion_st-16rows").folder == "low_resource/"


def test_a_run_that_builds_on_an_unfinished_one_cannot_be_planned(config):
    with pytest.raises(RunError, match=r"st_adapter on big, seed 1: not trained yet.*dvc repro"):
        Planner(config).spec(RunName("fusion_st", "small", 1))


def test_a_task_that_is_not_prepared_is_named(root, config):
    (Paths("plan").prepared / "small" / "info.json").unlink()
    with pytest.raises(RunError, match="data/prepared/plan/small: not prepared"):
        Planner(config).spec(st("small", 1))


def test_adapters_given_by_hand_are_fused(config):
    given = {"big": Artifact("x", "1" * 64)}
    assert Planner(config).spec(RunName("fusion_st", "small", 1), given).sources == given


def test_adapters_given_by_hand_are_not_remembered_as_the_studys(config):
    planner, run = Planner(config), RunName("fusion_st", "small", 1)
    pretend_with_needs(planner, run)
    planner = Planner(config)
    planner.spec(run, {"big": Artifact("x", "1" * 64)})
    assert list(planner.spec(run).sources) == ["big", "mid", "small"]


# ---- keys


CHANGES = {
    "method": "other",
    "task": "mid",
    "seed": 2,
    "trains": "head",
    "recipe": Recipe(1e-3, 1, 1),
    "batch_size": 8,
    "micro_batch_size": 8,
    "precision": "bfloat16",
    "clip_norm": 0.5,
    "threads": 2,
    "backbone": Artifact("b", "0"),
    "data": {"small": Artifact("d", "0")},
    "adapter": AdapterConfig(reduction=2),
    "fusion": parse_config(VALUES | {"backbone": {"name": "x"}}).fusion,
    "sources": {"big": Artifact("s", "0")},
    "start": Artifact("s", "0"),
    "rows": 5,
}


def test_the_key_changes_with_every_field_and_with_no_path(config):
    spec = Planner(config).spec(st("small", 1))
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(RunSpec)}
    keys = {name: dataclasses.replace(spec, **{name: v}).key() for name, v in CHANGES.items()}
    assert len({spec.key(), *keys.values()}) == len(CHANGES) + 1

    def moved(artifact: Artifact) -> Artifact:
        return Artifact("/elsewhere", artifact.sha256)

    full = dataclasses.replace(spec, **{k: CHANGES[k] for k in ("sources", "start")})
    elsewhere = dataclasses.replace(
        full,
        backbone=moved(full.backbone),
        data={name: moved(a) for name, a in full.data.items()},
        sources={name: moved(a) for name, a in full.sources.items()},
        start=moved(full.start),
    )
    assert elsewhere.key() == full.key() and elsewhere.identity() == full.identity()


@pytest.mark.parametrize("field", ["recipe", "fusion", "adapter"])
def test_the_key_changes_with_every_number_in_a_section(config, field):
    spec = dataclasses.replace(Planner(config).spec(st("small", 1)), fusion=config.fusion)
    section = getattr(spec, field)
    keys = {spec.key()}
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        other = f"{value}x" if isinstance(value, str) else not value or value + 1
        changed = dataclasses.replace(section, **{f.name: other})
        keys.add(dataclasses.replace(spec, **{field: changed}).key())
    assert len(keys) == 1 + len(dataclasses.fields(section))


@pytest.mark.parametrize("field", ["sources", "data"])
def test_the_key_changes_with_the_order_of_sources_and_of_joint_tasks(config, field):
    spec = Planner(config).spec(st("small", 1))
    pair = {"a": Artifact("a", "1"), "b": Artifact("b", "2")}
    turned = dict(reversed(pair.items()))
    keys = {dataclasses.replace(spec, **{field: p}).key() for p in (pair, turned)}
    assert len(keys) == 2


def test_the_key_changes_with_the_code(config, monkeypatch):
    spec = Planner(config).spec(st("small", 1))
    before = spec.key()
    monkeypatch.setattr("adapterfusion.spec.code_sha256", lambda: "other")
    assert spec.key() != before


def test_the_key_does_not_change_with_what_only_describes_the_data(config):
    before = Planner(config).spec(st("small", 1)).key()
    path = Paths("plan").prepared / "small" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"title": "Another"}))
    assert Planner(config).spec(st("small", 1)).key() == before
    info["splits"]["dev"]["sha256"] = "0" * 64
    path.write_text(json.dumps(info))
    assert Planner(config).spec(st("small", 1)).key() != before


def test_a_spec_is_read_as_it_was_written(config, tmp_path):
    planner = Planner(config)
    for run in (RunName("fusion_mt", "small", 2), RunName("mt_adapter", JOINT, 7)):
        pretend_with_needs(planner, run)
        spec = planner.spec(run)
        spec.write(tmp_path / "spec.json")
        again = RunSpec.read(tmp_path / "spec.json")
        assert again == spec and again.key() == spec.key()


# ---- finished runs


def test_a_run_is_finished_when_record_and_weights_are_there(config):
    planner, run = Planner(config), st("small", 1)
    assert planner.finished(run) is None
    folder = pretend(planner, run)
    assert planner.finished(run) == folder / "model.safetensors"
    (folder / "run.json").unlink()
    assert planner.finished(run) is None
    pretend(planner, run)
    (folder / "model.safetensors").unlink()
    assert planner.finished(run) is None


@pytest.fixture
def placed(config) -> tuple[Config, RunName, Path]:
    """A run that lies in the results and no longer in the run store; its record."""
    planner, run = Planner(config), RunName("st_continued", "small", 2)
    folder = pretend_with_needs(planner, run)
    runs.place(config, run, folder)
    for file in folder.iterdir():
        file.unlink()
    paths = Paths("plan")
    return config, run, paths.run("controls/st_continued", "small", 2) / "run.json"


def test_a_run_is_found_in_the_results(placed):
    config, run, record = placed
    found = Planner(config).finished(run)
    paths = Paths("plan")
    assert found.parent == paths.run_weights("controls/st_continued", "small", 2)
    record.unlink()
    assert Planner(config).finished(run) is None


@pytest.mark.parametrize("what", ["code", "identity"])
def test_a_run_in_the_results_counts_only_if_it_is_the_same(placed, what):
    config, run, path = placed
    record = json.loads(path.read_text())
    if what == "code":
        record["code_sha256"] = "0" * 64
    else:
        record["config"]["recipe"]["learning_rate"] *= 2
    path.write_text(json.dumps(record))
    assert Planner(config).finished(run) is None


def test_a_run_in_the_results_does_not_count_for_other_parameters(placed, config_of):
    _, run, _ = placed
    changed = config_of(recipes=RECIPES | {"fusion": RECIPES["fusion"] | {"epochs": 6}})
    assert Planner(changed).finished(run) is None


def test_a_joint_run_in_the_results_does_not_count_for_another_order_of_tasks(config, config_of):
    run = RunName("multitask_full", JOINT, 1)
    planner = Planner(config)
    folder = pretend(planner, run)
    runs.place(config, run, folder)
    turned = config_of(tasks=dict(reversed(VALUES["tasks"].items())))
    assert Planner(turned).folder(run) != folder
    assert Planner(turned).finished(run) is None


def test_every_profile_holds_what_its_runs_need(monkeypatch):
    for path in sorted((Path(__file__).parents[1] / "profiles").glob("*.yaml")):
        config = parse_config(yaml.safe_load(path.read_text()))
        planner, found = Planner(config), set(study(config))
        for run in found:
            assert planner.needs(run) <= found, path.name
