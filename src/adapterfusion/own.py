"""One's own task: a few lines in params.yaml instead of an entry in code.

    tasks:
      tickets:
        seeds: [1, 2, 3]
        own:
          train: my/tickets.csv        # CSV, TSV, JSONL or parquet; dev as well, or a share of train
          text: [subject, body]        # one or two columns
          label: queue
          labels: [billing, technical] # what the column says, in the order of the label ids

Multiple choice names the columns that hold the choices (`choices: [ending_a, ending_b]`, or
`["endings[0]", "endings[1]"]` where one column holds a list), and `labels` says what the label
column holds for each; without it, 0, 1, ...
"""

from pathlib import Path

from adapterfusion.config import ConfigError, OwnTask
from adapterfusion.tasks import HubSource, TaskSpec

MAX_LENGTH = 128
METRICS = ("accuracy", "f1")


def _fail(name: str, key: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"params.yaml: tasks.{name}.own.{key}: {problem}. {remedy}")


def _check(name: str, own: OwnTask) -> None:
    """Raises ConfigError where the entry contradicts itself."""
    if not 1 <= len(own.text) <= 2:
        raise _fail(name, "text", f"{len(own.text)} columns", "Name one or two.")
    columns = (*own.text, *own.choices, own.label)
    if len(set(columns)) < len(columns):
        raise _fail(name, "text", "a column is named twice", "Text, choices and label differ.")
    for column in (*own.text, *own.choices):
        if not column or any(sign in column for sign in "{}:!"):
            raise _fail(name, "text", f"{column!r} cannot be used", "Rename the column.")
    if len(own.choices) == 1:
        raise _fail(name, "choices", "only one choice", "Name two or more columns.")
    if not own.choices and len(own.labels) < 2:
        raise _fail(name, "labels", "two or more are needed", "List what the label column says.")
    if own.choices and own.labels and len(own.labels) != len(own.choices):
        raise _fail(
            name, "labels", f"{len(own.labels)} for {len(own.choices)} choices", "Name one each."
        )
    if len(set(own.labels)) < len(own.labels):
        raise _fail(name, "labels", "a label is named twice", "Name each once.")
    if not own.metrics or any(metric not in METRICS for metric in own.metrics):
        raise _fail(name, "metrics", f"{', '.join(own.metrics)}?", f"Choose from {METRICS}.")
    if own.dev is None and not 0 < own.dev_share < 1:
        raise _fail(name, "dev_share", "must lie in (0, 1)", "Or name a dev file.")
    if own.hub and not own.revision:
        raise _fail(name, "revision", "missing", "Pin the commit of the hub's repository.")


def own_spec(name: str, own: OwnTask) -> TaskSpec:
    """The task that params.yaml describes.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    _check(name, own)
    text = tuple(f"{{{column}}}" for column in own.text)
    if own.choices:
        lead = "".join(f"{part} " for part in text[1:])
        second = tuple(f"{lead}{{{choice}}}" for choice in own.choices)
    else:
        second = text[1:]
    values = own.labels or tuple(str(i) for i in range(len(own.choices)))
    source = HubSource(
        id=own.hub or "own files",
        config="",
        revision=own.revision or "own files",
        file="",
        rows={},
        first=text[:1],
        second=second,
        label=own.label,
        values=values,
        row_id=own.id,
        loose=True,
    )
    return TaskSpec(
        name=name,
        title=own.title or name,
        group="misc",
        max_length=MAX_LENGTH,
        licence=own.licence,
        labels=() if own.choices else own.labels,
        choices=len(own.choices) or None,
        metrics=own.metrics,
        notes="a task of one's own, described in params.yaml",
        hub=source,
    )


def own_files(own: OwnTask, root: Path) -> dict[str, tuple[Path, str]]:
    """split -> (file, name to be kept). `dev` is missing where it is cut from train.

    Raises:
        TaskError: a file of a hub repository cannot be had.
    """
    from adapterfusion.download import fetch

    files = {}
    for split, named in (("train", own.train), ("dev", own.dev)):
        if named and own.hub:
            files[split] = (fetch(own.hub, named, own.revision), f"{own.hub}/{named}")
        elif named:
            files[split] = (root / Path(named).expanduser(), Path(named).name)
    return files
