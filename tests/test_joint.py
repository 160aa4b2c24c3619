"""One run on several tasks: what they share, what a step does, how often each is seen, and a run that
was killed. Then what later runs start from: its backbone, its adapters, or another run's weights.
"""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from adapterfusion.assemble import build_model, source_adapters
from adapterfusion.backbone import file_sha256
from adapterfusion.batches import annealed_shares, collate, joint_batches, load_split
from adapterfusion.checkpoint import WeightsError, load_adapter, load_checkpoint
from adapterfusion.config import AdapterConfig, FusionConfig, Recipe
from adapterfusion.model import TaskModel, load_backbone, shared_copy
from adapterfusion.spec import Artifact, RunSpec
from adapterfusion.train import Run, train

NAMES = ("two", "three", "choice")
FILES = ("model.safetensors", *(f"predictions-{name}.parquet" for name in NAMES))
ADAPTERS = [None, AdapterConfig(reduction=4), AdapterConfig("houlsby", 4)]
WITH = pytest.mark.parametrize("adapter", ADAPTERS, ids=["full", "pfeiffer", "houlsby"])


@pytest.fixture(scope="module")
def joint_spec(make_spec, tasks):
    def make(adapter: AdapterConfig | None = None, **fields) -> RunSpec:
        given = {"data": {name: tasks[name] for name in NAMES}, "adapter": adapter}
        return make_spec("backbone", "joint", **given | fields)

    return make


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def scores_of(record: dict) -> list[dict]:
    return [part["epochs"] for part in record["tasks"].values()]


# ---- what is shared


