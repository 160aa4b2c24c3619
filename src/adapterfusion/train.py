"""One training run: the loop, its checkpoint after every epoch, and its record.

    python -m adapterfusion.train RUN_FOLDER      # which holds spec.json

The core runs on torch, transformers, accelerate, safetensors, numpy and pyarrow alone, on data that
was prepared elsewhere. It can be killed at any moment: started again it goes on after the last
finished epoch and ends with the same bytes, because the random numbers of an epoch (order, dropout)
depend on seed and epoch alone. A run on several tasks is the same loop, with one task a batch.
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

from adapterfusion.assemble import (
    build_model,
    hold_frozen_in_bfloat16,
    parameter_groups,
)
from adapterfusion.batches import Task, collate, joint_batches, load_task, training_batches
from adapterfusion.checkpoint import (
    State,
    load_checkpoint,
    save_checkpoint,
    write_predictions,
    write_weights,
)
from adapterfusion.evaluate import first_token_states, predict
from adapterfusion.kernels import keep_freed_memory, same_from_run_to_run
from adapterfusion.metrics import score
from adapterfusion.model import JointModel
from adapterfusion.paths import atomic_write
from adapterfusion.progress import TrainingProgress
from adapterfusion.record import describe
from adapterfusion.spec import RunSpec, predictions_file

# After a checkpoint the next one waits nine times as long as it took: large models, whose optimizer
# states fill files of hundreds of MB, spend no more than a tenth of their time on writing. What the
# first one will take is guessed from its size.
SAVE_SHARE = 9
BYTES_A_SECOND = 250e6


class TrainingError(RuntimeError):
    """A run that must not be trusted: something frozen has moved, or the record is another run's."""


