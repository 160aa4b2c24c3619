"""The training loop: the same bytes from the same seed, also after a kill; what is trained and what
stays frozen; and how runs end that must not go on.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterfusion import evaluate
from adapterfusion import train as train_module
from adapterfusion.batches import collate, load_split
from adapterfusion.checkpoint import WeightsError, load_adapter, load_checkpoint
from adapterfusion.config import AdapterConfig, FusionConfig, Recipe
from adapterfusion.evaluate import mean_attention, predict
from adapterfusion.model import load_backbone
from adapterfusion.spec import Artifact, RunSpec
from adapterfusion.train import Run, train

BYTES = ("model.safetensors", "predictions.parquet")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in BYTES]


def epochs_of(record: dict) -> list[dict]:
    """The history without how long things took."""
    return [{k: v for k, v in e.items() if not k.endswith("_seconds")} for e in record["epochs"]]


def logits_of(folder: Path, rule: str = "held_out") -> np.ndarray:
    table = pq.read_table(folder / "predictions.parquet")
    return np.array(table.column(f"logits_{rule}").to_pylist())


@pytest.fixture(scope="module")
def sources(make_spec, tmp_path_factory) -> dict[str, Artifact]:
    """Two trained adapters, ready to be fused."""
    artifacts = {}
    for i, reduction in enumerate((4, 8)):
        folder = tmp_path_factory.mktemp(f"source{i}")
        train(make_spec(seed=i, adapter=AdapterConfig(reduction=reduction)), folder)
        artifacts[f"source{i}"] = Artifact(str(folder / "model.safetensors"), f"sha{i}")
    return artifacts


@pytest.fixture(scope="module")
def spec_of(make_spec, sources):
    """make_spec, with the trained adapters where a fusion is asked for."""

    def make(trains: str, *arguments, **fields) -> RunSpec:
        given = {"sources": sources} if trains == "fusion" else {}
        return make_spec(trains, *arguments, **given | fields)

    return make


MODES = ["head", "backbone", "adapter", "fusion"]


# ---- repeatable


@pytest.mark.parametrize("trains", MODES)
def test_same_seed_gives_the_same_bytes_and_another_seed_others(spec_of, tmp_path, trains):
    spec = spec_of(trains)
    records = [train(spec, tmp_path / name) for name in ("a", "b")]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert records[0]["metrics"] == records[1]["metrics"]
    assert epochs_of(records[0]) == epochs_of(records[1])
    assert records[0].get("attention") == records[1].get("attention")
    train(dataclasses.replace(spec, seed=2), tmp_path / "c")
    ours, theirs = (load_file(tmp_path / name / BYTES[0]) for name in "ac")
    assert ours.keys() == theirs.keys()
    assert not np.array_equal(logits_of(tmp_path / "a"), logits_of(tmp_path / "c"))


def test_seed_decides_the_start(make_spec, tmp_path):
    first, again, other = (Run(make_spec(seed=s), tmp_path)._weights() for s in (1, 1, 2))
    for name in ("head.1.weight", "adapter.output.0.down.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_order_and_random_numbers_differ_by_seed_and_by_epoch(make_spec, tmp_path, monkeypatch):
    drawn = {}

    def step(self, task, rows):
        key = (self.spec.seed, self.state.epoch)
        drawn.setdefault(key, (torch.rand(1).item(), tuple(rows)))
        return 1.0

    monkeypatch.setattr(Run, "step", step)
    for seed in (1, 2):
        train(make_spec(seed=seed), tmp_path / str(seed))
    assert sorted(drawn) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for kind in (0, 1):
        assert len({values[kind] for values in drawn.values()}) == 4


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, epochs: int) -> None:
    """Make the next runs stop, as if by an error, in the middle of the epoch after `epochs`."""
    whole = Run.step
    calls = []

    def step(self, task, rows):
        calls.append(rows)
        if self.state.epoch == epochs and len(calls) % 3 == 2:
            raise Interrupted
        return whole(self, task, rows)

    monkeypatch.setattr(Run, "step", step)


@pytest.mark.parametrize("trains", MODES)
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    spec_of, tmp_path, monkeypatch, trains
):
    spec = spec_of(trains, recipe=Recipe(5e-3, epochs=3, patience=3))
    whole = train(spec, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, epochs=1)
        train(spec, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    assert not (tmp_path / "cut" / "run.json").exists()
    torch.manual_seed(12345)  # whatever the process did in between
    record = train(spec, tmp_path / "cut")
    assert record["resumed"] and not whole["resumed"]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert epochs_of(record) == epochs_of(whole)
    assert record["metrics"] == whole["metrics"]
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_an_interruption_before_the_first_epoch_ends_starts_again(make_spec, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, epochs=0)
        train(make_spec(), tmp_path / "cut")
    assert not train(make_spec(), tmp_path / "cut")["resumed"]
    train(make_spec(), tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(make_spec, tmp_path, monkeypatch):
    whole, calls = torch.save, []

    def save(values, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError("disk full")
        whole(values, path)

    spec = make_spec(recipe=Recipe(5e-3, epochs=3, patience=3))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", save)
        patch.setattr(train_module, "SAVE_SHARE", 0)  # after every epoch
        train(spec, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")[0].epoch == 1
    assert train(spec, tmp_path)["resumed"]


@pytest.mark.parametrize(
    ("share", "speed", "saved"), [(0, 250e6, 3), (1e9, float("inf"), 1), (9, 1e-9, 0)]
)
def test_a_run_cut_long_after_its_checkpoint_goes_on_to_the_same_bytes(
    make_spec, tmp_path, monkeypatch, share, speed, saved
):
    """Large models are not saved after every epoch, nor at all where writing would take longest."""
    spec = make_spec(recipe=Recipe(5e-3, epochs=4, patience=4))
    train(spec, tmp_path / "whole")
    monkeypatch.setattr(train_module, "SAVE_SHARE", share)
    monkeypatch.setattr(train_module, "BYTES_A_SECOND", speed)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, epochs=3)
        train(spec, tmp_path / "cut")
    found = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")
    assert (found[0].epoch if found else 0) == saved
    assert train(spec, tmp_path / "cut")["resumed"] == bool(saved)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(make_spec, tmp_path, monkeypatch):
    record = train(make_spec(), tmp_path)
    monkeypatch.setattr(train_module, "Run", None)
    assert train(make_spec(), tmp_path) == json.loads(json.dumps(record))


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "adapterfusion.train", str(folder)]


def test_kill_minus_nine_and_start_again_gives_the_same_bytes(spec_of, tmp_path):
    spec = spec_of("fusion", recipe=Recipe(2e-3, epochs=30, patience=30))
    whole = train(spec, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    spec.write(folder / "spec.json")
    process = subprocess.Popen(command(folder), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoint.pt").is_file():
            assert process.poll() is None, "the run ended before its first checkpoint was seen"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "run.json").exists()
    done = load_checkpoint(folder / "checkpoint.pt")[0].epoch
    assert 1 <= done < 30
    result = subprocess.run(command(folder), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = json.loads((folder / "run.json").read_text())
    assert json.loads(result.stdout) == record["metrics"] == whole["metrics"]
    assert record["resumed"]
    assert contents(folder) == contents(tmp_path / "whole")
    assert epochs_of(record) == epochs_of(whole)
    assert record["attention"] == whole["attention"]


# ---- what is trained


@pytest.mark.parametrize("trains", MODES)
def test_each_mode_moves_what_it_trains_and_nothing_else(spec_of, tmp_path, trains):
    spec = spec_of(trains)
    start = Run(spec, tmp_path / "start")
    before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
    record = train(spec, tmp_path / "run")
    trained = load_file(tmp_path / "run" / "model.safetensors")
    names = {"adapter": ("head.", "adapter."), "fusion": ("head.", "fusion."), "head": ("head.",)}
    prefixes = names.get(trains, ("head.", "backbone."))
    assert set(trained) == {name for name in before if name.startswith(prefixes)}
    still = {name for name, tensor in trained.items() if torch.equal(tensor, before[name])}
    assert all(name.endswith("bias") or "embeddings" in name for name in still)
    hashes = record["frozen_sha256"]
    assert hashes["before"] == hashes["after"] == start.frozen_before
    counts = record["parameters"]
    assert counts["trainable"] == sum(tensor.numel() for tensor in trained.values())
    assert counts["stored"] == counts["trainable"]
    everything = sum(tensor.numel() for tensor in before.values())
    assert counts["trainable"] + counts["frozen"] == everything
    assert (counts["frozen"] == 0) == (trains == "backbone")
    assert record["status"] == "finished"
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == record


def test_a_frozen_parameter_that_moves_stops_the_run(make_spec, tmp_path):
    run = Run(make_spec(), tmp_path)
    with torch.no_grad():
        run.model.backbone.embeddings.word_embeddings.weight[5, 5] += 1e-7
    with pytest.raises(train_module.TrainingError, match="frozen parameters changed"):
        run.finish()
    assert not (tmp_path / "run.json").exists()


def test_frozen_hash_sees_values_and_names(make_spec, tmp_path):
    model = Run(make_spec(), tmp_path).model
    before = model.frozen_sha256()
    assert before == model.frozen_sha256()
    with torch.no_grad():
        model.head[1].weight += 1
    assert model.frozen_sha256() == before
    with torch.no_grad():
        model.backbone.encoder.layer[1].output.LayerNorm.bias[0] += 1e-7
    assert model.frozen_sha256() != before


def test_weights_that_are_left_behind_give_the_predictions(spec_of, tmp_path):
    """Predictions are those of the weights kept by the first rule."""
    spec = spec_of("adapter", recipe=Recipe(2e-2, epochs=4, patience=4))
    record = train(spec, tmp_path)
    run = Run(spec, tmp_path / "again")
    run._load(load_file(tmp_path / "model.safetensors"))
    logits = predict(run.model, run.tasks[spec.task].splits["dev"], run.pad_id)
    np.testing.assert_array_equal(logits, logits_of(tmp_path).astype(np.float32))
    accuracy = (logits.argmax(1) == run.tasks[spec.task].splits["dev"].labels).mean()
    assert record["metrics"]["held_out"]["accuracy"] == pytest.approx(accuracy)


def test_logits_stand_in_the_order_of_the_rows(make_spec, tmp_path, monkeypatch):
    run = Run(make_spec("backbone", "choice"), tmp_path)
    dev = run.tasks["choice"].splits["dev"]
    assert np.any(np.diff(dev.lengths) < 0)  # rows are evaluated by length
    run.model.eval()
    with torch.no_grad():
        one_by_one = [run.model(collate(dev, np.array([i]), 0))[0].numpy() for i in range(24)]
    monkeypatch.setattr(evaluate, "EVALUATION_ROWS", 7)
    np.testing.assert_allclose(predict(run.model, dev, run.pad_id), one_by_one, atol=1e-5)


def test_each_rule_reports_dev_at_the_epoch_it_chose(spec_of, tmp_path):
    record = train(spec_of("adapter", recipe=Recipe(2e-2, epochs=5, patience=5)), tmp_path)
    for rule, split in (("held_out", "validation"), ("paper", "dev")):
        keys = [(e[split]["accuracy"], -e[split]["loss"]) for e in record["epochs"]]
        chosen = keys.index(max(keys))
        metrics = dict(record["metrics"][rule])
        assert metrics.pop("epoch") == chosen + 1
        assert metrics == pytest.approx(record["epochs"][chosen]["dev"])


def test_without_a_validation_split_only_the_papers_rule_is_reported(make_spec, tmp_path):
    record = train(make_spec(task="two_paper"), tmp_path)
    assert list(record["metrics"]) == ["paper"]
    assert pq.read_table(tmp_path / "predictions.parquet").column_names == [
        "id",
        "label",
        "logits_paper",
    ]


def test_predictions_stand_in_the_order_of_the_dev_split(make_spec, tasks, tmp_path):
    train(make_spec(task="three"), tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet")
    dev = load_split(Path(tasks["three"].path) / "dev.parquet")
    assert table.column("id").to_pylist() == dev.ids
    assert table.column("label").to_pylist() == dev.labels.tolist()
    assert logits_of(tmp_path).shape == (24, 3)


@pytest.mark.parametrize(("task", "chance"), [("two", 1 / 2), ("choice", 1 / 3)])
def test_the_signal_is_learned(make_spec, tmp_path, task, chance):
    recipe = Recipe(1e-2, epochs=12, patience=12)
    record = train(make_spec("backbone", task, seed=2, recipe=recipe), tmp_path)
    assert record["metrics"]["held_out"]["accuracy"] > chance + 0.3
    assert record["epochs"][-1]["train_loss"] < 0.7 * record["epochs"][0]["train_loss"]
    assert logits_of(tmp_path).shape == (24, round(1 / chance))


def test_patience_ends_a_run_that_no_longer_gets_better(make_spec, tmp_path):
    record = train(make_spec(recipe=Recipe(1e-30, epochs=9, patience=2)), tmp_path)
    assert record["metrics"]["held_out"]["epoch"] == 1  # the first of equals
    assert len(record["epochs"]) == 3
    assert record["status"] == "finished"


def test_learning_rate_falls_in_a_line_to_nothing(make_spec, tmp_path, monkeypatch):
    seen = []
    whole = Run.step

    def step(self, task, rows):
        seen.append({group["lr"] for group in self.optimizer.param_groups})
        return whole(self, task, rows)

    monkeypatch.setattr(Run, "step", step)
    train(make_spec(recipe=Recipe(1e-3, epochs=2, patience=2)), tmp_path)
    assert len(seen) == 6 and all(len(rates) == 1 for rates in seen)
    rates = [rate for (rate,) in seen]
    assert rates == pytest.approx([1e-3 * (1 - i / 6) for i in range(6)])


@pytest.mark.parametrize(
    ("warmup", "shares"),  # of the peak, for the 6 steps of a run
    [
        (0.0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (0.5, [1 / 4, 2 / 4, 3 / 4, 1, 2 / 3, 1 / 3]),
        (1 / 6, [1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
    ],
)
def test_learning_rate_rises_during_warmup_and_then_falls(make_spec, tmp_path, warmup, shares):
    run = Run(make_spec(recipe=Recipe(1e-3, 2, 2, warmup=warmup)), tmp_path)
    rates = [run.learning_rate(done, 6) for done in range(6)]
    assert rates == pytest.approx([1e-3 * share for share in shares])


def test_warmup_goes_on_over_a_kill(make_spec, tmp_path, monkeypatch):
    """It counts the steps of the whole run, whoever takes them."""
    spec = make_spec(recipe=Recipe(5e-3, epochs=3, patience=3, warmup=0.6))
    train(spec, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, epochs=1)
        train(spec, tmp_path / "cut")
    assert train(spec, tmp_path / "cut")["resumed"]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_weight_decay_is_the_recipes_and_of_matrices_alone(spec_of, tmp_path):
    spec = spec_of("fusion", recipe=Recipe(1e-2, 1, 1, weight_decay=0.5))
    run = Run(spec, tmp_path)
    before = run._weights()
    for parameter in run.model.trainable().values():
        parameter.grad = torch.zeros_like(parameter)  # all that is left of the step is decay
    run.optimizer.step()
    for name, after in run._weights().items():
        decayed = not name.endswith("bias") and ".value." not in name
        factor = 1 - 1e-2 * 0.5 if decayed else 1.0
        torch.testing.assert_close(after, before[name] * factor)
    assert {g["weight_decay"] for g in run.optimizer.param_groups} == {0.5, 0.0}


def test_without_weight_decay_nothing_decays(spec_of, tmp_path):
    run = Run(spec_of("backbone"), tmp_path)
    assert {g["weight_decay"] for g in run.optimizer.param_groups} == {0.0}


# ---- on some of the rows


def ids_of(spec: RunSpec, folder: Path) -> dict[str, list[str]]:
    return {name: split.ids for name, split in Run(spec, folder).tasks["two"].splits.items()}


def test_a_cut_run_sees_so_many_rows_and_the_like_share_of_validation(spec_of, tmp_path):
    whole = ids_of(spec_of("adapter"), tmp_path)
    cut = ids_of(spec_of("adapter", rows=12), tmp_path)
    assert {name: len(ids) for name, ids in whole.items()} == dict(train=48, validation=24, dev=24)
    assert {name: len(ids) for name, ids in cut.items()} == dict(train=12, validation=6, dev=24)
    assert cut["dev"] == whole["dev"]
    for name in ("train", "validation"):
        places = [whole[name].index(i) for i in cut[name]]
        assert places == sorted(places) and len(set(places)) == len(places)


def test_rows_are_drawn_by_seed_and_the_same_for_adapter_and_fusion(spec_of, tmp_path):
    specs = [spec_of(trains, rows=12) for trains in ("adapter", "fusion")]
    one, other = (ids_of(spec, tmp_path) for spec in specs)
    assert one == other
    again = ids_of(dataclasses.replace(specs[0], seed=2), tmp_path)
    assert again["train"] != one["train"] and again["validation"] != one["validation"]
    assert again["dev"] == one["dev"]


@pytest.mark.parametrize(("rows", "sizes"), [(48, (48, 24)), (500, (48, 24)), (2, (2, 2))])
def test_rows_at_the_ends(make_spec, tmp_path, rows, sizes):
    cut = ids_of(make_spec(rows=rows), tmp_path)
    assert (len(cut["train"]), len(cut["validation"])) == sizes


def test_a_cut_run_is_trained_and_says_on_how_many_rows(make_spec, tmp_path):
    record = train(make_spec(rows=12, batch_size=4), tmp_path)
    rows = record["data"]["rows"]
    assert (rows["train"], rows["validation"], rows["dev"]) == (12, 6, 24)
    assert record["config"]["rows"] == 12
    assert len(logits_of(tmp_path)) == 24
    assert make_spec(rows=12).key() != make_spec(rows=13).key() != make_spec().key()


# ---- one step


def gradient_of_step(spec: RunSpec, folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient of one optimizer step on 32 rows as the optimizer sees it, without dropout."""
    run = Run(spec, folder)
    run.model.eval()
    gradients = {}

    def look() -> None:
        for name, parameter in run.model.trainable().items():
            gradients[name] = parameter.grad.clone()

    run.optimizer.step = look
    loss = run.step(run.tasks[spec.task], np.arange(32))
    return gradients, loss