def test_a_copy_holds_the_very_same_parameters_in_modules_of_its_own(bert):
    backbone = load_backbone(bert.path)
    copied = shared_copy(backbone)
    ours, theirs = dict(backbone.named_parameters()), dict(copied.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    pairs = list(zip(backbone.modules(), copied.modules(), strict=True))
    assert not any(a is b for a, b in pairs)


@WITH
def test_every_task_stands_on_the_same_backbone(joint_spec, tmp_path, adapter):
    model = Run(joint_spec(adapter), tmp_path).model
    mine = {p.data_ptr() for p in model.backbone.parameters()}
    heads = []
    for name in NAMES:
        task = model.tasks[name]
        injected = {p.data_ptr() for p in task.adapter.parameters()} if adapter else set()
        theirs = {p.data_ptr() for p in task.backbone.parameters()}
        assert theirs == mine | injected and not mine & injected
        heads += [p.data_ptr() for p in task.head.parameters()]
    assert len(set(heads)) == len(heads) and not set(heads) & mine


@WITH
def test_names_say_what_is_shared_and_whose_the_rest_is(joint_spec, bert, tmp_path, adapter):
    record = train(joint_spec(adapter), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    backbone = {f"backbone.{n}" for n, _ in load_backbone(bert.path).named_parameters()}
    assert {name for name in saved if name.startswith("backbone.")} == backbone
    parts = {".".join(name.split(".")[:3]) for name in saved if name not in backbone}
    kinds = ("head", "adapter") if adapter else ("head",)
    assert parts == {f"tasks.{task}.{kind}" for task in NAMES for kind in kinds}
    counts = record["parameters"]
    everything = sum(tensor.numel() for tensor in saved.values())
    assert counts == {"trainable": everything, "stored": everything, "frozen": 0}


def test_a_task_of_a_joint_model_is_its_own_model(joint_spec, tasks, tmp_path):
    """Another model with the same weights, made without sharing, says the same."""
    run = Run(joint_spec(ADAPTERS[1]), tmp_path)
    weights = run._weights()
    for name in NAMES:
        spec = dataclasses.replace(run.spec, task=name, data={name: tasks[name]})
        alone = Run(spec, tmp_path)
        own = {n.removeprefix(f"tasks.{name}."): t for n, t in weights.items()}
        alone._load({n: own[n] for n in alone.model.trainable()})
        batch = collate(run.tasks[name].splits["dev"], np.arange(6), 0)
        with torch.no_grad():
            ours, theirs = run.tasks[name].model.eval()(batch), alone.model.eval()(batch)
        torch.testing.assert_close(ours, theirs)


# ---- a step


@WITH
def test_steps_of_all_tasks_add_up_to_the_gradients_of_separate_models(
    joint_spec, tmp_path, adapter
):
    run = Run(joint_spec(adapter, clip_norm=1e9), tmp_path)
    run.model.eval()
    kept = {}

    def look() -> None:
        for name, p in run.model.trainable().items():
            if p.grad is not None:
                kept[name] = p.grad.clone()

    run.optimizer.step, run.optimizer.zero_grad = look, lambda: None
    rows = {"two": np.arange(16), "three": np.arange(5, 20), "choice": np.arange(8)}
    start = run._weights()
    for name in NAMES:
        run.step(run.tasks[name], rows[name])
    total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for name in NAMES:  # a backbone of its own for each task
        task = run.tasks[name]
        backbone = load_backbone(Path(run.spec.backbone.path))
        model = TaskModel(backbone, task.info["n_outputs"], task.info["choices"])
        if adapter:
            model.with_trained_backbone(type(task.model.adapter)(32, 2, adapter))
        mine = {n.removeprefix(f"tasks.{name}."): t for n, t in start.items()}
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(mine[n])
        batch = collate(task.splits["train"], rows[name], 0)
        F.cross_entropy(model.eval()(batch), batch["labels"]).backward()
        for n, p in model.named_parameters():
            full = n if n.startswith("backbone.") else f"tasks.{name}.{n}"
            if p.grad is not None:
                total[full] += p.grad
    assert kept.keys() == total.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(gradient, total[name], atol=1e-5, rtol=1e-3)


def test_a_step_on_one_task_leaves_the_others_heads_alone(joint_spec, tmp_path):
    spec = joint_spec(ADAPTERS[1], recipe=Recipe(5e-3, 2, 2, weight_decay=0.5))
    run = Run(spec, tmp_path)
    for name in ("three", "two"):  # after a step on one, AdamW has moments for it
        before = run._weights()
        run.step(run.tasks[name], np.arange(16))
        after = run._weights()
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert {n.split(".")[1] for n in moved if n.startswith("tasks.")} == {name}
        assert any(n.startswith("backbone.") for n in moved)


# ---- how often each task is seen


def test_shares_are_annealed_from_in_proportion_to_nearly_equal():
    assert annealed_shares([100, 300], 0, 5) == pytest.approx([0.25, 0.75])
    small, large = 100**0.2, 300**0.2
    last = [small / (small + large), large / (small + large)]
    assert annealed_shares([100, 300], 4, 5) == pytest.approx(last)
    middle = [10 / (10 + 2), 2 / (10 + 2)]  # alpha 1 - 0.8 * 5 / 8 = 0.5
    assert annealed_shares([100, 4], 5, 9) == pytest.approx(middle)
    assert annealed_shares([100, 300], 0, 1) == pytest.approx([0.25, 0.75])
    assert annealed_shares([7], 3, 5) == pytest.approx([1.0])


def lengths(**rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(3, 30, n) for name, n in rows.items()}


def test_an_epoch_has_as_many_batches_as_one_pass_over_all_tasks():
    material = lengths(a=33, b=16, c=1)
    for epoch in range(4):
        batches = joint_batches(material, 16, 0, epoch, 4)
        assert len(batches) == 3 + 1 + 1
        assert all(1 <= len(rows) <= 16 and rows.max() < len(material[t]) for t, rows in batches)


def test_each_task_goes_through_all_its_rows_before_it_sees_one_again():
    material = lengths(a=50, b=23, c=40)
    batches = joint_batches(material, 8, 3, 5, 6)
    for task, values in material.items():
        seen = [row for t, rows in batches if t == task for row in rows.tolist()]
        passes = [seen[i : i + len(values)] for i in range(0, len(seen), len(values))]
        assert passes
        for one in passes:
            assert len(set(one)) == len(one)


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_tasks_are_drawn_by_their_shares(epoch):
    material = lengths(a=4000, b=1000, c=250)
    counts = dict.fromkeys(material, 0)
    steps = 0
    for seed in range(8):
        for task, _ in joint_batches(material, 4, seed, epoch, 5):
            counts[task] += 1
            steps += 1
    shares = annealed_shares([4000, 1000, 250], epoch, 5)
    assert [counts[t] / steps for t in material] == pytest.approx(list(shares), abs=0.02)


def test_draws_and_orders_are_a_function_of_seed_and_epoch():
    material = lengths(a=60, b=40)

    def made(seed: int, epoch: int) -> list:
        return [(t, rows.tolist()) for t, rows in joint_batches(material, 8, seed, epoch, 3)]

    assert made(1, 1) == made(1, 1)
    variants = [made(1, 1), made(2, 1), made(1, 2)]
    assert len({tuple(t for t, _ in v) for v in variants}) == 3
    firsts = [next(tuple(rows) for t, rows in v if t == "a") for v in variants]
    assert len(set(firsts)) == 3


def test_learning_rate_counts_the_steps_of_all_tasks(joint_spec, tmp_path, monkeypatch):
    seen, whole = [], Run.step

    def step(self, task, rows):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return whole(self, task, rows)

    monkeypatch.setattr(Run, "step", step)
    train(joint_spec(recipe=Recipe(1e-3, epochs=2, patience=2)), tmp_path)
    assert seen == pytest.approx([1e-3 * (1 - i / 18) for i in range(18)])


# ---- records


def test_record_and_predictions_hold_each_tasks_part(joint_spec, tasks, tmp_path):
    record = train(joint_spec(), tmp_path)
    assert record["task"] == "joint" and list(record["tasks"]) == list(NAMES)
    assert not {"metrics", "data", "attention"} & record.keys()
    assert [set(e) for e in record["epochs"]] == [
        {"train_loss", "train_seconds", "evaluation_seconds"}
    ] * 2
    for name in NAMES:
        dev = load_split(Path(tasks[name].path) / "dev.parquet")
        table = pq.read_table(tmp_path / f"predictions-{name}.parquet")
        assert table.column("id").to_pylist() == dev.ids
        for rule in ("held_out", "paper"):
            logits = np.array(table.column(f"logits_{rule}").to_pylist())
            part = record["tasks"][name]["metrics"][rule]
            assert part["accuracy"] == pytest.approx((logits.argmax(1) == dev.labels).mean())
            epoch = record["tasks"][name]["epochs"][part["epoch"] - 1]
            assert part["accuracy"] == pytest.approx(epoch["dev"]["accuracy"])
        assert record["tasks"][name]["data"]["task"] == name
    assert not (tmp_path / "predictions.parquet").exists()


def test_both_rules_choose_by_the_mean_over_the_tasks(joint_spec, tmp_path, monkeypatch):
    """No task is at its best when the mean is."""
    right = {  # share of right answers on validation in each epoch; dev has it the other way round
        "two": [1.0, 0.75, 0.0],
        "three": [0.0, 0.75, 1.0],
        "choice": [0.5, 0.75, 0.9],
    }

    def predictions(self):
        result = {}
        for name, task in self.tasks.items():
            result[name] = {}
            for split in ("validation", "dev"):
                labels, classes = task.splits[split].labels, len(task.info["labels"])
                epoch = self.state.epoch if split == "validation" else 2 - self.state.epoch
                n = round(right[name][epoch] * len(labels))
                answers = np.where(np.arange(len(labels)) < n, labels, (labels + 1) % classes)
                result[name][split] = np.eye(classes, dtype=np.float32)[answers]
        return result

    monkeypatch.setattr(Run, "predictions", predictions)
    record = train(joint_spec(recipe=Recipe(1e-3, 3, 3)), tmp_path)
    for rule in ("held_out", "paper"):
        chosen = {name: part["metrics"][rule]["epoch"] for name, part in record["tasks"].items()}
        assert chosen == dict.fromkeys(NAMES, 2)
    assert record["tasks"]["two"]["metrics"]["held_out"]["accuracy"] == 0.75


def test_a_task_without_validation_leaves_only_the_papers_rule(joint_spec, tasks, tmp_path):
    data = {name: tasks[name] for name in ("two", "two_paper")}
    record = train(joint_spec(data=data), tmp_path)
    assert all(list(part["metrics"]) == ["paper"] for part in record["tasks"].values())


def test_joint_training_learns_every_task(joint_spec, tasks, tmp_path):
    data = {name: tasks[name] for name in ("two", "choice")}
    spec = joint_spec(ADAPTERS[1], data=data, seed=2, recipe=Recipe(5e-3, 14, 14))
    record = train(spec, tmp_path)
    for name, chance in (("two", 1 / 2), ("choice", 1 / 3)):
        assert record["tasks"][name]["metrics"]["held_out"]["accuracy"] > chance + 0.2


# ---- repeatable


@WITH
def test_same_seed_gives_the_same_bytes_and_another_seed_others(joint_spec, tmp_path, adapter):
    spec = joint_spec(adapter)
    records = [train(spec, tmp_path / name) for name in "ab"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert scores_of(records[0]) == scores_of(records[1])
    train(dataclasses.replace(spec, seed=2), tmp_path / "c")
    assert contents(tmp_path / "a")[1:] != contents(tmp_path / "c")[1:]


def test_kill_minus_nine_and_start_again_gives_the_same_bytes(joint_spec, tmp_path):
    spec = joint_spec(ADAPTERS[1], recipe=Recipe(2e-3, epochs=24, patience=24))
    whole = train(spec, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    spec.write(folder / "spec.json")
    command = [sys.executable, "-m", "adapterfusion.train", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoint.pt").is_file():
            assert process.poll() is None, "the run ended before its first checkpoint was seen"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "run.json").exists()
    assert 1 <= load_checkpoint(folder / "checkpoint.pt")[0].epoch < 24
    record = train(spec, folder)
    assert record["resumed"] and not whole["resumed"]
    assert contents(folder) == contents(tmp_path / "whole")
    assert scores_of(record) == scores_of(whole)


def test_the_command_trains_a_joint_run(joint_spec, tmp_path):
    joint_spec(recipe=Recipe(2e-3, epochs=1, patience=1)).write(tmp_path / "spec.json")
    command = [sys.executable, "-m", "adapterfusion.train", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / "run.json").is_file()
    assert result.returncode == 0, result.stderr[-500:]


def test_a_joint_run_of_which_one_task_is_left_is_trained(joint_spec, tasks, tmp_path):
    record = train(joint_spec(data={"two": tasks["two"]}), tmp_path)
    assert list(record["tasks"]) == ["two"] and record["status"] == "finished"


# ---- starting from an earlier run


@pytest.fixture(scope="module")
def earlier(joint_spec, make_spec, roberta, tmp_path_factory) -> dict[str, Artifact]:
    """Weights of finished runs."""
    specs = {
        "full on three": make_spec("backbone", "three"),
        "adapter on two": make_spec("adapter", "two"),
        "adapter on three": make_spec("adapter", "three"),
        "head on two": make_spec("head", "two"),
        "joint": joint_spec(AdapterConfig(reduction=4)),
        "joint again": joint_spec(AdapterConfig(reduction=4), seed=9),
        "roberta": make_spec("backbone", "three", backbone=roberta.artifact),
    }
    found = {}
    for i, (name, spec) in enumerate(specs.items()):
        folder = tmp_path_factory.mktemp(f"earlier{i}")
        train(spec, folder)
        path = folder / "model.safetensors"
        found[name] = Artifact(str(path), file_sha256(path))
    return found


def fusion_of_joint(make_spec, weights: Artifact, **fields) -> RunSpec:
    """Fusion of the adapters of a joint run, on its backbone."""
    sources = dict.fromkeys(("two", "three"), weights)
    return make_spec("fusion", "two", **{"sources": sources, "start": weights} | fields)


def fresh(spec: RunSpec, folder: Path) -> dict[str, torch.Tensor]:
    """A run's model at its start."""
    return {n: p.detach().clone() for n, p in Run(spec, folder).model.named_parameters()}


def test_sequential_takes_the_backbone_of_another_task_and_a_new_head(make_spec, earlier, tmp_path):
    spec = make_spec("backbone", "two")
    plain = fresh(spec, tmp_path)
    for task in ("two", "choice"):  # two has as many outputs as no other, choice has one
        start = earlier["full on three"]
        model = fresh(make_spec("backbone", task, start=start), tmp_path)
        saved = load_file(start.path)
        new = fresh(make_spec("backbone", task), tmp_path)
        assert all(
            torch.equal(p, saved[n] if n.startswith("backbone.") else new[n])
            for n, p in model.items()
        )
        assert not torch.equal(model["head.1.weight"], saved["head.1.weight"])
    changed = {n for n, p in plain.items() if n in saved and not torch.equal(p, saved[n])}
    assert sum(n.startswith("backbone.encoder") for n in changed) > 20


def test_a_head_of_the_very_same_shape_is_not_taken_from_another_task(make_spec, tasks, tmp_path):
    train(make_spec("backbone", "two"), tmp_path / "first")
    path = tmp_path / "first" / "model.safetensors"
    start = Artifact(str(path), file_sha256(path))
    data = {"two_paper": tasks["two_paper"]}
    spec = make_spec("backbone", "two_paper", data=data)
    model = fresh(dataclasses.replace(spec, start=start), tmp_path)
    assert torch.equal(model["head.4.weight"], fresh(spec, tmp_path)["head.4.weight"])
    assert not torch.equal(model["head.4.weight"], load_file(path)["head.4.weight"])


def test_an_adapter_is_trained_on_with_its_head(make_spec, earlier, tmp_path):
    start = earlier["adapter on two"]
    spec = make_spec("adapter", "two", seed=5, start=start)
    model, saved = fresh(spec, tmp_path), load_file(start.path)
    assert saved.keys() == {n for n in model if not n.startswith("backbone.")}
    assert all(torch.equal(model[n], tensor) for n, tensor in saved.items())
    record = train(spec, tmp_path / "run")
    assert record["config"]["start"] == {"sha256": start.sha256}
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(after["adapter.output.0.up.weight"], saved["adapter.output.0.up.weight"])


def test_fusion_takes_backbone_and_adapters_of_one_joint_run(make_spec, earlier, tmp_path):
    weights = earlier["joint"]
    spec = fusion_of_joint(make_spec, weights)
    model, saved = fresh(spec, tmp_path), load_file(weights.path)
    for name in saved:
        if name.startswith("backbone."):
            assert torch.equal(model[name], saved[name])
    for layer in (0, 1):
        parts = [saved[f"tasks.{t}.adapter.output.{layer}.down.weight"] for t in ("two", "three")]
        banks = [n for n in model if n.endswith(f"layer.{layer}.output.delta.bank.down_weight")]
        assert len(banks) == 1 and torch.equal(model[banks[0]], torch.cat(parts))
    new = fresh(make_spec("head", "two"), tmp_path)
    assert torch.equal(model["head.1.weight"], new["head.1.weight"])
    assert not torch.equal(model["head.1.weight"], saved["tasks.two.head.1.weight"])
    trained = {n for n, p in Run(spec, tmp_path).model.named_parameters() if p.requires_grad}
    assert all(n.startswith(("head.", "fusion.")) for n in trained)


def test_the_frozen_hash_covers_the_backbone_and_the_adapters_it_starts_from(
    make_spec, earlier, tmp_path
):
    one, other = (
        Run(fusion_of_joint(make_spec, earlier[name]), tmp_path)
        for name in ("joint", "joint again")
    )
    assert one.frozen_before != other.frozen_before
    again = Run(fusion_of_joint(make_spec, earlier["joint"]), tmp_path)
    assert again.frozen_before == one.frozen_before
    name = "backbone.encoder.layer.1.output.dense.weight"
    for changed in (name, next(n for n, _ in one.model.named_parameters() if "bank.up_b" in n)):
        with torch.no_grad():
            again.model.get_parameter(changed).flatten()[3] += 1e-6
        assert again.model.frozen_sha256() != one.frozen_before
    record = train(fusion_of_joint(make_spec, earlier["joint"]), tmp_path / "run")
    hashes = record["frozen_sha256"]
    assert hashes["before"] == hashes["after"] == one.frozen_before


@pytest.mark.parametrize("start", [None, "joint again", "full on three"])
def test_adapters_of_a_joint_run_without_its_backbone_are_refused(
    make_spec, earlier, tmp_path, start
):
    spec = fusion_of_joint(make_spec, earlier["joint"], start=start and earlier[start])
    with pytest.raises(WeightsError, match=r"trained together with its backbone\. Start from that"):
        train(spec, tmp_path)


def test_a_joint_run_has_no_adapter_of_a_task_it_did_not_see(make_spec, earlier, bert):
    spec = fusion_of_joint(make_spec, earlier["joint"])
    path = Path(earlier["joint"].path)
    with pytest.raises(WeightsError, match="holds no adapter of rte but weights of"):
        load_adapter(path, load_backbone(bert.path), spec, "rte")


def test_each_task_gets_its_own_adapter_out_of_a_joint_run(make_spec, earlier, bert):
    spec = fusion_of_joint(make_spec, earlier["joint"])
    saved = load_file(earlier["joint"].path)
    adapters = source_adapters(spec, load_backbone(bert.path))
    for task, adapter in zip(("two", "three"), adapters, strict=True):
        assert adapter.config == AdapterConfig(reduction=4)
        for name, parameter in adapter.named_parameters():
            assert torch.equal(parameter, saved[f"tasks.{task}.adapter.{name}"])


def test_a_start_on_another_backbone_is_refused(make_spec, earlier, tmp_path):
    spec = make_spec("backbone", "two", start=earlier["roberta"])
    with pytest.raises(WeightsError, match=r"trained on another backbone.*Train it again"):
        train(spec, tmp_path)


@pytest.mark.parametrize("start", ["adapter on three", "head on two"])
def test_a_start_that_holds_nothing_for_the_run_is_refused(make_spec, earlier, tmp_path, start):
    task = "three" if start == "head on two" else "two"
    spec = make_spec("backbone", task, start=earlier[start])
    with pytest.raises(WeightsError, match=f"holds nothing that backbone on {task} starts from"):
        train(spec, tmp_path)


def test_a_start_that_is_no_runs_weights_is_refused(make_spec, bert, tmp_path):
    start = Artifact(str(bert.path / "model.safetensors"), bert.sha256)
    with pytest.raises(WeightsError, match="not the weights of a run"):
        train(make_spec("backbone", start=start), tmp_path)


def test_a_run_that_starts_elsewhere_gives_the_same_bytes_again(make_spec, earlier, tmp_path):
    spec = fusion_of_joint(make_spec, earlier["joint"], fusion=FusionConfig(dropout=0.1))
    for name in "ab":
        train(spec, tmp_path / name)
    ours, theirs = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert ours == theirs


def test_the_start_is_part_of_what_a_run_is(make_spec, earlier):
    spec = make_spec("backbone", "two")
    keys = {dataclasses.replace(spec, start=a).key() for a in (None, *earlier.values())}
    assert len(keys) == len(earlier) + 1
    moved = Artifact("elsewhere", earlier["joint"].sha256)
    started = dataclasses.replace(spec, start=earlier["joint"])
    assert dataclasses.replace(spec, start=moved).key() == started.key()


def test_a_model_of_one_task_is_not_joint(make_spec):
    model = build_model(make_spec("head"), {"two": {"n_outputs": 2, "choices": None}})
    assert isinstance(model, TaskModel)
