"""The tasks as data: what each is, where its rows come from, and how a row becomes text.

An *example* is the one shape every source ends in: `first` and `second` are lists of segments, one
per sequence. Classification has one sequence and one logit per label; multiple choice has one
sequence per choice and one logit each. A single-segment task leaves `second` empty.
"""

import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Group = Literal["commonsense", "sentiment", "inference", "relatedness", "misc"]
Split = Literal["train", "dev"]


class TaskError(ValueError):
    """A task, or the data behind it, cannot be used. The message names the place and the remedy."""


class AbsentError(TaskError):
    """There is no data for a task at its source."""


class Example(TypedDict):
    """One row of any task. `label` indexes `labels` (classification) or the choices."""

    id: str
    first: list[str]
    second: list[str]
    label: int


class _Template(string.Formatter):
    """`{column}`, `{column[key]}`, and `{column:filler}`, which puts filler in place of an underscore."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if field_name in kwargs:  # a column's name may hold dots and brackets of its own
            return kwargs[field_name], field_name
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not text")
        return value.replace("_", format_spec) if format_spec else value


_TEMPLATE = _Template()


def _column(field: str) -> str:
    return field.split("[")[0]


def _columns(template: str) -> Iterable[str]:
    for _, field, filler, _ in _TEMPLATE.parse(template):
        if field is not None:
            yield _column(field)
            yield from _columns(filler)


@dataclass(frozen=True)
class HubSource:
    """Where the hub (or a mirror of it) keeps a task, pinned, and how its rows read.

    file: path of a split's file in the repository at that revision, with `{split}`.
    splits: our split -> the hub's split name. rows: official row counts by our split.
    first, second: a template per segment; a single one is repeated for every choice.
    values: what the label column says, in the order of the labels or choices.
    row_id: a column that names each row, where there is one to trust; else rows are counted.
    loose: the label column may also hold numbers or truth values, which are compared as text.
    """

    id: str
    config: str
    revision: str
    file: str
    rows: dict[Split, int]
    first: tuple[str, ...]
    second: tuple[str, ...] = ()
    label: str = "label"
    values: tuple[str | int, ...] = (0, 1)
    splits: tuple[tuple[Split, str], ...] = (("train", "train"), ("dev", "validation"))
    row_id: str | None = None
    loose: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that templates and label need, each once."""
        named = [c for t in (*self.first, *self.second) for c in _columns(t)]
        return tuple(dict.fromkeys([*named, self.label, *([self.row_id] if self.row_id else [])]))

    def encode(self, row: dict[str, Any]) -> tuple[list[str], list[str]]:
        """The segments of one row: (`first`, `second`), one entry per sequence.

        Raises:
            KeyError, IndexError, TypeError, AttributeError: the row lacks something a template names.
        """
        first = [_TEMPLATE.vformat(t, (), row).strip() for t in self.first]
        second = [_TEMPLATE.vformat(t, (), row).strip() for t in self.second]
        return first * max(1, len(second) // len(first)), second


@dataclass(frozen=True)
class TaskSpec:
    """One task, whatever its source.

    labels: class names in the order of their ids; empty for multiple choice.
    choices: number of choices; None for classification.
    manual: for a task nobody may redistribute, how to get it.
    """

    name: str
    title: str
    group: Group
    max_length: int
    licence: str
    labels: tuple[str, ...] = ()
    choices: int | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    notes: str = ""
    version: int = 1
    hub: HubSource | None = None
    manual: str | None = None

    @property
    def n_outputs(self) -> int:
        """Width of the task's output layer: one logit per label, or one for each choice's sequence."""
        return 1 if self.choices else len(self.labels)

    @property
    def n_classes(self) -> int:
        return self.choices or len(self.labels)
