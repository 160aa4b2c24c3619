"""A progress line a person can follow, also from inside a notebook that papermill executes.

Papermill would write the bar into the executed notebook. There, the runner names a file in
ADAPTERFUSION_PROGRESS; the bar goes to that file, and the runner copies it to the terminal.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from adapterfusion.paths import find_root

PROGRESS = "ADAPTERFUSION_PROGRESS"


class TrainingProgress:
    """Steps, mean loss of the epoch, last dev accuracy and time left of one run."""

    def __init__(self, description: str, total: int, done: int):
        path = os.environ.get(PROGRESS)
        self._file = open(path, "a", buffering=1, encoding="utf-8") if path else None
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit="step",
            file=self._file or sys.stderr,
            mininterval=1.0,
            ncols=100,
        )
        self._loss, self._rows = 0.0, 0
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file:
            self._file.close()

    def step(self, loss: float, rows: int) -> None:
        self._loss += loss * rows
        self._rows += rows
        self._shown["loss"] = f"{self._loss / self._rows:.3f}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def epoch(self, dev_accuracy: float) -> None:
        self._loss, self._rows = 0.0, 0
        self._shown["dev"] = f"{100 * dev_accuracy:.1f}"


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Note how long a stage of the pipeline took in build/stages.csv: when it ended, name, seconds."""
    started = time.time()
    yield
    path = find_root() / "build" / "stages.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:  # one short line: written whole
        file.write(f"{time.time():.1f},{stage},{time.time() - started:.2f}\n")
