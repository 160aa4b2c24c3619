"""The sixteen tasks of the paper, one entry each, in the order of its tables.

The paper does not describe how its inputs are encoded. Encodings and lengths follow the public code
that the same authors released later; where that is silent too, a task's notes say what was chosen.
Revisions are commits of the hub's repositories, so nothing that moves there changes a result.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from adapterfusion.tasks import HubSource, TaskError, TaskSpec


def _glue(config: str, train: int, dev: int, *segments: str, **more: Any) -> HubSource:
    return HubSource(
        id="nyu-mll/glue",
        config=config,
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        file=config + "/{split}-00000-of-00001.parquet",
        rows={"train": train, "dev": dev},
        first=segments[:1],
        second=segments[1:],
        **more,
    )


def _super_glue(config: str, train: int, dev: int, *segments: str, **more: Any) -> HubSource:
    return HubSource(
        id="aps/super_glue",
        config=config,
        revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
        file=config + "/{split}-00000-of-00001.parquet",
        rows={"train": train, "dev": dev},
        first=segments[:1],
        second=segments[1:],
        **more,
    )


_NLI = ("entailment", "neutral", "contradiction")

_TASKS = (
    TaskSpec(
        name="mnli",
        title="MNLI",
        group="inference",
        labels=_NLI,
        max_length=128,
        licence="OANC and CC BY / BY-SA parts; GLUE collection CC BY 4.0",
        notes="dev is validation_matched",
        hub=_glue(
            *("mnli", 392702, 9815, "{premise}", "{hypothesis}"),
            splits=(("train", "train"), ("dev", "validation_matched")),
            values=(0, 1, 2),
        ),
    ),
    TaskSpec(
        name="qqp",
        title="QQP",
        group="relatedness",
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        max_length=128,
        licence="Quora's terms, non-commercial; GLUE collection CC BY 4.0",
        notes="GLUE's present version of the split; older code counts 40,428 dev rows",
        hub=_glue("qqp", 363846, 40430, "{question1}", "{question2}"),
    ),
    TaskSpec(
        name="sst2",
        title="SST-2",
        group="sentiment",
        labels=("negative", "positive"),
        max_length=128,
        licence="none stated; GLUE collection CC BY 4.0",
        hub=_glue("sst2", 67349, 872, "{sentence}"),
    ),
    TaskSpec(
        name="winogrande",
        title="WinoGrande",
        group="commonsense",
        choices=2,
        max_length=80,
        licence="CC BY (project page); the hub's card states none",
        notes="train_xl; one segment, the option in place of the underscore",
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
        max_length=256,
        licence="none spelled out",
        notes="no official dev split: dev is the official test split, as in the authors' later code; "
        "line breaks (<br />) are left in the text",
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
        choices=4,
        max_length=200,
        licence="MIT",
        notes="second segment: the begun sentence (ctx_b) with an ending",
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
        choices=3,
        max_length=128,
        licence="none given",
        notes="the hub's main branch holds a script; pinned is a commit of its refs/convert/parquet",
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
        choices=4,
        max_length=128,
        licence="CC BY 4.0",
        notes="the hub's main branch holds a script; pinned is a commit of its refs/convert/parquet",
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
        max_length=80,
        licence="Apache 2.0 (project); the hub's card states none",
        notes="the labels are strings on the hub; ids in alphabetical order",
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
        max_length=128,
        licence="UKP's terms: research only, no redistribution",
        notes="first segment the topic, second the sentence; the in-topic split of column `set`",
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
        choices=5,
        max_length=80,
        licence="MIT",
        notes="the random split",
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
        max_length=384,
        licence="CC BY-SA 3.0; the hub's card of SuperGLUE states none",
        notes="first segment the passage, second the question",
        hub=_super_glue("boolq", 9427, 3270, "{passage}", "{question}"),
    ),
    TaskSpec(
        name="mrpc",
        title="MRPC",
        group="relatedness",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        max_length=128,
        licence="Microsoft Research Shared Source, non-commercial",
        hub=_glue("mrpc", 3668, 408, "{sentence1}", "{sentence2}"),
    ),
    TaskSpec(
        name="sick",
        title="SICK",
        group="inference",
        labels=_NLI,
        max_length=80,
        licence="CC BY-NC-SA 3.0",
        notes="the hub's main branch holds a script; refs/convert/parquet is a named ref, since no full "
        "commit of it is on record, so row counts and label names alone guard it",
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
        max_length=290,
        licence="none stated for the texts; GLUE collection CC BY 4.0",
        hub=_glue("rte", 2490, 277, "{sentence1}", "{sentence2}"),
    ),
    TaskSpec(
        name="cb",
        title="CB",
        group="inference",
        labels=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "f1"),
        max_length=256,
        licence="none stated by the hub's card of SuperGLUE",
        notes="F1 is the mean over the three classes; the label order is not MNLI's",
        hub=_super_glue("cb", 250, 56, "{premise}", "{hypothesis}", values=(0, 1, 2)),
    ),
)
PAPER: dict[str, TaskSpec] = {task.name: task for task in _TASKS}


def unknown_task(name: str, known: Iterable[str]) -> TaskError:
    """The error for a name that is no task, with the nearest names there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) or known
    return TaskError(f"tasks.{name}: there is no such task here. Did you mean {', '.join(near)}?")