@pytest.mark.parametrize("trains", MODES)
def test_size_of_micro_batches_does_not_change_the_step(spec_of, tmp_path, trains):
    penalty = {"fusion": FusionConfig(penalty=100.0)} if trains == "fusion" else {}
    results = {}
    for size in (8, 12, 32):
        spec = spec_of(trains, batch_size=32, micro_batch_size=size, clip_norm=1e9, **penalty)
        results[size] = gradient_of_step(spec, tmp_path)
    whole, loss = results[32]
    for size in (8, 12):
        gradients, other_loss = results[size]
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            scale = float(whole[name].abs().max()) or 1.0
            torch.testing.assert_close(gradient, whole[name], atol=1e-4 * scale + 1e-7, rtol=0)


def test_the_penalty_is_in_the_step_and_can_be_switched_off(spec_of, tmp_path):
    gradients = {}
    for penalty in (0.0, 50.0):
        spec = spec_of("fusion", fusion=FusionConfig(penalty=penalty, dropout=0.0), clip_norm=1e9)
        gradients[penalty], _ = gradient_of_step(spec, tmp_path)
    v = Run(spec, tmp_path).model.fusion.layers[0].value.weight.detach()
    name = "fusion.layers.0.value.weight"
    added = gradients[50.0][name] - gradients[0.0][name]
    torch.testing.assert_close(added, 2 * 50 * (v - torch.eye(32)), atol=1e-6, rtol=1e-3)
    name = "fusion.layers.0.query.weight"
    torch.testing.assert_close(gradients[50.0][name], gradients[0.0][name])


