"""How many runs stand behind a printed mean and spread? Whole numbers of right answers can tell.

With n dev rows and k runs a mean is a multiple of 100 / (n k), and only some spreads go with it. On a
small dev set an arbitrary pair of printed numbers hardly ever fits, so pairs that do fit say what k is.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from adapterfusion.audit import same_printed
from adapterfusion.catalogue import PAPER
from adapterfusion.paper import TITLES

# Dev sets small enough for their counts to show, by number of rows. SICK: the original trial set has
# 500, the hub's copy 495.
DEV_ROWS = (("cb", 56), ("rte", 277), ("mrpc", 408), ("sick", 500), ("sick", 495))
JOINT = ("mt_adapter", "fusion_mt")  # from runs that train all tasks at once


@lru_cache
def _reachable(runs: int, top: int) -> list[int]:
    """Which sums of squares up to `top` do integers d_1 .. d_runs with sum r have, for r < runs?

    Returns:
        for each r a bit set: bit q is set where sum d_i^2 = q can be had with sum d_i = r.
    """
    width, mask = math.isqrt(top), (1 << (top + 1)) - 1
    sets = {0: 1}
    for _ in range(runs):
        step: dict[int, int] = {}
        for total, bits in sets.items():
            for d in range(-width, width + 1):
                if shifted := (bits << d * d) & mask:
                    step[total + d] = step.get(total + d, 0) | shifted
        sets = step
    return [sets.get(r, 0) for r in range(runs)]


def fits(mean: float, std: float, rows: int, runs: int) -> bool:
    """Can `runs` whole numbers of right answers out of `rows` give this printed mean and spread?

    A printed number may be rounded or cut off: the true one lies in [x - 0.005, x + 0.01]. The
    spread is the sample standard deviation. With counts c_i = base + d_i and sum d_i = r < runs,
    (runs - 1) * variance = sum d_i^2 - r^2 / runs, so only the sums of squares need a search.
    """
    below, above, unit = 0.005, 0.01, rows / 100  # unit: right answers per point
    first = math.ceil((mean - below) * runs * unit - 1e-6)
    last = math.floor((mean + above) * runs * unit + 1e-6)
    spread = [max(0.0, std - below) * unit, (std + above) * unit]
    for total in range(first, last + 1):
        r = total % runs
        low, high = ((runs - 1) * s * s + r * r / runs for s in spread)
        low, high = math.ceil(low - 1e-6), math.floor(high + 1e-6)
        # sizes in powers of four, so that few tables serve all cells
        bits = _reachable(runs, 4 ** math.ceil(math.log(max(high, 1024), 4)))[r]
        if high >= low and bits >> low & ((1 << (high - low + 1)) - 1):
            return True
    return False


@lru_cache
def chance(rows: int, runs: int, draws: int = 10000) -> float:
    """How often an arbitrary cell fits: mean in 60 to 95, spread in 0.1 to 5, both to 0.01."""
    rng = np.random.default_rng(0)
    cells = zip(
        rng.uniform(60, 95, draws).round(2), rng.uniform(0.1, 5, draws).round(2), strict=True
    )
    return float(np.mean([fits(mean, std, rows, runs) for mean, std in cells]))


def run_counts(reference: pd.DataFrame, runs: Sequence[int] = (2, 3, 4, 5)) -> pd.DataFrame:
    """For each small dev set: how many printed cells can come from so many runs, and by chance.

    Cells of MT-A and its fusion are left out: one joint run evaluates all its tasks, and its cells on
    CB fit no number of runs. So are cells with a spread of zero, which say nothing.

    Returns:
        columns task, rows, backbone, runs, fit, cells, chance, unfit (methods that do not fit).
    """
    part = reference[reference["std"].gt(0) & ~reference["method"].isin(JOINT)]
    # Table 3 repeats Table 1's ST-A
    part = part[~((part["table"] == 3) & (part["method"] == "st_adapter_r16"))]
    rows = []
    for task, n in DEV_ROWS:
        for backbone, cells in part[part["task"] == task].groupby("backbone", sort=False):
            for k in runs:
                good = [fits(m, s, n, k) for m, s in zip(cells["mean"], cells["std"], strict=True)]
                unfit = [m for m, g in zip(cells["method"], good, strict=True) if not g]
                row = {"task": task, "rows": n, "backbone": backbone, "runs": k, "fit": sum(good)}
                row |= {"cells": len(cells), "chance": chance(n, k), "unfit": ", ".join(unfit)}
                rows.append(row)
    return pd.DataFrame(rows)


def steps_of_two_runs(
    reference: pd.DataFrame, task: str = "imdb", step: float = 0.1
) -> dict[str, int]:
    """Cells whose spread is j * step / sqrt(2), as two runs known to `step` have it: method -> j."""
    part = reference[(reference["task"] == task) & (reference["backbone"] == "bert-base-uncased")]
    found = {}
    for method, std in zip(part["method"], part["std"], strict=True):
        j = round(std * math.sqrt(2) / step)
        if same_printed(f"{std:.2f}", j * step / math.sqrt(2)):
            found[method] = j
    return found


def run_counts_text(counts: pd.DataFrame) -> str:
    """For each dev set: the number of runs that most cells fit, and what chance would give."""
    lines = []
    for (task, rows), part in counts.groupby(["task", "rows"], sort=False):
        total = part.groupby("runs").agg(fit=("fit", "sum"), cells=("cells", "sum"))
        chances = part.groupby("runs")["chance"].first()
        surprise = total["fit"] - total["cells"] * chances
        best = int(surprise.idxmax())
        text = (
            f"{total.loc[best, 'fit']} of {total.loc[best, 'cells']} cells fit {best} runs; by chance "
            f"{total.loc[best, 'cells'] * chances[best]:.1f} would"
        )
        if surprise[best] < 1:
            text = "no number of runs fits noticeably more cells than chance would"
        lines.append(f"- **{PAPER[task].title}**, {rows} dev rows: {text}.")
    return "\n".join(lines)


def steps_text(steps: dict[str, int], task: str = "imdb", step: float = 0.1) -> str:
    """The finding of `steps_of_two_runs`; Table 3 repeats ST-A, so it counts once."""
    spreads = sorted({j * step / math.sqrt(2) for j in steps.values()})
    return (
        f"Of {PAPER[task].title}'s spreads with BERT-base, {len(spreads)} are whole multiples of "
        f"{step:g}/√2 points ({', '.join(f'{s:.3f}' for s in spreads)}): what two runs give whose "
        f"accuracies are known to {step:g}."
    )


def joint_text(
    reference: pd.DataFrame, task: str = "cb", runs: Sequence[int] = (2, 3, 4, 5)
) -> str:
    """Whether the cells of MT-A and its fusion on the smallest dev set fit any number of runs."""
    part = reference[(reference["task"] == task) & reference["method"].isin(JOINT)]
    rows = dict(DEV_ROWS)[task]
    found = [
        f"{TITLES[method]}: {', '.join(str(k) for k in runs if fits(mean, std, rows, k)) or 'none'}"
        for method, mean, std in zip(part["method"], part["mean"], part["std"], strict=True)
    ]
    return (
        f"Numbers of runs that fit {PAPER[task].title}'s cells of a joint run: {'; '.join(found)}."
    )


def run_counts_figure(counts: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of the printed cells that fit (bars) and that would by chance (diamonds), by runs."""
    groups = list(counts.groupby(["task", "rows"], sort=False))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.7 * len(groups), 2.3), sharey=True, layout="constrained"
    )
    data = []
    for axis, ((task, rows), part) in zip(axes, groups, strict=True):
        total = part.groupby("runs").agg(fit=("fit", "sum"), cells=("cells", "sum"))
        share = total["fit"] / total["cells"]
        chances = part.groupby("runs")["chance"].first()
        axis.bar(share.index, share, width=0.7, color="#0072B2", label="fit")
        axis.plot(chances.index, chances, "D", color="#D55E00", ms=4, label="by chance")
        axis.set_title(f"{PAPER[task].title}, {rows} rows")
        axis.set_xticks(list(share.index))
        axis.set_xlabel("runs")
        axis.set_ylim(0, 1.05)
        data += [(task, rows, k, share[k], chances[k]) for k in share.index]
    axes[0].set_ylabel("share of printed cells")
    axes[0].legend(loc="upper left", fontsize=8)
    return figure, pd.DataFrame(data, columns=["task", "rows", "runs", "share", "chance"])
