"""Prepared tasks as padded batches: read with pyarrow, bucketed by length, in an order of their own.

The order of an epoch depends on seed and epoch alone, so a run that was killed and goes on sees
the very batches it would have seen.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

POOL = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Split:
    """One tokenised split. Sequences are kept ragged: row -> choice -> token ids."""

    ids: list[str]
    labels: np.ndarray  # [rows]
    input_ids: list[list[np.ndarray]]
    token_type_ids: list[list[np.ndarray]]
    lengths: np.ndarray  # [rows], the longest sequence of each row

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, n: int, seed: int) -> "Split":
        """`n` of the rows, drawn by seed, in their own order; all of them where there are no more."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        return Split(
            ids=[self.ids[i] for i in rows],
            labels=self.labels[rows],
            input_ids=[self.input_ids[i] for i in rows],
            token_type_ids=[self.token_type_ids[i] for i in rows],
            lengths=self.lengths[rows],
        )


def load_split(path: Path) -> Split:
    """Read a split that `data.prepare` wrote.

    Raises:
        ValueError: the file is missing, or lacks a column; names the file and the remedy.
    """
    columns = ["id", "label", "input_ids", "token_type_ids"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a prepared split ({error}). Prepare the task again."
        ) from error

    def ragged(name: str) -> list[list[np.ndarray]]:
        rows = table.column(name).combine_chunks()
        per_row, per_sequence = rows.offsets.to_numpy(), rows.values.offsets.to_numpy()
        flat = rows.values.values.to_numpy()
        return [
            [flat[per_sequence[s] : per_sequence[s + 1]] for s in range(per_row[i], per_row[i + 1])]
            for i in range(len(rows))
        ]

    input_ids = ragged("input_ids")
    return Split(
        ids=table.column("id").to_pylist(),
        labels=table.column("label").to_numpy(),
        input_ids=input_ids,
        token_type_ids=ragged("token_type_ids"),
        lengths=np.array([max(map(len, row)) for row in input_ids], dtype=np.int64),
    )


@dataclass
class Task:
    """One task of a run: what its info.json says, its splits, and the model that answers it.

    features: what a frozen backbone says of each split, when only the head is trained.
    """

    info: dict[str, Any]
    splits: dict[str, Split]
    model: nn.Module | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


def load_task(folder: Path, rows: int | None, seed: int) -> Task:
    """A prepared task; with `rows`, so many training rows and the like share of validation."""
    info = json.loads((folder / "info.json").read_text())
    names = [n for n in ("train", "validation", "dev") if (folder / f"{n}.parquet").is_file()]
    splits = {name: load_split(folder / f"{name}.parquet") for name in names}
    if rows is not None:
        share = min(1.0, rows / len(splits["train"]))
        for name in set(names) - {"dev"}:
            splits[name] = splits[name].sample(max(2, round(share * len(splits[name]))), seed)
    return Task(info, splits)


def collate(split: Split, rows: np.ndarray, pad_id: int) -> dict[str, Tensor]:
    """Rows as one padded batch; the choices of a row follow each other.

    Returns:
        input_ids, token_type_ids, attention_mask [rows * choices, tokens] and labels [rows].
    """
    sequences = [s for row in rows for s in split.input_ids[row]]
    types = [s for row in rows for s in split.token_type_ids[row]]
    width = max(map(len, sequences))
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    token_types = np.zeros_like(input_ids)
    mask = np.zeros_like(input_ids)
    for i, (sequence, kind) in enumerate(zip(sequences, types, strict=True)):
        input_ids[i, : len(sequence)] = sequence
        token_types[i, : len(sequence)] = kind
        mask[i, : len(sequence)] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "token_type_ids": torch.from_numpy(token_types),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(split.labels[rows]),
    }


def training_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Every row once, in batches of like length, in random order.

    Rows are shuffled, sorted by length within pools of a few batches, cut, and the batches
    shuffled: little padding, and yet other neighbours each epoch (a task that fits one pool keeps
    its neighbours by length).
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = batch_size * POOL
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def annealed_shares(sizes: list[int], epoch: int, epochs: int) -> np.ndarray:
    """How often each task is drawn: p ~ size^alpha, alpha from 1 down to 0.2 (Stickland & Murray 2019).

    Large tasks are seen in proportion at first; at the end small ones count nearly as much.
    """
    alpha = 1 - 0.8 * epoch / max(1, epochs - 1)
    weights = np.asarray(sizes, dtype=float) ** alpha
    return weights / weights.sum()


def joint_batches(
    lengths: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int, epochs: int
) -> list[tuple[str, np.ndarray]]:
    """An epoch on several tasks, one task a batch: (task, rows), as many as one pass over all would have.

    Each task goes on through its own batches, pass after pass, in orders of its own.
    """
    tasks = list(lengths)
    steps = sum(-(-len(values) // batch_size) for values in lengths.values())
    shares = annealed_shares([len(values) for values in lengths.values()], epoch, epochs)
    drawn = np.random.default_rng([seed, epoch]).choice(len(tasks), size=steps, p=shares)

    def stream(task: str) -> Iterator[np.ndarray]:
        for turn in itertools.count():
            yield from training_batches(lengths[task], batch_size, seed, 1000 * epoch + turn)

    streams = {task: stream(task) for task in tasks}
    return [(tasks[i], next(streams[tasks[i]])) for i in drawn]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Every row once, shortest first."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padding_share(lengths: dict[str, np.ndarray], batches: list[tuple[str, np.ndarray]]) -> float:
    """The share of a batch list's token positions that is padding (choices count as their longest)."""
    used = sum(lengths[task][rows].sum() for task, rows in batches)
    return float(1 - used / sum(len(rows) * lengths[task][rows].max() for task, rows in batches))