def test_a_step_leaves_no_gradient_for_the_next(make_spec, tmp_path):
    run = Run(make_spec(), tmp_path)
    run.step(run.tasks["two"], np.arange(16))
    assert all(p.grad is None or not p.grad.any() for p in run.model.trainable().values())


def test_gradients_are_clipped_to_the_norm_over_all_that_is_trained(make_spec, tmp_path):
    whole, _ = gradient_of_step(make_spec("backbone", clip_norm=1e9), tmp_path)
    clipped, _ = gradient_of_step(make_spec("backbone", clip_norm=0.01), tmp_path)
    norm = torch.cat([g.flatten() for g in whole.values()]).norm()
    assert norm > 0.01
    for name, gradient in clipped.items():
        torch.testing.assert_close(gradient, whole[name] * 0.01 / norm, atol=1e-7, rtol=1e-3)


def test_bfloat16_runs_near_float32_and_keeps_weights_in_float32(spec_of, tmp_path):
    for trains in ("adapter", "fusion"):
        spec = spec_of(trains, precision="bfloat16")
        record = train(spec, tmp_path / trains / "bf16")
        full = train(dataclasses.replace(spec, precision="float32"), tmp_path / trains / "fp32")
        weights = load_file(tmp_path / trains / "bf16" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        ours, theirs = (logits_of(tmp_path / trains / name) for name in ("bf16", "fp32"))
        assert not np.array_equal(ours, theirs)
        np.testing.assert_allclose(ours, theirs, atol=0.3)
        assert record["status"] == full["status"] == "finished"


def test_head_from_remembered_states_equals_head_without(make_spec, tmp_path):
    run = Run(make_spec("head", "choice"), tmp_path)
    task = run.tasks["choice"]
    dev = task.splits["dev"]
    assert task.features["dev"].shape == (24, 3, 32)
    remembered = predict(run.model, dev, run.pad_id, task.features["dev"])
    np.testing.assert_allclose(remembered, predict(run.model, dev, run.pad_id), atol=1e-6)
    run.model.eval()
    rows = np.array([5, 0, 9])
    losses = [run.step(task, rows)]
    task.features = {}
    run._load(Run(make_spec("head", "choice"), tmp_path)._weights())
    losses.append(run.step(task, rows))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- runs that must not go on


def is_finite(record: dict) -> bool:
    numbers = [v for m in record["metrics"].values() for v in m.values()]
    numbers += [v for e in record["epochs"] for s in ("validation", "dev") for v in e[s].values()]
    return all(math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("trains", MODES)
def test_a_loss_that_is_not_finite_ends_the_run_with_finite_scores(spec_of, tmp_path, trains):
    record = train(spec_of(trains, recipe=Recipe(1e38, epochs=3, patience=3)), tmp_path)
    assert record["status"] == "diverged"
    assert record["epochs"][-1]["train_loss"] is None
    assert is_finite(record)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    hashes = record["frozen_sha256"]
    assert hashes["before"] == hashes["after"]


def test_divergence_at_the_last_step_of_an_epoch_is_seen(make_spec, tmp_path):
    """One step an epoch: its loss is finite, and the weights it leaves are not usable."""
    spec = make_spec(batch_size=48, recipe=Recipe(1e38, epochs=1, patience=1))
    record = train(spec, tmp_path)
    assert record["status"] == "diverged"
    assert is_finite(record)


def test_divergence_after_good_epochs_keeps_the_best_of_them(make_spec, tmp_path, monkeypatch):
    spec = make_spec(recipe=Recipe(5e-3, epochs=4, patience=4))
    whole = Run.step

    def step(self, task, rows):
        return float("nan") if self.state.epoch == 2 else whole(self, task, rows)

    monkeypatch.setattr(Run, "step", step)
    record = train(spec, tmp_path)
    assert record["status"] == "diverged" and len(record["epochs"]) == 3
    best = record["metrics"]["held_out"]
    assert best["epoch"] in (1, 2)
    kept, after = record["epochs"][best["epoch"] - 1], record["epochs"][2]
    assert after["validation"] == pytest.approx(kept["validation"])


def run_command(spec: RunSpec, folder: Path, capsys, monkeypatch) -> str:
    """What `python -m adapterfusion.train` says when it ends with an error."""
    folder.mkdir(exist_ok=True)
    spec.write(folder / "spec.json")
    monkeypatch.setattr(sys, "argv", ["train", str(folder)])
    with pytest.raises(SystemExit) as caught:
        train_module.main()
    return str(caught.value.code)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other"])
def test_a_damaged_checkpoint_is_one_clear_error(make_spec, tmp_path, capsys, monkeypatch, damage):
    spec = make_spec()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, epochs=1)
        train(spec, tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.get(damage, b"")
    )
    if damage == "other":
        torch.save({"weights": {}}, path)
    message = run_command(spec, tmp_path, capsys, monkeypatch)
    assert message.startswith(f"error: {path}: damaged checkpoint")
    assert "Delete it" in message
    path.unlink()
    assert train(spec, tmp_path)["status"] == "finished"


def test_an_adapter_of_another_backbone_is_refused(spec_of, roberta, tmp_path):
    spec = spec_of("fusion", backbone=roberta.artifact)
    with pytest.raises(
        WeightsError, match=r"trained on another backbone.*Train it again on this one"
    ):
        train(spec, tmp_path)


def test_weights_without_an_adapter_are_refused(make_spec, bert, tmp_path):
    train(make_spec("head"), tmp_path)
    with pytest.raises(WeightsError, match="holds no adapter of two but weights of head"):
        load_adapter(tmp_path / "model.safetensors", load_backbone(bert.path), make_spec(), "two")


@pytest.mark.parametrize("kind", ["backbone", "plain", "text", "missing"])
def test_a_file_that_is_no_runs_weights_is_refused(make_spec, bert, tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "backbone":
        path = bert.path / "model.safetensors"
    elif kind == "plain":
        save_file({"adapter.output.0.up.bias": torch.zeros(32)}, path)
    elif kind == "text":
        path.write_text("hello")
    with pytest.raises(WeightsError, match=r"model\.safetensors: not the weights of a run"):
        load_adapter(path, load_backbone(bert.path), make_spec(), "two")


def test_a_trained_adapter_is_loaded_as_it_was_saved(make_spec, sources, bert):
    path = Path(sources["source1"].path)
    adapter = load_adapter(path, load_backbone(bert.path), make_spec(), "two")
    assert adapter.config == AdapterConfig(reduction=8)
    saved = load_file(path)
    for name, parameter in adapter.named_parameters():
        assert torch.equal(parameter, saved[f"adapter.{name}"])


def test_fusion_record_holds_the_attention_of_the_weights_that_are_kept(spec_of, tmp_path):
    spec = spec_of("fusion", recipe=Recipe(5e-2, epochs=8, patience=1))
    record = train(spec, tmp_path)
    assert record["metrics"]["held_out"]["epoch"] < len(record["epochs"])
    attention = record["attention"]
    assert attention["adapters"] == ["source0", "source1"]
    assert np.shape(attention["layers"]) == (2, 2)
    np.testing.assert_allclose(np.sum(attention["layers"], axis=1), 1, atol=1e-5)
    run = Run(spec, tmp_path)
    run._load(load_file(tmp_path / "model.safetensors"))
    expected = mean_attention(run.model, run.tasks[spec.task].splits["dev"], run.pad_id)
    np.testing.assert_allclose(attention["layers"], expected, atol=1e-6)


# ---- the core alone

WITHOUT = """
import sys
from importlib.machinery import PathFinder
HIDDEN = set("pandas datasets sklearn dvc papermill matplotlib scipy datasketch nbformat".split())
class Without(PathFinder):  # as if they were not installed
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, *rest)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
for name in HIDDEN:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " can still be imported")
from pathlib import Path
from adapterfusion.spec import RunSpec
from adapterfusion.train import train
folder = Path(sys.argv[1])
print(train(RunSpec.read(folder / "spec.json"), folder)["status"])
"""


def test_the_core_runs_without_what_the_pipeline_needs(spec_of, tmp_path):
    spec_of("fusion").write(tmp_path / "spec.json")
    arguments = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "finished"


def test_a_finished_run_of_another_spec_is_not_passed_off(make_spec, tmp_path):
    train(make_spec(seed=5), tmp_path)
    with pytest.raises(train_module.TrainingError, match="another run"):
        train(make_spec(seed=6), tmp_path)
