"""One training run: the loop, its checkpoint after every epoch, and its record.

    python -m adapterfusion.train RUN_FOLDER      # which holds spec.json

The core runs on torch, transformers, accelerate, safetensors, numpy and pyarrow alone, on data that
was prepared elsewhere. It can be killed at any moment: started again it goes on after the last
finished epoch and ends with the same bytes, because the random numbers of an epoch (order, dropout)
depend on seed and epoch alone.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F

from adapterfusion.adapter import TaskAdapter
from adapterfusion.batches import Split, collate, load_split, padding_share, training_batches
from adapterfusion.checkpoint import (
    State,
    load_adapter,
    load_checkpoint,
    save_checkpoint,
    write_predictions,
    write_weights,
)
from adapterfusion.evaluate import first_token_states, mean_attention, predict
from adapterfusion.fusion import TaskFusion
from adapterfusion.kernels import keep_freed_memory
from adapterfusion.metrics import score
from adapterfusion.model import TaskModel, load_backbone
from adapterfusion.paths import atomic_write
from adapterfusion.progress import TrainingProgress
from adapterfusion.provenance import device_info, git_state, peak_memory_mib, versions
from adapterfusion.spec import RunSpec, code_sha256


class TrainingError(RuntimeError):
    """A run that must not be trusted: something frozen has moved, or the record is another run's."""


def build_model(spec: RunSpec, info: dict[str, Any]) -> TaskModel:
    """The run's model at its start: loaded, injected, frozen where it must be."""
    backbone = load_backbone(Path(spec.backbone.path))
    size = backbone.config
    torch.manual_seed(spec.seed)
    model = TaskModel(backbone, info["n_outputs"], info["choices"])
    if spec.trains == "backbone":
        return model
    if spec.trains == "head":
        return model.with_frozen_backbone()
    if spec.trains == "adapter":
        adapter = TaskAdapter(size.hidden_size, size.num_hidden_layers, spec.adapter)
        return model.with_adapter(adapter)
    adapters = [
        load_adapter(Path(source.path), backbone, spec.backbone.sha256)
        for source in spec.sources.values()
    ]
    fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, spec.fusion)
    return model.with_fusion(fusion, adapters)


