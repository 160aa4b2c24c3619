"""How sure a difference is: within a task (seeds and dev rows), and over tasks.

A difference is an array [seeds, rows]: for each seed and dev row, whether method A was right minus
whether method B was right (1, 0 or -1). Pairing by seed and row takes out what both share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**20  # row counts held at a time: 8 MiB, however large the dev set


@dataclass(frozen=True)
class Interval:
    """A mean difference in points, with its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """higher, lower, or not distinguishable (the interval holds zero)."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not distinguishable"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def _resampled_means(difference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of RESAMPLES draws of seeds and rows, with replacement: [RESAMPLES]"""
    seeds, rows = difference.shape
    difference = difference.astype(float)
    by_seed = np.empty((RESAMPLES, seeds))
    # counts instead of indices: a mean of resampled rows is a product with how often each was drawn
    step = max(1, CHUNK // rows)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=size)
        by_seed[start : start + size] = counts @ difference.T / rows
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return (seed_weights * by_seed).sum(axis=1)


def bootstrap(differences: list[np.ndarray]) -> Interval:
    """The mean over tasks of the mean difference, resampled within each task (stratified).

    With a single task this is that task's interval. Tasks themselves are not resampled: the
    interval speaks of these tasks, not of others. Two or three seeds show less spread than there
    is, so where seeds matter the interval is too narrow; `paired_p` is the stricter judge.
    """
    rng = np.random.default_rng(0)
    draws = np.mean([_resampled_means(d, rng) for d in differences], axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = np.mean([d.mean() for d in differences])
    return Interval(100 * float(mean), 100 * float(low), 100 * float(high))


def paired_p(difference: np.ndarray) -> float:
    """Two-sided p-value of a mean difference of zero on one task; difference: [seeds, rows].

    A t-test for two crossed random factors (Clark 1973): d_sr = mu + a_s + b_r + e_sr, so the error
    of the mean holds the spread of seeds as well as that of rows, with Satterthwaite's degrees of
    freedom. A permutation of rows would take the seeds as given and, where seeds matter, call luck
    a difference; with three seeds this test keeps its level (`tests/test_stats.py`).

    With one seed there is no spread of seeds to see: the p-value is then that of a t-test over rows,
    and speaks of these two trained models, not of the methods. With a single value it is 1.
    """
    seeds, rows = difference.shape
    mean = float(difference.mean())
    of_seed = difference.mean(axis=1, keepdims=True) - mean
    of_row = difference.mean(axis=0, keepdims=True) - mean
    rest = difference - mean - of_seed - of_row
    freedom = {"seed": seeds - 1, "row": rows - 1, "rest": (seeds - 1) * (rows - 1)}
    squares = {
        "seed": rows * float((of_seed**2).sum()),
        "row": seeds * float((of_row**2).sum()),
        "rest": float((rest**2).sum()),
    }
    square = {k: squares[k] / n for k, n in freedom.items() if n}
    if not square:
        return 1.0
    if len(square) == 3:  # no negative variance of seeds or rows
        square["seed"] = max(square["seed"], square["rest"])
        square["row"] = max(square["row"], square["rest"])
    total = square.get("seed", 0) + square.get("row", 0) - square.get("rest", 0)
    if total < 1e-12:  # the same difference everywhere
        return 1.0 if abs(mean) < 1e-12 else 0.0
    degrees = total**2 / sum(v**2 / freedom[k] for k, v in square.items())
    t = mean / math.sqrt(total / (seeds * rows))
    return float(2 * scipy_stats.t.sf(abs(t), degrees))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment: p-values to hold against one level for the whole family.

    The smallest of m is multiplied by m, the next by m - 1, ..., none falls below one before it.
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


@dataclass(frozen=True)
class Wilcoxon:
    """Wilcoxon's signed-rank test over tasks.

    tasks: those that differ; equal ones say nothing and are left out, as Wilcoxon has it.
    smallest: the p-value if all of them pointed the same way: 2 / 2**tasks.
    """

    p: float
    tasks: int
    smallest: float

    @property
    def too_few(self) -> bool:
        """With five tasks or fewer, no outcome whatever reaches the level."""
        return self.smallest > 1 - LEVEL

    def __str__(self) -> str:
        text = f"p = {self.p:.3f} over {self.tasks} tasks"
        return text + (", too few to reach 0.05" if self.too_few else "")


def wilcoxon(differences: Sequence[float]) -> Wilcoxon:
    """Do tasks, each counted once, lean one way? differences: one mean difference for each task.

    Exact for up to 13 tasks, and up to 50 without ties; scipy's normal approximation beyond.
    """
    values = np.round(np.asarray(differences, dtype=float), 9)  # so that equal differences tie
    values = values[values != 0]
    smallest = min(1.0, 2.0 ** (1 - len(values)))
    p = float(scipy_stats.wilcoxon(values, method="auto").pvalue) if len(values) else 1.0
    return Wilcoxon(p, len(values), smallest)


@dataclass(frozen=True)
class SeedSpread:
    """Accuracy over seeds in points, and two scales to see it on.

    std: sample standard deviation over seeds (nan for one seed).
    binomial_error: standard error that a dev set of this size leaves even where no seed matters.
    """

    mean: float
    std: float
    seeds: int
    binomial_error: float

    def __str__(self) -> str:
        spread = "" if self.seeds < 2 else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (dev set: ± {self.binomial_error:.2f})"


def seed_spread(accuracies: Sequence[float], rows: int) -> SeedSpread:
    """The two levels of chance in an accuracy: accuracies in points, one a seed, on `rows` dev rows."""
    values = np.asarray(accuracies, dtype=float)
    share = values.mean() / 100
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    error = 100 * math.sqrt(share * (1 - share) / rows)
    return SeedSpread(float(values.mean()), std, len(values), error)


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """Average rank of each method over tasks; 1 is best, ties share their ranks.

    Args:
        frame: columns method, task, score; several rows of a method and task (seeds) are averaged.
            Tasks that some method lacks are left out.

    Returns:
        columns method, rank, low, high, tasks, best first. The intervals resample tasks: they speak
        of other tasks of this kind, and stay wide where tasks are few.
    """
    scores = frame.groupby(["task", "method"], sort=False)["score"].mean().unstack().dropna()
    by_task = scores.round(9).rank(axis=1, ascending=False)  # [tasks, methods]
    n = len(by_task)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    draws = counts @ by_task.to_numpy() / n  # [RESAMPLES, methods]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame(
        {
            "method": by_task.columns,
            "rank": by_task.mean().to_numpy(),
            "low": low,
            "high": high,
            "tasks": n,
        }
    )
    return table.sort_values("rank", kind="stable", ignore_index=True)
