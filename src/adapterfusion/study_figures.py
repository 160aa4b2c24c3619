"""The study's figures: costs, ranks, controls, small data, forgetting, faithfulness, pruning.

As in `figures`, each function returns a figure and exactly the numbers it draws. Frames come from
records, `stats` and `comparisons`; points of accuracy are per cent, and a line is a mean over seeds.
"""

from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from adapterfusion.comparisons import title
from adapterfusion.config import Config
from adapterfusion.figures import COLOURS, MARKERS, legend
from adapterfusion.methods import METHODS
from adapterfusion.plans import tasks_of
from adapterfusion.tables import protocols, scores

CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#666666"]
SHAPES = ["o", "s", "^", "D", "v", "P", "X", "*"]


def _in_order(names: Iterable[str]) -> list[str]:
    """Methods in study order; what is no method behind them, as met."""
    names = list(dict.fromkeys(names))
    return [m for m in METHODS if m in names] + [n for n in names if n not in METHODS]


def _look(name: str, index: int = 0) -> dict[str, str]:
    """A method's own colour and marker; anything else takes the next of the cycle."""
    cycled = {"color": CYCLE[index % len(CYCLE)], "marker": SHAPES[index % len(SHAPES)]}
    return {"color": COLOURS[name], "marker": MARKERS[name]} if name in COLOURS else cycled


def _panels(n: int, width: float, height: float, top: float) -> tuple[Figure, list[Axes]]:
    """n panels in rows of three at most; `top` inches are kept for a legend."""
    columns = 2 if n == 4 else min(3, n)  # four: none alone in its row
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(4.2, width * columns), height * rows + top),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[n:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:n])


def cost(
    config: Config, records: list[dict[str, Any]], protocol: str | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Accuracy against parameters trained and stored for a target, training time and inference time.

    One point a method: the mean over seeds, then over the targets that all methods shown have. Costs
    are those of the target's own run, and its share of a joint one; adapters and models it starts
    from are not counted again. Inference is timed where a run evaluates itself after an epoch, so the
    head alone, which is evaluated on remembered features, has none, nor has a joint run, which is
    evaluated on the rows of all its tasks, long ones and those with many choices among them.
    """
    protocol = protocol or protocols(config)[0]
    targets = tasks_of(config, "fusion_st")
    axes_of = {
        "trained": "trained parameters",
        "stored": "parameters stored for a target",
        "seconds": "training time of a target, s",
        "inference": "inference time of a row, ms",
    }

    def inference(r: dict[str, Any]) -> float:
        rows = sum(n for split, n in r["data"]["rows"].items() if split != "train")
        per_epoch = np.mean([epoch["evaluation_seconds"] for epoch in r["epochs"]])
        untold = r["method"] == "head" or "joint" in r
        return float("nan") if untold else 1000 * per_epoch / rows

    costs = pd.DataFrame(
        {
            "method": [r["method"] for r in records],
            "task": [r["task"] for r in records],
            "trained": [r["parameters"]["trainable"] for r in records],
            "stored": [r["parameters"]["stored"] for r in records],
            "seconds": [r["seconds"]["train"] for r in records],
            "inference": [inference(r) for r in records],
        }
    )
    shared_by = pd.Series([len(r.get("joint", [r["task"]])) for r in records])
    of_a_joint_run = ["stored", "seconds"]
    costs[of_a_joint_run] = costs[of_a_joint_run].div(shared_by, axis=0)
    accuracy = scores(records).query("metric == 'accuracy' and protocol == @protocol")
    means = costs.groupby(["method", "task"]).mean()
    means["accuracy"] = accuracy.groupby(["method", "task"])["score"].mean()
    methods = _in_order(costs["method"])
    shared = [t for t in targets if all((m, t) in means.index for m in methods)]
    table = pd.DataFrame(
        [{"method": m} | means.loc[[(m, t) for t in shared]].mean().to_dict() for m in methods]
    )
    table["targets"] = len(shared)
    figure, panels = _panels(4, 2.7, 2.6, 0.6)
    for axis, (column, label) in zip(panels, axes_of.items(), strict=True):
        for row in table.to_dict("records"):
            look = _look(row["method"])
            axis.plot(row[column], row["accuracy"], ls="", ms=8, mec="black", mew=0.5, **look)
        axis.set_xscale("log")
        spread = table[column].max() / table[column].min()
        if spread < 30:  # too narrow to label decades only
            few = matplotlib.ticker.MaxNLocator(4)
            fine = few if spread < 4 else matplotlib.ticker.LogLocator(subs=(1, 2, 5))
            axis.xaxis.set_major_locator(fine)
            axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.margins(0.12)
        axis.set_xlabel(label)
        axis.grid(color="#E5E5E5", lw=0.6)
        axis.set_axisbelow(True)
    for axis in panels[::2]:
        axis.set_ylabel(f"mean of {len(shared)} targets, %")
    legend(figure, {title(m): _look(m) for m in methods}, 3, mec="black", mew=0.5, ms=7)
    return figure, table


def rank_plot(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Average rank of methods over tasks with its interval; frame: what `stats.ranks` returns."""
    figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.28 * len(frame)), layout="constrained")
    for y, row in enumerate(frame.to_dict("records")):
        look = _look(row["method"], y)
        axis.plot([row["low"], row["high"]], [y, y], color=look["color"], lw=2)
        axis.plot(row["rank"], y, ls="", ms=7, mec="black", mew=0.5, **look)
    axis.set_yticks(range(len(frame)), [title(m) for m in frame["method"]])
    axis.set_ylim(len(frame) - 0.5, -0.5)
    axis.set_xlim(0.8, len(frame) + 0.2)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    tasks = int(frame["tasks"].iloc[0])
    axis.set_xlabel(f"average rank over {tasks} task{'s' * (tasks > 1)} (1 is best)")
    axis.grid(axis="x", color="#E5E5E5", lw=0.6)
    axis.set_axisbelow(True)
    return figure, frame