def parameter_groups(model: TaskModel, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups. No decay for biases, LayerNorms, or V, which is drawn to I and not to zero."""
    decayed, exempt = [], []
    for name, parameter in model.trainable().items():
        is_v = name.startswith("fusion.") and ".value." in name
        is_exempt = name.endswith(".bias") or "LayerNorm" in name or is_v
        (exempt if is_exempt else decayed).append(parameter)
    groups = [(decayed, weight_decay), (exempt, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


class Run:
    """One run in one folder. `finish()` does all of it; the methods are its steps."""

    def __init__(self, spec: RunSpec, folder: Path):
        self.spec, self.folder = spec, Path(folder)
        self.checkpoint = self.folder / "checkpoint.pt"
        data = Path(spec.data.path)
        self.info = json.loads((data / "info.json").read_text())
        self.splits: dict[str, Split] = {"train": load_split(data / "train.parquet")}
        if (data / "validation.parquet").is_file():
            self.splits["validation"] = load_split(data / "validation.parquet")
        self.splits["dev"] = load_split(data / "dev.parquet")
        self.rules = {"held_out": "validation", "paper": "dev"}
        if "validation" not in self.splits:
            del self.rules["held_out"]

        keep_freed_memory()
        torch.use_deterministic_algorithms(True, warn_only=True)
        AcceleratorState._reset_state(reset_partial_state=True)  # a kernel may train many runs
        mixed = "bf16" if spec.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(mixed_precision=mixed)
        self.model = build_model(spec, self.info).to(self.accelerator.device)
        self.pad_id = self.model.backbone.config.pad_token_id
        groups = parameter_groups(self.model, spec.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=spec.recipe.learning_rate, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.frozen_before = self.model.frozen_sha256()
        self.features: dict[str, Tensor] = {}
        if spec.trains == "head":  # a frozen backbone says the same in every epoch
            self.features = {
                name: first_token_states(self.model, split, self.pad_id)
                for name, split in self.splits.items()
            }
        self.state = State()

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.model.trainable().items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.model.trainable().items():
            parameter.copy_(weights[name])

    def restore(self) -> bool:
        """Go back to the end of the last finished epoch, where there was one."""
        found = load_checkpoint(self.checkpoint)
        if found is None:
            self.state.kept = self._weights()
            return False
        self.state, weights, optimizer = found
        self._load(weights)
        self.optimizer.load_state_dict(optimizer)
        return True

    def step(self, rows: np.ndarray) -> float:
        """One optimizer step on one global batch, in micro-batches; returns the mean loss.

        Each micro-batch counts by its rows, so the gradient is that of the whole batch. The fusion
        penalty is part of the loss, once a step.
        """
        total = 0.0
        size = self.spec.micro_batch_size
        for start in range(0, len(rows), size):
            micro = rows[start : start + size]
            if self.features:
                labels = torch.from_numpy(self.splits["train"].labels[micro])
                batch = {"features": self.features["train"][micro].flatten(0, 1), "labels": labels}
            else:
                batch = collate(self.splits["train"], micro, self.pad_id)
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            loss = F.cross_entropy(self.model(batch), batch["labels"], reduction="sum") / len(rows)
            penalty = self.model.penalty() if start == 0 else None
            self.accelerator.backward(loss if penalty is None else loss + penalty)
            total += loss.item()
        self.accelerator.clip_grad_norm_(self.model.trainable().values(), self.spec.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def train_epoch(self, progress: TrainingProgress) -> float | None:
        """One pass over the training rows; the mean loss, or None where the loss is not finite."""
        recipe, train = self.spec.recipe, self.splits["train"]
        batches = training_batches(
            train.lengths, self.spec.batch_size, self.spec.seed, self.state.epoch
        )
        torch.manual_seed(1_000_003 * self.spec.seed + self.state.epoch)  # dropout of this epoch
        self.model.train()
        steps, total = recipe.epochs * len(batches), 0.0
        for i, rows in enumerate(batches):
            done = self.state.epoch * len(batches) + i
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1 - done / steps)
            loss = self.step(rows)
            if not np.isfinite(loss):
                return None
            total += loss * len(rows)
            progress.step(loss, len(rows))
        return total / len(train)

    def predictions(self) -> dict[str, np.ndarray]:
        """Logits of validation and dev with the weights as they are."""
        return {
            name: predict(self.model, self.splits[name], self.pad_id, self.features.get(name))
            for name in self.rules.values()
        }

    def evaluate_epoch(self, logits: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Score validation and dev, and keep what is the best so far by either rule."""
        scores = {name: score(self.splits[name].labels, logits[name]) for name in logits}
        for i, (rule, name) in enumerate(self.rules.items()):
            key = [scores[name]["accuracy"], -scores[name]["loss"]]  # ties go to the lower loss
            best = self.state.best.get(rule)
            old = self.state.history[best["epoch"]][name] if best else None
            if old is None or key > [old["accuracy"], -old["loss"]]:
                self.state.best[rule] = {"epoch": self.state.epoch, "logits": logits["dev"]}
                if i == 0:
                    self.state.kept = self._weights()
        return scores

    def fit(self) -> None:
        """Epochs until the last one, until patience ends, or until the loss is not finite."""
        recipe, state = self.spec.recipe, self.state
        steps = -(-len(self.splits["train"]) // self.spec.batch_size)
        name = f"{self.spec.method} {self.spec.task} seed {self.spec.seed}"
        with TrainingProgress(name, recipe.epochs * steps, state.epoch * steps) as progress:
            while state.status == "running":
                started = time.perf_counter()
                loss = self.train_epoch(progress)
                trained = time.perf_counter()
                logits = self.predictions()
                if loss is None or not all(np.isfinite(x).all() for x in logits.values()):
                    state.status, loss = "diverged", None
                    self._load(state.kept)
                    logits = self.predictions()
                scores = self.evaluate_epoch(logits)
                seconds = {
                    "train_seconds": round(trained - started, 3),
                    "evaluation_seconds": round(time.perf_counter() - trained, 3),
                }
                state.history.append({"train_loss": loss} | seconds | scores)
                progress.epoch(scores["dev"]["accuracy"])
                state.epoch += 1
                waited = state.epoch - 1 - state.best[next(iter(self.rules))]["epoch"]
                if state.status == "running" and (
                    state.epoch == recipe.epochs or waited >= recipe.patience
                ):
                    state.status = "finished"
                optimizer = self.optimizer.state_dict()
                save_checkpoint(self.checkpoint, state, self._weights(), optimizer)

    def finish(self) -> dict[str, Any]:
        """Train, or go on, or do nothing where run.json says it is done. Returns run.json.

        Raises:
            TrainingError: a frozen parameter changed.
        """
        resumed = self.restore()
        started = time.perf_counter()
        if self.state.status == "running":
            self.fit()
        self._load(self.state.kept)
        frozen_after = self.model.frozen_sha256()
        if frozen_after != self.frozen_before:
            raise TrainingError(f"{self.folder}: frozen parameters changed during training")
        write_weights(self.folder / "model.safetensors", self.state.kept, self.spec)
        write_predictions(self.folder / "predictions.parquet", self.splits["dev"], self.state.best)
        record = self._record(frozen_after, resumed, time.perf_counter() - started)
        with atomic_write(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        self.checkpoint.unlink(missing_ok=True)
        return record

    def _record(self, frozen_sha256: str, resumed: bool, seconds: float) -> dict[str, Any]:
        model, history, dev = self.model, self.state.history, self.splits["dev"]
        metrics = {
            rule: score(dev.labels, best["logits"]) | {"epoch": best["epoch"] + 1}
            for rule, best in self.state.best.items()
        }
        trainable = sum(p.numel() for p in model.trainable().values())
        lengths = self.splits["train"].lengths
        batches = training_batches(lengths, self.spec.batch_size, self.spec.seed, 0)
        record = {
            "method": self.spec.method,
            "task": self.spec.task,
            "seed": self.spec.seed,
            "status": self.state.status,
            "config": self.spec.identity(),
            "data": self.info,
            "metrics": metrics,
            "epochs": history,
            "parameters": {
                "trainable": trainable,
                "frozen": sum(p.numel() for p in model.parameters()) - trainable,
            },
            "frozen_sha256": {"before": self.frozen_before, "after": frozen_sha256},
            "padding_share": round(padding_share(lengths, batches), 4),
            "seconds": {
                "train": round(sum(e["train_seconds"] for e in history), 3),
                "evaluation": round(sum(e["evaluation_seconds"] for e in history), 3),
                "this_process": round(seconds, 3),
            },
            "resumed": resumed,
            "peak_memory_mib": round(peak_memory_mib(self.accelerator.device), 1),
            "device": device_info(self.accelerator.device),
            "versions": versions(),
            "git": git_state(Path(__file__).parents[2]),
            "code_sha256": code_sha256(),
        }
        if model.fusion is not None:
            attention = mean_attention(model, dev, self.pad_id)
            record["attention"] = {
                "adapters": list(self.spec.sources),
                "layers": attention.round(6).tolist(),
            }
        return record


def train(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Bring the run in `folder` to its end, from wherever it stands. Returns run.json.

    Raises:
        TrainingError: the folder holds a finished run of another spec.
    """
    path = Path(folder) / "run.json"
    if path.is_file():
        record = json.loads(path.read_text())
        if record["config"] != spec.identity():
            raise TrainingError(
                f"{path}: the record of another run. Use another folder, or empty it."
            )
        return record
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Run(spec, folder).finish()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one run from its spec.json.")
    parser.add_argument("folder", type=Path, help="a folder that holds spec.json")
    folder = parser.parse_args().folder
    try:
        record = train(RunSpec.read(folder / "spec.json"), folder)
    except (ValueError, OSError, TrainingError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(record["metrics"]))


if __name__ == "__main__":
    main()
