"""The tasks as data: what each is, where its rows come from, and how a row becomes text.

An *example* is the one shape every source ends in: `first` and `second` are lists of segments, one
per sequence. Classification has one sequence and one logit per label; multiple choice has one
sequence per choice and one logit each. A single-segment task leaves `second` empty.

`PAPER` holds the sixteen tasks of the paper, whose encodings it does not describe. They follow the
public code of the same authors; where that is silent too, a task's notes say what was chosen.
"""

import difflib
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Group = Literal["commonsense", "sentiment", "inference", "relatedness", "misc"]
Split = Literal["train", "dev"]


class TaskError(ValueError):
    """A task, or the data behind it, cannot be used. The message names the place and the remedy."""


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

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that templates and label need, each once."""
        named = [c for t in (*self.first, *self.second) for c in _columns(t)]
        return tuple(dict.fromkeys([*named, self.label]))

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
    labels: tuple[str, ...]
    choices: int | None
    metrics: tuple[str, ...]
    max_length: int
    licence: str
    notes: str
    version: int
    hub: HubSource | None = None
    manual: str | None = None

    @property
    def n_outputs(self) -> int:
        """Width of the task's output layer: one logit per label, or one for each choice's sequence."""
        return 1 if self.choices else len(self.labels)

    @property
    def n_classes(self) -> int:
        return self.choices or len(self.labels)


_GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
_SUPER_GLUE_REVISION = "3de24cf8022e94f4ee4b9d55a6f539891524d646"


def _glue(config: str, train: int, dev: int, *segments: str, dev_split: str = "validation", n=2):
    return HubSource(
        id="nyu-mll/glue",
        config=config,
        revision=_GLUE_REVISION,
        file=config + "/{split}-00000-of-00001.parquet",
        rows={"train": train, "dev": dev},
        splits=(("train", "train"), ("dev", dev_split)),
        first=(segments[0],),
        second=segments[1:],
        values=tuple(range(n)),
    )


def _super_glue(config: str, train: int, dev: int, first: str, second: str, n: int):
    return HubSource(
        id="aps/super_glue",
        config=config,
        revision=_SUPER_GLUE_REVISION,
        file=config + "/{split}-00000-of-00001.parquet",
        rows={"train": train, "dev": dev},
        first=(first,),
        second=(second,),
        values=tuple(range(n)),
    )


_NLI = ("entailment", "neutral", "contradiction")

# In the order of the paper's tables.
_TASKS = (
    TaskSpec(
        name="mnli",
        title="MNLI",
        group="inference",
        labels=_NLI,
        choices=None,
        metrics=("accuracy",),
        max_length=128,
        licence="OANC and CC BY / BY-SA parts; GLUE collection CC BY 4.0",
        notes="dev is validation_matched",
        version=1,
        hub=_glue(
            "mnli", 392702, 9815, "{premise}", "{hypothesis}", dev_split="validation_matched", n=3
        ),
    ),
    TaskSpec(
        name="qqp",
        title="QQP",
        group="relatedness",
        labels=("not_duplicate", "duplicate"),
        choices=None,
        metrics=("accuracy", "f1"),
        max_length=128,
        licence="Quora's terms, non-commercial; GLUE collection CC BY 4.0",
        notes="GLUE's present version of the split; older code counts 40,428 dev rows",
        version=1,
        hub=_glue("qqp", 363846, 40430, "{question1}", "{question2}"),
    ),
    TaskSpec(
        name="sst2",
        title="SST-2",
        group="sentiment",
        labels=("negative", "positive"),
        choices=None,
        metrics=("accuracy",),
        max_length=128,
        licence="none stated; GLUE collection CC BY 4.0",
        notes="",
        version=1,
        hub=_glue("sst2", 67349, 872, "{sentence}"),
    ),
    TaskSpec(
        name="winogrande",
        title="WinoGrande",
        group="commonsense",
        labels=(),
        choices=2,
        metrics=("accuracy",),
        max_length=80,
        licence="CC BY (project page); the hub's card states none",
        notes="train_xl; one segment, the option in place of the underscore",
        version=1,
        hub=HubSource(
            id="allenai/winogrande",
            config="winogrande_xl",
            revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
            file="winogrande_xl/{split}-00000-of-00001.parquet",
            rows={"train": 40398, "dev": 1267},
            first=("{sentence:{option1}}", "{sentence:{option2}}"),
            label="answer",
            values=("1", "2"),
        ),
    ),
    TaskSpec(
        name="imdb",
        title="IMDb",
        group="sentiment",
        labels=("neg", "pos"),
        choices=None,
        metrics=("accuracy",),
        max_length=256,
        licence="none spelled out",
        notes="no official dev split: dev is the official test split, as in the authors' later code; "
        "line breaks (<br />) are left in the text",
        version=1,
        hub=HubSource(
            id="stanfordnlp/imdb",
            config="plain_text",
            revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
            file="plain_text/{split}-00000-of-00001.parquet",
            rows={"train": 25000, "dev": 25000},
            splits=(("train", "train"), ("dev", "test")),
            first=("{text}",),
        ),
    ),
    TaskSpec(
        name="hellaswag",
        title="HellaSwag",
        group="commonsense",
        labels=(),
        choices=4,
        metrics=("accuracy",),
        max_length=200,
        licence="MIT",
        notes="second segment: the begun sentence (ctx_b) with an ending",
        version=1,
        hub=HubSource(
            id="Rowan/hellaswag",
            config="default",
            revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
            file="data/{split}-00000-of-00001.parquet",
            rows={"train": 39905, "dev": 10042},
            first=("{ctx_a}",),
            second=tuple(f"{{ctx_b}} {{endings[{i}]}}" for i in range(4)),
            values=("0", "1", "2", "3"),
        ),
    ),
    TaskSpec(
        name="socialiqa",
        title="SocialIQA",
        group="commonsense",
        labels=(),
        choices=3,
        metrics=("accuracy",),
        max_length=128,
        licence="none given",
        notes="the hub's main branch holds a script; pinned is a commit of its refs/convert/parquet",
        version=1,
        hub=HubSource(
            id="allenai/social_i_qa",
            config="default",
            revision="537a2ec8ec565adc0b70b70752893e59e024df26",
            file="default/{split}/0000.parquet",
            rows={"train": 33410, "dev": 1954},
            first=("{context}",),
            second=tuple(f"{{question}} {{answer{c}}}" for c in "ABC"),
            values=("1", "2", "3"),
        ),
    ),
    TaskSpec(
        name="cosmosqa",
        title="CosmosQA",
        group="commonsense",
        labels=(),
        choices=4,
        metrics=("accuracy",),
        max_length=128,
        licence="CC BY 4.0",
        notes="the hub's main branch holds a script; pinned is a commit of its refs/convert/parquet",
        version=1,
        hub=HubSource(
            id="allenai/cosmos_qa",
            config="default",
            revision="ed50fe83db62b355759053b1cd5eef344ee371e0",
            file="default/{split}/0000.parquet",
            rows={"train": 25262, "dev": 2985},
            first=("{context}",),
            second=tuple(f"{{question}} {{answer{i}}}" for i in range(4)),
            values=(0, 1, 2, 3),
        ),
    ),
    TaskSpec(
        name="scitail",
        title="SciTail",
        group="inference",
        labels=("entails", "neutral"),
        choices=None,
        metrics=("accuracy",),
        max_length=80,
        licence="Apache 2.0 (project); the hub's card states none",
        notes="the labels are strings on the hub; ids in alphabetical order",
        version=1,
        hub=HubSource(
            id="allenai/scitail",
            config="tsv_format",
            revision="0cc4353235b289165dfde1c7c5d1be983f99ce44",
            file="tsv_format/{split}-00000-of-00001.parquet",
            rows={"train": 23097, "dev": 1304},
            first=("{premise}",),
            second=("{hypothesis}",),
            values=("entails", "neutral"),
        ),
    ),
    TaskSpec(
        name="argument",
        title="Argument",
        group="misc",
        labels=("NoArgument", "Argument_against", "Argument_for"),
        choices=None,
        metrics=("accuracy",),
        max_length=128,
        licence="UKP's terms: research only, no redistribution",
        notes="first segment the topic, second the sentence; the in-topic split of column `set`",
        version=1,
        hub=HubSource(
            id="UKP/sentential_argument_mining",
            config="in_topic",
            revision="manual import",
            file="",
            rows={"train": 18341, "dev": 2042},
            first=("{topic}",),
            second=("{sentence}",),
            label="annotation",
            values=("NoArgument", "Argument_against", "Argument_for"),
        ),
        manual="Ask UKP Lab for the Sentential Argument Mining Corpus, unpack it, and run "
        "`python -m adapterfusion.data import-argument FOLDER`.",
    ),
    TaskSpec(
        name="csqa",
        title="CSQA",
        group="commonsense",
        labels=(),
        choices=5,
        metrics=("accuracy",),
        max_length=80,
        licence="MIT",
        notes="the random split",
        version=1,
        hub=HubSource(
            id="tau/commonsense_qa",
            config="default",
            revision="94630fe30dad47192a8546eb75f094926d47e155",
            file="data/{split}-00000-of-00001.parquet",
            rows={"train": 9741, "dev": 1221},
            first=("{question}",),
            second=tuple(f"{{choices[text][{i}]}}" for i in range(5)),
            label="answerKey",
            values=("A", "B", "C", "D", "E"),
        ),
    ),
    TaskSpec(
        name="boolq",
        title="BoolQ",
        group="misc",
        labels=("False", "True"),
        choices=None,
        metrics=("accuracy",),
        max_length=384,
        licence="CC BY-SA 3.0; the hub's card of SuperGLUE states none",
        notes="first segment the passage, second the question",
        version=1,
        hub=_super_glue("boolq", 9427, 3270, "{passage}", "{question}", n=2),
    ),
    TaskSpec(
        name="mrpc",
        title="MRPC",
        group="relatedness",
        labels=("not_equivalent", "equivalent"),
        choices=None,
        metrics=("accuracy", "f1"),
        max_length=128,
        licence="Microsoft Research Shared Source, non-commercial",
        notes="",
        version=1,
        hub=_glue("mrpc", 3668, 408, "{sentence1}", "{sentence2}"),
    ),
    TaskSpec(
        name="sick",
        title="SICK",
        group="inference",
        labels=_NLI,
        choices=None,
        metrics=("accuracy",),
        max_length=80,
        licence="CC BY-NC-SA 3.0",
        notes="the hub's main branch holds a script; refs/convert/parquet is a named ref, since no full "
        "commit of it is on record, so row counts and label names alone guard it",
        version=1,
        hub=HubSource(
            id="RobZamp/sick",
            config="default",
            revision="refs/convert/parquet",
            file="default/{split}/0000.parquet",
            rows={"train": 4439, "dev": 495},
            first=("{sentence_A}",),
            second=("{sentence_B}",),
            values=(0, 1, 2),
        ),
    ),
    TaskSpec(
        name="rte",
        title="RTE",
        group="inference",
        labels=("entailment", "not_entailment"),
        choices=None,
        metrics=("accuracy",),
        max_length=290,
        licence="none stated for the texts; GLUE collection CC BY 4.0",
        notes="",
        version=1,
        hub=_glue("rte", 2490, 277, "{sentence1}", "{sentence2}"),
    ),
    TaskSpec(
        name="cb",
        title="CB",
        group="inference",
        labels=("entailment", "contradiction", "neutral"),
        choices=None,
        metrics=("accuracy", "f1"),
        max_length=256,
        licence="none stated by the hub's card of SuperGLUE",
        notes="F1 is the mean over the three classes; the label order is not MNLI's",
        version=1,
        hub=_super_glue("cb", 250, 56, "{premise}", "{hypothesis}", n=3),
    ),
)
PAPER: dict[str, TaskSpec] = {task.name: task for task in _TASKS}


def unknown_task(name: str, known: Iterable[str]) -> TaskError:
    """The error for a name that is no task, with the nearest names there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) or known
    return TaskError(f"tasks.{name}: there is no such task here. Did you mean {', '.join(near)}?")