def ablations(frame: pd.DataFrame, base: str = "fusion_st") -> tuple[Figure, pd.DataFrame]:
    """Each control minus fusion: the mean with its 95 % interval, and above it every target as a dot.

    frame: columns control, task ("mean" and the targets), difference, low, high, as
    `comparisons.against` returns them.
    """
    controls = list(dict.fromkeys(frame["control"]))
    figure, axis = plt.subplots(figsize=(6.2, 1.1 + 0.34 * len(controls)), layout="constrained")
    for y, control in enumerate(controls):
        part = frame[frame["control"] == control]
        mean, tasks = part[part["task"] == "mean"].iloc[0], part[part["task"] != "mean"]
        above = [y - 0.25] * len(tasks)  # where the interval does not hide it
        axis.plot(tasks["difference"], above, "o", mfc="none", mec="#777777", ms=4)
        axis.plot([mean["low"], mean["high"]], [y, y], color="#D55E00", lw=2.5)
        axis.plot(mean["difference"], y, "s", color="#D55E00", mec="black", mew=0.5, ms=6)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(controls)), [title(c) for c in controls])
    axis.set_ylim(len(controls) - 0.5, -0.7)
    axis.set_xlabel(f"points of accuracy above {title(base)}")
    axis.grid(axis="x", color="#E5E5E5", lw=0.6)
    axis.set_axisbelow(True)
    mean_look = {"color": "#D55E00", "marker": "s", "ls": "-", "lw": 2.5, "mec": "black"}
    dot_look = {"color": "#777777", "marker": "o", "mfc": "none"}
    legend(figure, {"mean and 95 % interval": mean_look, "a target": dot_look}, 2)
    return figure, frame


