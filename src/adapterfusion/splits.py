"""Which rows are used for what: dev cut from train where there is none, validation, and caps.

All choices depend on the labels, `data.seed` and the task's name alone, and keep the classes in
proportion. A smaller cap takes a part of what a larger one takes.
"""

import hashlib

import numpy as np

from adapterfusion.config import Config
from adapterfusion.tasks import Example, Split, TaskError

VALIDATION_ROWS = 1000  # most rows of the validation part where `tasks.<t>.dev` names no cap


def stratified_order(labels: list[int], seed: int, name: str) -> np.ndarray:
    """Row numbers in a random order of which every beginning holds the classes in proportion.

    The first n rows are a stratified sample for every n, to within a row or two of each class.
    """
    words = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(words, dtype="<u4"))
    values = np.asarray(labels)
    position = np.empty(len(values))
    for value in np.unique(values):
        rows = rng.permutation(np.flatnonzero(values == value))
        position[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def _part(examples: list[Example], rows: np.ndarray) -> list[Example]:
    return [examples[i] for i in np.sort(rows)]


def divide(
    rows: dict[Split, list[Example]], task: str, config: Config
) -> tuple[dict[str, list[Example]], dict[str, bool]]:
    """The splits to train with: train, dev, and validation where `data.validation` is not 0.

    Validation is cut from train before the cap `tasks.<t>.train`, so that a smaller training set
    chooses its epoch on the very same rows. It has at most `tasks.<t>.dev` rows, or VALIDATION_ROWS.

    Returns:
        the splits by name, and for train and dev whether a cap left rows out.

    Raises:
        TaskError: a part would hold fewer than two classes.
    """
    caps, seed, share = config.tasks[task], config.data.seed, config.data.validation

    def order(examples: list[Example], purpose: str) -> np.ndarray:
        return stratified_order([e["label"] for e in examples], seed, f"{task} {purpose}")

    train, dev = rows["train"], rows.get("dev")
    if dev is None:
        shuffled = order(train, "cut")
        n_dev = round(caps.own.dev_share * len(train))
        train, dev = _part(train, shuffled[n_dev:]), _part(train, shuffled[:n_dev])
    shuffled = order(train, "train")
    held_out = round(share * len(train))
    parts = {"train": _part(train, shuffled[held_out:][: caps.train])}
    if share:
        parts["validation"] = _part(train, shuffled[:held_out][: caps.dev or VALIDATION_ROWS])
    parts["dev"] = _part(dev, order(dev, "dev")[: caps.dev])
    for name, examples in parts.items():
        if len({e["label"] for e in examples}) < 2:
            raise TaskError(
                f"tasks.{task}: {name} would have {len(examples)} rows and fewer than two classes. "
                "Raise its cap or share, or check the labels of the data."
            )
    capped = {
        "train": len(parts["train"]) < len(train) - held_out,
        "dev": len(parts["dev"]) < len(dev),
    }
    return parts, capped
