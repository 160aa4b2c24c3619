"""What many tests share: tiny random backbones, tiny prepared tasks, and one thread.

The tasks hold one marker token that gives the answer away, so that a few epochs of a tiny model
learn them. Folders look as `data` writes them: parquet splits and info.json.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # the same device wherever the tests run
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from adapterfusion.backbone import file_sha256
from adapterfusion.config import AdapterConfig, FusionConfig, Recipe
from adapterfusion.spec import Artifact, RunSpec

VOCABULARY = 100
MARKERS = 10  # token ids 10, 11, ...: one per class
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that a random backbone tells its inputs apart
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Saved:
    """A backbone on disk, as `Artifact` names it."""

    path: Path
    sha256: str

    @property
    def artifact(self) -> Artifact:
        return Artifact(str(self.path), self.sha256)


def save_backbone(kind: str, folder: Path, seed: int = 0) -> Saved:
    """A random tiny "bert" or "roberta", written with save_pretrained."""
    torch.manual_seed(seed)
    sizes = SIZES | ({"type_vocab_size": 1} if kind == "roberta" else {})
    model = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(kind, **sizes), add_pooling_layer=False
    )
    with torch.no_grad():  # a fresh LayerNorm is nearly idempotent and would hide a wrong order
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or name.endswith(".bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Saved(folder, file_sha256(folder / "model.safetensors"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Saved:
    return save_backbone("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Saved:
    return save_backbone("roberta", tmp_path_factory.mktemp("roberta"))


@pytest.fixture(params=["bert", "roberta"])
def saved(request) -> Saved:
    """Either backbone."""
    return request.getfixturevalue(request.param)


def example(label: int, classes: int, choices: int | None, rng: np.random.Generator) -> list:
    """One row's sequences. The marker stands among random words; in choices, one choice has it."""
    sequences = []
    for choice in range(choices or 1):
        words = rng.integers(MARKERS + classes, VOCABULARY, size=rng.integers(3, 12)).tolist()
        if choices is None:
            words.insert(int(rng.integers(len(words) + 1)), MARKERS + label)
        elif choice == label:
            words.insert(int(rng.integers(len(words) + 1)), MARKERS)
        sequences.append([2, *words, 3])
    return sequences


def write_split(
    path: Path, rows: int, classes: int, choices: int | None, rng: np.random.Generator
) -> dict:
    """One parquet split; returns what info.json says of it."""
    labels = rng.permutation(np.arange(rows) % (choices or classes))
    inputs = [example(int(label), classes, choices, rng) for label in labels]
    ragged = pa.list_(pa.list_(pa.int32()))
    table = pa.table(
        {
            "id": [f"{path.stem}-{i}" for i in range(rows)],
            "label": pa.array(labels, pa.int64()),
            "input_ids": pa.array(inputs, ragged),
            "token_type_ids": pa.array([[[0] * len(s) for s in row] for row in inputs], ragged),
        }
    )
    pq.write_table(table, path, row_group_size=max(1, rows // 2))
    return {"rows": rows, "sha256": file_sha256(path)}


def write_task(
    folder: Path, classes: int = 2, choices: int | None = None, train: int = 48, held_out: int = 24
) -> Artifact:
    """A prepared task with `held_out` rows in validation (where not 0) and in dev."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([classes, choices or 0, train])
    sizes = {"train": train, "validation": held_out, "dev": held_out or 24}
    splits = {
        name: write_split(folder / f"{name}.parquet", rows, classes, choices, rng)
        for name, rows in sizes.items()
        if rows
    }
    info = {
        "task": folder.name,
        "title": folder.name,
        "labels": [str(i) for i in range(choices or classes)],
        "choices": choices,
        "n_outputs": 1 if choices else classes,
        "metrics": ["accuracy"],
        "source": "test",
        "splits": splits,
        "rows": {name: split["rows"] for name, split in splits.items()},
        "official_split": dict.fromkeys(splits, False),
        "capped": dict.fromkeys(splits, False),
    }
    (folder / "info.json").write_text(json.dumps(info))
    digest = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    return Artifact(str(folder), digest)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> dict[str, Artifact]:
    """two and three (classes), choice (of three), and two_paper, which has no validation split."""
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "two": write_task(folder / "two"),
        "three": write_task(folder / "three", classes=3),
        "choice": write_task(folder / "choice", classes=1, choices=3),
        "two_paper": write_task(folder / "two_paper", held_out=0),
    }


@pytest.fixture(scope="session")
def make_spec(bert, tasks):
    """A function that makes a RunSpec on tiny material; any field may be given."""

    def make(trains: str = "adapter", task: str = "two", **fields) -> RunSpec:
        values = {
            "method": trains,
            "task": task,
            "seed": 1,
            "trains": trains,
            "recipe": Recipe(learning_rate=5e-3, epochs=2, patience=2),
            "batch_size": 16,
            "micro_batch_size": 16,
            "precision": "float32",
            "clip_norm": 1.0,
            "threads": 1,
            "backbone": bert.artifact,
            "data": {task: tasks[task]} if task in tasks else {},
            "adapter": AdapterConfig(reduction=4) if trains == "adapter" else None,
            "fusion": FusionConfig() if trains == "fusion" else None,
        }
        return RunSpec(**values | fields)

    return make
