"""The kinds of test that compare accuracy: a difference of two methods, and where it is larger.

Differences are points of accuracy, paired by seed and dev row (`runs.difference`), with their
bootstrap intervals. `in_paper` gives what the paper's Table 1 has for the same question.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from adapterfusion.evidence import VERDICTS, Kind, NotTested, Outcome, Over, Study, as_json
from adapterfusion.stats import LEVEL, Interval, bootstrap

Expect = Literal["above", "below", "on_par", "no_loss"]


@dataclass(frozen=True)
class Region:
    """Where a claim says that a difference lies. closed: its limits are part of it."""

    low: float
    high: float
    closed: bool
    words: str


def region(expect: Expect, t: float) -> Region:
    """The region of a claim with tolerance t. A gain of nothing is no gain; no loss may be nothing."""
    return {
        "above": Region(t, np.inf, False, f"above {t:g}"),
        "below": Region(-np.inf, -t, False, f"below {-t:g}"),
        "on_par": Region(-t, t, True, f"within {t:g} of zero"),
        "no_loss": Region(-t, np.inf, True, f"at least {-t:g}"),
    }[expect]


def decide(interval: Interval, where: Region) -> str:
    """A verdict: the whole interval inside the region, wholly outside, or neither."""
    if where.closed:
        inside = where.low <= interval.low and interval.high <= where.high
    else:
        inside = where.low < interval.low and interval.high < where.high
    if inside:
        return "reproduced"
    if interval.high < where.low or interval.low > where.high:
        return "contradicted"
    return "not distinguishable"


def widened(interval: Interval, tasks: int) -> Interval:
    """The interval at Bonferroni's level for so many tasks, stretched as a normal one would be."""
    alpha = 1 - LEVEL
    factor = scipy_stats.norm.ppf(1 - alpha / (2 * tasks)) / scipy_stats.norm.ppf(1 - alpha / 2)
    mean = interval.mean
    return Interval(
        mean, mean - factor * (mean - interval.low), mean + factor * (interval.high - mean)
    )


@dataclass(frozen=True)
class Difference(Kind):
    """a minus b, on the mean over some targets or on each of them, in the region `expect`."""

    a: str
    b: str
    expect: Expect
    over: Over = "targets"
    tasks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    each: bool = False

    def in_paper(self, study: Study) -> str:
        d = study.in_table(self.a, self.b)
        if d is None:
            return ""
        d = d[list(self.tasks) or study.paper_tasks(self.over)].drop(list(self.without))
        if self.each and len(d) < 5:
            return ", ".join(f"{task} {value:+.2f}" for task, value in d.items())
        if self.each:
            return f"{d.min():+.2f} to {d.max():+.2f} on {len(d)} tasks"
        return f"{d.mean():+.2f} on {len(d)} tasks"

    def judge(self, study: Study, tolerance: float) -> Outcome:
        methods = (self.a, self.b)
        tasks = study.choose(methods, self.over, self.tasks)
        tasks = [t for t in tasks if t not in self.without]
        if not tasks:
            raise NotTested("no target is left")
        where = region(self.expect, tolerance)
        differences = {t: study.difference(self.a, self.b, t) for t in tasks}
        runs, seeds = study.files(methods, tasks), study.seeds(self.a, tasks)
        if not self.each:
            interval = bootstrap(list(differences.values()))
            evidence = (
                f"{interval} points on the mean of {len(tasks)} targets ({', '.join(tasks)}; {seeds}); "
                f"asked: {where.words}."
            )
            verdict = decide(interval, where)
            return Outcome(verdict, evidence, str(interval), as_json(interval), runs)
        intervals = {t: bootstrap([d]) for t, d in differences.items()}
        verdicts = {t: decide(i, where) for t, i in intervals.items()}
        wide_verdicts = [decide(widened(i, len(tasks)), where) for i in intervals.values()]
        verdict = "not distinguishable"
        if all(v == "reproduced" for v in verdicts.values()):
            verdict = "reproduced"
        elif "contradicted" in wide_verdicts:
            verdict = "contradicted"
        # the task that is hardest on the claim comes first
        sign = -1 if self.expect == "below" else 1
        order = sorted(tasks, key=lambda t: sign * intervals[t].mean)
        if self.expect == "on_par":
            order = sorted(tasks, key=lambda t: -abs(intervals[t].mean))
        counts = [list(verdicts.values()).count(v) for v in VERDICTS[:3]]
        evidence = (
            f"Inside on {counts[0]}, outside on {counts[1]}, open on {counts[2]} of {len(tasks)} "
            f"targets ({seeds}); asked of each: {where.words}. "
            + "; ".join(f"{t} {intervals[t]}" for t in order)
            + "."
        )
        worst = order[0]
        return Outcome(
            verdict,
            evidence,
            f"{worst} {intervals[worst]}, hardest of {len(tasks)}",
            as_json(intervals[worst], task=worst),
            runs,
        )


@dataclass(frozen=True)
class Contrast(Kind):
    """(a minus b on small targets) minus (a minus b on large ones) is above the tolerance."""

    a: str
    b: str

    def in_paper(self, study: Study) -> str:
        d = study.in_table(self.a, self.b)
        if d is None:
            return ""
        small, large = (d[study.paper_tasks(over)].mean() for over in ("small", "large"))
        return f"{small:+.2f} on small, {large:+.2f} on large tasks"

    def judge(self, study: Study, tolerance: float) -> Outcome:
        methods = (self.a, self.b)
        small, large = (study.choose(methods, over, ()) for over in ("small", "large"))
        n = len(small) + len(large)
        # `bootstrap` takes a mean over all: weights make it the difference of two groups' means
        weights = {t: n / len(small) for t in small} | {t: -n / len(large) for t in large}
        parts = {t: study.difference(self.a, self.b, t) for t in weights}
        interval = bootstrap([weights[t] * d for t, d in parts.items()])
        means = [bootstrap([parts[t] for t in group]) for group in (small, large)]
        where = region("above", tolerance)
        evidence = (
            f"{means[0]} points on small targets ({', '.join(small)}), {means[1]} on large ones "
            f"({', '.join(large)}): {interval} more on small; asked: {where.words}."
        )
        verdict = decide(interval, where)
        runs = study.files(methods, [*small, *large])
        return Outcome(verdict, evidence, str(interval), as_json(interval), runs)
