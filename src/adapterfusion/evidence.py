"""What a claim is judged with: a profile's records in order, its large and small tasks, an outcome.

`score_tests.py` and `run_tests.py` hold the kinds of test that claims.yaml may name, each a `Kind`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from adapterfusion.config import Config
from adapterfusion.paper import TITLES, train_rows, wide
from adapterfusion.paths import Paths
from adapterfusion.runs import difference
from adapterfusion.stats import Interval
from adapterfusion.tables import protocols

VERDICTS = ("reproduced", "contradicted", "not distinguishable", "not tested")
Over = Literal["targets", "large", "small"]
Record = dict[str, Any]


def as_json(interval: Interval, unit: str = "points", **more: Any) -> dict[str, Any]:
    numbers = {k: round(getattr(interval, k), 4) for k in ("mean", "low", "high")}
    return numbers | {"unit": unit} | more


class NotTested(Exception):
    """This profile cannot say; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """A verdict, what it rests on in a sentence and in a few characters, and the run.json files."""

    verdict: str
    evidence: str
    here: str
    interval: dict[str, Any] | None = None
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sizes:
    """Which targets are large and small by their training rows; claims.yaml explains the rule."""

    large_rows: int
    small_rows: int
    relative: float

    def split(self, rows: dict[str, int]) -> tuple[list[str], list[str], str]:
        """Large tasks, small tasks, and the rule that was used, in a sentence."""
        if any(n >= self.large_rows for n in rows.values()):
            large = [t for t, n in rows.items() if n >= self.large_rows]
            small = [t for t, n in rows.items() if n < self.small_rows]
            return large, small, (
                f"Large tasks have at least {self.large_rows:,} training rows, small ones fewer than "
                f"{self.small_rows:,}."
            )  # fmt: skip
        limit = self.relative * min(rows.values())
        large = [t for t, n in rows.items() if n >= limit]
        small = [t for t, n in rows.items() if n < limit]
        return large, small, (
            f"No target has {self.large_rows:,} training rows, so large means at least "
            f"{self.relative:g} times the rows of the smallest target ({limit:,.0f} rows), and small "
            "all others."
        )  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A profile's records, sorted for the tests. records: method -> target -> runs."""

    config: Config
    records: dict[str, dict[str, list[Record]]]
    reference: pd.DataFrame
    protocol: str
    sizes: Sizes
    large: list[str]
    small: list[str]
    size_rule: str
    differences: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        records: Iterable[Record],
        sizes: Sizes,
        reference: pd.DataFrame,
        protocol: str | None = None,
    ) -> "Study":
        sorted_: dict[str, dict[str, list[Record]]] = {}
        rows = {}
        for record in records:
            task = record["task"]
            if task in config.targets:
                sorted_.setdefault(record["method"], {}).setdefault(task, []).append(record)
                rows[task] = record["data"]["rows"]["train"]
        rows = {task: rows[task] for task in config.targets if task in rows}
        split = sizes.split(rows) if rows else ([], [], "There are no runs.")
        return cls(config, sorted_, reference, protocol or protocols(config)[0], sizes, *split)

    def tasks(self, *methods: str) -> list[str]:
        """The targets on which all these methods were run, in the study's order."""
        return [
            t for t in self.config.targets if all(t in self.records.get(m, {}) for m in methods)
        ]

    def choose(self, methods: Iterable[str], over: str, tasks: tuple[str, ...]) -> list[str]:
        """The targets that a test is about.

        Raises:
            NotTested: there are none, or a named one was not run.
        """
        run = self.tasks(*methods)
        if tasks:
            if missing := [t for t in tasks if t not in run]:
                raise NotTested(f"no runs on {', '.join(missing)}")
            return list(tasks)
        chosen = run if over == "targets" else [t for t in run if t in getattr(self, over)]
        if not chosen:
            what = "target" if over == "targets" else f"{over} target"
            raise NotTested(f"no {what} has runs. {self.size_rule}".rstrip("."))
        return chosen

    def difference(self, a: str, b: str, task: str) -> np.ndarray:
        """a right minus b right: [seeds, rows]; several claims ask for the same one."""
        key = (a, b, task)
        if key not in self.differences:
            self.differences[key] = difference(self.config, a, b, task, self.protocol)
        return self.differences[key]

    def seeds(self, method: str, tasks: Iterable[str]) -> str:
        """How many runs a task has, in words."""
        counts = {len(self.records[method][t]) for t in tasks}
        low, high = min(counts), max(counts)
        text = str(low) if low == high else f"{low} to {high}"
        return f"{text} seed{'' if high == 1 else 's'} a task"

    def of_methods(self, methods: Iterable[str], tasks: Iterable[str]) -> list[Record]:
        return [r for m in methods for t in tasks for r in self.records[m][t]]

    def files(self, methods: Iterable[str], tasks: Iterable[str]) -> list[str]:
        """The run.json of each of these runs, relative to the root; a joint run's only once."""
        paths = Paths(self.config.profile)
        found = []
        for record in self.of_methods(methods, tasks):
            method = record["method"]
            folder = method if method in TITLES else f"controls/{method}"
            task = "joint" if "joint" in record else record["task"]
            found.append(paths.relative(paths.run(folder, task, record["seed"]) / "run.json"))
        return list(dict.fromkeys(found))

    def in_table(self, a: str, b: str) -> pd.Series | None:
        """a minus b for each task of the paper's Table 1, or None if it lacks a method."""
        cells = wide(self.reference, 1)
        return cells[a] - cells[b] if {a, b} <= set(cells) else None

    def paper_tasks(self, over: str) -> list[str]:
        """The paper's tasks, or its large or small ones, by the sizes of their sources."""
        rows = train_rows()
        large, small, _ = self.sizes.split(rows)
        return {"targets": list(rows), "large": large, "small": small}[over]


class Kind:
    """What all kinds of test have: the methods and tasks they name, and the paper's number if there is one."""

    def methods_named(self) -> tuple[str, ...]:
        names = ("a", "b", "method", "head")
        single = tuple(getattr(self, n) for n in names if hasattr(self, n))
        return single + tuple(getattr(self, "methods", ()))

    def tasks_named(self) -> tuple[str, ...]:
        return tuple(t for n in ("tasks", "without", "listed") for t in getattr(self, n, ()))

    def in_paper(self, study: Study) -> str:
        return ""

    def judge(self, study: Study, tolerance: float) -> Outcome:
        raise NotImplementedError
