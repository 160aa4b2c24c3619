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
    best: by rule ("held_out": best on validation; "paper": best on dev) the epoch and dev logits.
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
        rule: {"epoch": b["epoch"], "logits": torch.from_numpy(b["logits"])}
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
        best = {r: b | {"logits": b["logits"].numpy()} for r, b in values["best"].items()}
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


def write_predictions(path: Path, dev: Split, best: dict[str, dict[str, Any]]) -> None:
    """One row per dev example: id, label, and the logits of the epoch each rule chose."""
    columns: dict[str, list | np.ndarray] = {"id": dev.ids, "label": dev.labels}
    for rule, chosen in best.items():
        columns[f"logits_{rule}"] = chosen["logits"].tolist()
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def load_adapter(path: Path, backbone: nn.Module, backbone_sha256: str) -> TaskAdapter:
    """A trained adapter from a run's model.safetensors, checked against the backbone it is for.

    Raises:
        WeightsError: not such a file, no adapter in it, or trained on another backbone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            identity = json.loads(file.metadata()["identity"])
            names = [key for key in file.keys() if key.startswith("adapter.")]
            weights = {key.removeprefix("adapter."): file.get_tensor(key) for key in names}
    except Exception as error:
        raise WeightsError(
            f"{path}: not the weights of a run ({error}). Train it again."
        ) from error
    if not weights:
        raise WeightsError(f"{path}: holds no adapter but the weights of {identity['method']}.")
    if identity["backbone"]["sha256"] != backbone_sha256:
        raise WeightsError(
            f"{path}: trained on another backbone (sha256 {identity['backbone']['sha256'][:12]}, "
            f"this one has {backbone_sha256[:12]}). Train the adapter again on this one."
        )
    config = build(AdapterConfig, identity["adapter"], "adapter", str(path))
    size = backbone.config
    adapter = TaskAdapter(size.hidden_size, size.num_hidden_layers, config)
    adapter.load_state_dict(weights)
    return adapter
