"""What a run keeps on disk: its state after every epoch, and at the end weights and predictions.

All files are written aside and renamed, so that one that is there is whole. Weights are safetensors;
a checkpoint, which lives only as long as its run, is loaded as plain tensors and never as code.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.backbone import file_sha256
from adapterfusion.batches import Split
from adapterfusion.config import AdapterConfig, build
from adapterfusion.paths import atomic_write
from adapterfusion.spec import RunSpec


class WeightsError(ValueError):
    """A file of weights that is damaged, or not for this backbone. The message names the remedy."""


@dataclass
class State:
    """Where a run stands.

    status: running, finished, or diverged (the loss was not finite; the last good epoch stands).
    history: one entry per epoch, with its scores.
    best: by rule ("held_out": best on validation; "paper": best on dev) the epoch, and the dev logits
        of each task.
    kept: the weights that the run will leave behind, chosen by the first rule there is.
    """

    epoch: int = 0
    status: str = "running"
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    path: Path, state: State, weights: dict[str, Tensor], optimizer: dict[str, Any]
) -> None:
    plain = {"epoch": state.epoch, "status": state.status, "history": state.history}
    best = {
        rule: {
            "epoch": b["epoch"],
            "logits": {task: torch.from_numpy(logits) for task, logits in b["logits"].items()},
        }
        for rule, b in state.best.items()
    }
    with atomic_write(path) as temporary:
        torch.save(
            {
                "state": json.dumps(plain),
                "best": best,
                "kept": state.kept,
                "weights": weights,
                "optimizer": optimizer,
            },
            temporary,
        )


def load_checkpoint(path: Path) -> tuple[State, dict[str, Tensor], dict[str, Any]] | None:
    """State, weights and optimizer state after the last finished epoch; None where there is none.

    Raises:
        WeightsError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        values = torch.load(path, weights_only=True)
        best = {
            rule: b | {"logits": {task: t.numpy() for task, t in b["logits"].items()}}
            for rule, b in values["best"].items()
        }
        state = State(**json.loads(values["state"]), best=best, kept=values["kept"])
        return state, values["weights"], values["optimizer"]
    except Exception as error:
        raise WeightsError(
            f"{path}: damaged checkpoint ({error}). Delete it; the run starts again from its first epoch."
        ) from error


def write_weights(path: Path, weights: dict[str, Tensor], spec: RunSpec) -> None:
    """The trained parameters, with the run's identity as metadata."""
    metadata = {"identity": json.dumps(spec.identity(), sort_keys=True)}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata)


def write_predictions(path: Path, dev: Split, logits: dict[str, np.ndarray]) -> None:
    """One row per dev example: id, label, and the logits of the epoch each rule chose."""
    columns: dict[str, list | np.ndarray] = {"id": dev.ids, "label": dev.labels}
    for rule, values in logits.items():
        columns[f"logits_{rule}"] = values.tolist()
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _read(path: Path, spec: RunSpec, *prefixes: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Identity of the run that left these weights, and its tensors whose names start so.

    Raises:
        WeightsError: not such a file, or trained on another backbone than the spec's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            identity = json.loads(file.metadata()["identity"])
            names = [name for name in file.keys() if name.startswith(prefixes)]
            weights = {name: file.get_tensor(name) for name in names}
    except Exception as error:
        raise WeightsError(
            f"{path}: not the weights of a run ({error}). Train it again."
        ) from error
    if identity["backbone"]["sha256"] != spec.backbone.sha256:
        raise WeightsError(
            f"{path}: trained on another backbone (sha256 {identity['backbone']['sha256'][:12]}, "
            f"this one has {spec.backbone.sha256[:12]}). Train it again on this one."
        )
    return identity, weights


def load_adapter(path: Path, backbone: nn.Module, spec: RunSpec, task: str) -> TaskAdapter:
    """A task's trained adapter from a run's model.safetensors, checked against the run that fuses it.

    Raises:
        WeightsError: not such a file, no adapter of the task in it, trained on another backbone, or
            together with a backbone that `spec` does not start from.
    """
    joint = f"tasks.{task}.adapter."
    identity, weights = _read(path, spec, "adapter.", joint)
    if not weights:
        raise WeightsError(
            f"{path}: holds no adapter of {task} but weights of {identity['method']}."
        )
    together = identity.get("trains") == "backbone"
    if together and (spec.start is None or spec.start.sha256 != file_sha256(path)):
        raise WeightsError(
            f"{path}: this adapter was trained together with its backbone. Start from that one."
        )
    config = build(AdapterConfig, identity["adapter"], "adapter", str(path))
    size = backbone.config
    adapter = TaskAdapter(size.hidden_size, size.num_hidden_layers, config)
    adapter.load_state_dict(
        {n.removeprefix(joint).removeprefix("adapter."): t for n, t in weights.items()}
    )
    return adapter


@torch.no_grad()
def load_start(model: nn.Module, spec: RunSpec) -> None:
    """Put an earlier run's weights into a run's model: its backbone, and all else of the same task.

    A head or an adapter belongs to its task: another task's is left where it is.

    Raises:
        WeightsError: not such a file, trained on another backbone, or nothing in it to start from.
    """
    path = Path(spec.start.path)
    identity, weights = _read(path, spec, "")
    mine = dict(model.named_parameters())
    own = identity["task"] == spec.task
    chosen = {n: t for n, t in weights.items() if n.startswith("backbone.") or (own and n in mine)}
    if not chosen:
        raise WeightsError(f"{path}: holds nothing that {spec.method} on {spec.task} starts from.")
    for name, tensor in chosen.items():
        mine[name].copy_(tensor)