class Run:
    """One run in one folder. `finish()` does all of it; the methods are its steps."""

    def __init__(self, spec: RunSpec, folder: Path):
        self.spec, self.folder = spec, Path(folder)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.tasks = {
            name: load_task(Path(data.path), spec.rows, spec.seed)
            for name, data in spec.data.items()
        }
        self.rules = {"held_out": "validation", "paper": "dev"}
        if not all("validation" in task.splits for task in self.tasks.values()):
            del self.rules["held_out"]

        keep_freed_memory()
        same_from_run_to_run()
        torch.set_num_threads(spec.threads)
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may train many runs
        mixed = "bf16" if spec.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(mixed_precision=mixed)
        infos = {name: task.info for name, task in self.tasks.items()}
        self.model = build_model(spec, infos).to(self.accelerator.device)
        if spec.precision == "bfloat16":
            hold_frozen_in_bfloat16(self.model)
        self.pad_id = self.model.backbone.config.pad_token_id
        for name, task in self.tasks.items():
            joint = isinstance(self.model, JointModel)
            task.model = self.accelerator.prepare(self.model.tasks[name] if joint else self.model)
        self.trained = list(self.model.trainable().values())
        groups = parameter_groups(self.model, spec.recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=spec.recipe.learning_rate, fused=True)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.frozen_before = self.model.frozen_sha256()
        self.setup_seconds = 0.0
        if spec.trains == "head":  # a frozen backbone says the same in every epoch
            started = time.perf_counter()
            with self.accelerator.autocast():
                for task in self.tasks.values():
                    task.features = {
                        name: first_token_states(task.model, split, self.pad_id)
                        for name, split in task.splits.items()
                    }
            self.setup_seconds = time.perf_counter() - started
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

    def batches(self, epoch: int) -> list[tuple[str, np.ndarray]]:
        """An epoch's batches, each with its task: the training rows in an order of the epoch's own."""
        spec = self.spec
        lengths = {name: task.splits["train"].lengths for name, task in self.tasks.items()}
        if spec.task not in lengths:
            return joint_batches(lengths, spec.batch_size, spec.seed, epoch, spec.recipe.epochs)
        rows = training_batches(lengths[spec.task], spec.batch_size, spec.seed, epoch)
        return [(spec.task, batch) for batch in rows]

    def learning_rate(self, done: int, steps: int) -> float:
        """Linear: up during warm-up, then down to zero."""
        recipe = self.spec.recipe
        warmup = recipe.warmup * steps
        if done < warmup:
            return recipe.learning_rate * (done + 1) / (warmup + 1)
        return recipe.learning_rate * (steps - done) / (steps - warmup)

    def step(self, task: Task, rows: np.ndarray) -> float:
        """One optimizer step on one global batch, in micro-batches; returns the mean loss.

        Each micro-batch counts by its rows, so the gradient is that of the whole batch. The fusion
        penalty is part of the loss, once a step.
        """
        total = 0.0
        size = self.spec.micro_batch_size
        train = task.splits["train"]
        for start in range(0, len(rows), size):
            micro = rows[start : start + size]
            if task.features:
                labels = torch.from_numpy(train.labels[micro])
                batch = {"features": task.features["train"][micro].flatten(0, 1), "labels": labels}
            else:
                batch = collate(train, micro, self.pad_id)
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            loss = F.cross_entropy(task.model(batch), batch["labels"], reduction="sum") / len(rows)
            penalty = self.model.penalty() if start == 0 else None
            self.accelerator.backward(loss if penalty is None else loss + penalty)
            total += loss.item()
        self.accelerator.clip_grad_norm_(self.trained, self.spec.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def train_epoch(self, progress: TrainingProgress) -> float | None:
        """One epoch; the mean loss over its rows, or None where the loss is not finite."""
        batches = self.batches(self.state.epoch)
        torch.manual_seed(1_000_003 * self.spec.seed + self.state.epoch)  # dropout of this epoch
        self.model.train()
        steps, total = self.spec.recipe.epochs * len(batches), 0.0
        for i, (task, rows) in enumerate(batches):
            rate = self.learning_rate(self.state.epoch * len(batches) + i, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.step(self.tasks[task], rows)
            if not np.isfinite(loss):
                return None
            total += loss * len(rows)
            progress.step(loss, len(rows))
        return total / sum(len(rows) for _, rows in batches)

    def predictions(self) -> dict[str, dict[str, np.ndarray]]:
        """task -> split -> logits of validation and dev with the weights as they are."""
        return {
            name: {
                split: predict(
                    task.model, task.splits[split], self.pad_id, task.features.get(split)
                )
                for split in self.rules.values()
            }
            for name, task in self.tasks.items()
        }

    def evaluate_epoch(self, logits: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
        """Score validation and dev, and keep what is the best so far by either rule.

        The best is the highest mean accuracy over the run's tasks; ties go to the lower loss.

        Returns:
            `tasks`: task -> split -> scores, and the means that chose, split -> [accuracy, -loss].
        """
        scores = {
            name: {s: score(self.tasks[name].splits[s].labels, x) for s, x in by_split.items()}
            for name, by_split in logits.items()
        }
        dev = {name: by_split["dev"] for name, by_split in logits.items()}
        chooses = {}
        for i, (rule, split) in enumerate(self.rules.items()):
            each = [by_split[split] for by_split in scores.values()]
            key = [float(np.mean([s["accuracy"] for s in each]))]
            key.append(-float(np.mean([s["loss"] for s in each])))
            chooses[split] = key
            best = self.state.best.get(rule)
            if best is None or key > self.state.history[best["epoch"]]["chooses"][split]:
                self.state.best[rule] = {"epoch": self.state.epoch, "logits": dev}
                if i == 0:
                    self.state.kept = self._weights()
        return {"tasks": scores, "chooses": chooses}

    def fit(self) -> None:
        """Epochs until the last one, until patience ends, or until the loss is not finite."""
        recipe, state = self.spec.recipe, self.state
        steps = len(self.batches(0))
        size = 4 * sum(p.nbytes for p in self.trained)  # weights, the best ones, and two moments
        next_save = time.perf_counter() + SAVE_SHARE * size / BYTES_A_SECOND
        name = f"{self.spec.method} {self.spec.task} seed {self.spec.seed}"
        with TrainingProgress(name, recipe.epochs * steps, state.epoch * steps) as progress:
            while state.status == "running":
                started = time.perf_counter()
                loss = self.train_epoch(progress)
                trained = time.perf_counter()
                logits = self.predictions()
                finite = all(np.isfinite(x).all() for t in logits.values() for x in t.values())
                if loss is None or not finite:
                    state.status, loss = "diverged", None
                    self._load(state.kept)
                    logits = self.predictions()
                scores = self.evaluate_epoch(logits)
                seconds = {
                    "train_seconds": round(trained - started, 3),
                    "evaluation_seconds": round(time.perf_counter() - trained, 3),
                }
                state.history.append({"train_loss": loss} | seconds | scores)
                progress.epoch(scores["chooses"]["dev"][0])
                state.epoch += 1
                waited = state.epoch - 1 - state.best[next(iter(self.rules))]["epoch"]
                if state.status == "running" and (
                    state.epoch == recipe.epochs or waited >= recipe.patience
                ):
                    state.status = "finished"
                if state.status == "running" and time.perf_counter() >= next_save:
                    started = time.perf_counter()
                    optimizer = self.optimizer.state_dict()
                    save_checkpoint(self.checkpoint, state, self._weights(), optimizer)
                    saved = time.perf_counter()
                    next_save = saved + SAVE_SHARE * (saved - started)

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
        for name, task in self.tasks.items():
            logits = {rule: best["logits"][name] for rule, best in self.state.best.items()}
            path = self.folder / predictions_file(self.spec.task, name)
            write_predictions(path, task.splits["dev"], logits)
        record = describe(self, frozen_after, resumed, time.perf_counter() - started)
        with atomic_write(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        self.checkpoint.unlink(missing_ok=True)
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
    joint = {task: part["metrics"] for task, part in record.get("tasks", {}).items()}
    print(json.dumps(joint or record["metrics"]))


if __name__ == "__main__":
    main()