def low_resource(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Accuracy as a target's training set shrinks: a line is the mean over seeds, a dot one seed.

    frame: columns method, task, rows, seed, score.
    """
    tasks, methods = list(dict.fromkeys(frame["task"])), _in_order(frame["method"])
    figure, panels = _panels(len(tasks), 2.6, 2.2, 0.5)
    for axis, task in zip(panels, tasks, strict=True):
        for i, method in enumerate(methods):
            part = frame[(frame["task"] == task) & (frame["method"] == method)]
            look, mean = _look(method, i), part.groupby("rows")["score"].mean()
            axis.plot(mean.index, mean, lw=1.5, ms=5, **look)
            axis.plot(part["rows"], part["score"], ".", color=look["color"], alpha=0.5, ms=4)
        sizes = sorted(frame.loc[frame["task"] == task, "rows"].unique())
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_title(task)
        axis.set_xlabel("training rows")
        axis.set_ylabel("dev accuracy, %")
    legend(figure, {title(m): _look(m, i) for i, m in enumerate(methods)}, 4, ls="-")
    return figure, frame


def forgetting(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A source's accuracy before (ring) and after (filled) a target was learnt with each method.

    What leaves the source's weights alone keeps ring and filled marker in one place. Markers are
    means over seeds, dots single seeds. frame: columns source, target, method, seed, before, after.
    """
    pairs = list(frame[["source", "target"]].drop_duplicates().itertuples(index=False, name=None))
    methods = _in_order(frame["method"])
    step = 0.7 / max(1, len(methods))
    figure, axis = plt.subplots(
        figsize=(6.2, 1.1 + (0.25 + 0.16 * len(methods)) * len(pairs)), layout="constrained"
    )
    for y, (source, target) in enumerate(pairs):
        here = frame[(frame["source"] == source) & (frame["target"] == target)]
        for i, method in enumerate(methods):
            part = here[here["method"] == method]
            if part.empty:
                continue
            look = _look(method, i)
            at = y + (i - (len(methods) - 1) / 2) * step
            before, after = part["before"].mean(), part["after"].mean()
            axis.plot([before, after], [at, at], color=look["color"], lw=1.5)
            axis.plot(part["after"], [at] * len(part), ".", color="#777777", ms=4)
            axis.plot(before, at, ls="", ms=8, mfc="white", mec=look["color"], marker="o", mew=1.2)
            axis.plot(after, at, ls="", ms=5.5, zorder=3, **look)
        if y:
            axis.axhline(y - 0.5, color="#E5E5E5", lw=0.6)
    axis.set_yticks(range(len(pairs)), [f"{s} → {t}" for s, t in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("dev accuracy on the source, %")
    ring = {"color": "#555555", "marker": "o", "mfc": "white", "ms": 8}
    looks = {"before": ring} | {f"after: {title(m)}": _look(m, i) for i, m in enumerate(methods)}
    legend(figure, looks, 3)
    return figure, frame


def _rho(part: pd.DataFrame) -> str:
    """Spearman's rank correlation; there is none where one side does not vary."""
    if len(part) < 3 or part["mass"].nunique() < 2 or part["loss_change"].nunique() < 2:
        return "ρ not defined"
    return f"ρ = {scipy_stats.spearmanr(part['mass'], part['loss_change']).statistic:+.2f}"


def faithfulness(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Does attention say what matters? Change of loss without adapter n, against its attention.

    A panel a target, with Spearman's ρ over its points; diamonds are the target's own adapter.
    The title names the adapter whose removal raises the loss most, on average. frame: columns target, adapter, seed, mass, loss_change
    and perhaps layer, which then gives the colour.
    """
    targets = list(dict.fromkeys(frame["target"]))
    layers = sorted(frame["layer"].unique()) if "layer" in frame else []
    figure, panels = _panels(len(targets), 2.6, 2.4, 0.4)
    shades = {"cmap": "viridis", "vmin": min(layers), "vmax": max(layers)} if layers else {}
    for axis, target in zip(panels, targets, strict=True):
        part = frame[frame["target"] == target]
        axis.axhline(0, color="#999999", lw=0.8)
        own = part["adapter"] == target
        for rows, marker, size in ((part[~own], "o", 18), (part[own], "D", 30)):
            colour = {"c": rows["layer"]} if layers else {"color": COLOURS["st_adapter"]}
            if not layers and marker == "D":
                colour = {"color": COLOURS["fusion_st"]}
            points = {"marker": marker, "s": size, "alpha": 0.8, "lw": 0.4, "edgecolors": "black"}
            axis.scatter(rows["mass"], rows["loss_change"], **points, **colour, **shades)
        means = part.groupby("adapter", sort=False)[["mass", "loss_change"]].mean()
        most = means["loss_change"].idxmax()
        axis.margins(0.1)
        axis.set_title(f"{target}: {_rho(part)}\ncostliest to lose: {most}")
        axis.set_xlabel("attention on the adapter")
        axis.set_ylabel("change of loss without it")
    if layers:
        mappable = matplotlib.cm.ScalarMappable(
            matplotlib.colors.Normalize(min(layers), max(layers)), "viridis"
        )
        figure.colorbar(mappable, ax=panels, label="layer", shrink=0.7, ticks=layers)
    looks = {
        "another adapter": {"color": COLOURS["st_adapter"], "marker": "o"},
        "the target's own": {"color": COLOURS["fusion_st"], "marker": "D"},
    }
    if layers:
        looks = {k: v | {"color": "#777777"} for k, v in looks.items()}
    legend(figure, looks, 2, mec="black", mew=0.4)
    return figure, frame


def pruning(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Accuracy and inference time when only the k most attended adapters of each layer are kept.

    A thin line is a target (mean over seeds), the thick one the mean over targets. frame: columns
    target, seed, k, accuracy (per cent), seconds.
    """
    targets = list(dict.fromkeys(frame["target"]))
    figure, panels = _panels(2, 3.2, 2.6, 0.5)
    by_target = frame.groupby(["target", "k"])[["accuracy", "seconds"]].mean()
    labels = {"accuracy": "dev accuracy, %", "seconds": "time over the dev set, s"}
    for axis, (column, label) in zip(panels, labels.items(), strict=True):
        for i, target in enumerate(targets):
            line = by_target.loc[target, column]
            axis.plot(line.index, line, lw=1, ms=4, alpha=0.9, **_look(target, i))
        if len(targets) > 1:
            mean = by_target[column].groupby("k").mean()
            axis.plot(mean.index, mean, color="black", lw=2.5)
        axis.set_xticks(sorted(frame["k"].unique()))
        axis.set_xlabel("adapters kept in each layer")
        axis.set_ylabel(label)
    panels[1].set_ylim(bottom=0)
    looks = {t: _look(t, i) for i, t in enumerate(targets)}
    if len(targets) > 1:
        looks["mean"] = {"color": "black", "marker": "", "lw": 2.5}
    legend(figure, looks, 5, ls="-")
    return figure, frame
