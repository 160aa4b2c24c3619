"""The tasks as data: what each is, where its rows come from, and how a row becomes text.

An *example* is the one shape every source ends in: `first` and `second` are lists of segments, one
per sequence. Classification has one sequence and one logit per label; multiple choice has one
sequence per choice and one logit each. A single-segment task leaves `second` empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Group = Literal["commonsense", "sentiment", "inference", "relatedness", "misc"]
Split = Literal["train", "dev"]


class Example(TypedDict):
    """One row of any task. `label` indexes `labels` (classification) or the choices."""

    id: str
    first: list[str]
    second: list[str]
    label: int


@dataclass(frozen=True)
class HubSource:
    """Where the hub (or a mirror of it) keeps a task, pinned.

    splits: our split -> the hub's split name. rows: official row counts by the hub's split name.
    """

    id: str
    config: str
    revision: str
    splits: dict[Split, str]
    rows: dict[str, int]
    columns: tuple[str, ...]
    encode: Callable[[dict[str, Any]], tuple[list[str], list[str]]]
    label: str = "label"


@dataclass(frozen=True)
class TaskSpec:
    """One task, whatever its source.

    labels: class names in the order of their ids; empty for multiple choice.
    choices: number of choices; None for classification.
    """

    name: str
    title: str
    group: Group
    labels: tuple[str, ...]
    choices: int | None
    metrics: tuple[str, ...]
    max_length: int
    licence: str
    notes: str
    version: int
    hub: HubSource | None = None

    @property
    def n_outputs(self) -> int:
        """Width of the task's output layer: one logit per label, or one for each choice's sequence."""
        return 1 if self.choices else len(self.labels)

    @property
    def n_classes(self) -> int:
        return self.choices or len(self.labels)
