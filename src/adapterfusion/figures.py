"""Figures as functions of run records. Each returns a matplotlib figure; `save` writes it twice.

A method keeps its colour, marker and hatch throughout. Colours are Okabe and Ito's (and a wine red),
told apart by colour-blind readers; markers and hatches tell methods apart in grey print too. Bytes
are deterministic, and the numbers behind a figure lie beside it. `study_figures` has more of them.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adapterfusion.config import Config
from adapterfusion.methods import METHODS
from adapterfusion.paths import atomic_write
from adapterfusion.plans import tasks_of
from adapterfusion.tables import aggregate, curves, protocols, scores

COLOURS = {
    "head": "#BBBBBB",
    "full": "#000000",
    "st_adapter": "#0072B2",
    "st_adapter_houlsby": "#56B4E9",
    "multitask_full": "#882255",
    "mt_adapter": "#E69F00",
    "sequential": "#009E73",
    "fusion_st": "#D55E00",
    "fusion_mt": "#CC79A7",
}
MARKERS = dict(zip(COLOURS, ["P", "X", "s", "D", "<", "v", "^", "o", "*"], strict=True))
HATCHES = dict(zip(COLOURS, ["..", "xx", "", "//", "--", "\\\\", "oo", "", "||"], strict=True))
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.grid": False,
    "legend.frameon": False,
    "svg.hashsalt": "adapterfusion",
}
matplotlib.rcParams.update(STYLE)


def save(figure: Figure, data: pd.DataFrame, folder: Path, name: str) -> None:
    """Write <name>.png and the numbers behind it, <name>.csv."""
    with atomic_write(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    with atomic_write(folder / f"{name}.csv") as temporary:
        temporary.write_text(data.round(6).to_csv(index=False), encoding="utf-8")


def legend(figure: Figure, looks: dict[str, dict[str, str]], ncols: int, **line: Any) -> None:
    """One legend above all panels, outside the data. looks: label -> colour and marker."""
    handles = [Line2D([], [], label=label, **({"ls": ""} | line | v)) for label, v in looks.items()]
    figure.legend(handles=handles, ncols=min(ncols, len(handles)), loc="outside upper center")


def _tasks(records: list[dict[str, Any]]) -> list[str]:
    """The records' tasks in study order. Figures name tasks by identifier, which is short."""
    return list(dict.fromkeys(r["task"] for r in records))


def learning_curves(records: list[dict[str, Any]]) -> tuple[Figure, pd.DataFrame]:
    """Dev accuracy (line) and training loss (dotted) after each epoch, one panel for each task.

    Each seed is a line of its own; a ring marks the epoch that was kept; several methods get a legend.
    """
    tasks = _tasks(records)
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 2.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=False):
        loss_axis = axis.twinx()
        loss_axis.spines["right"].set_visible(True)
        for record in (r for r in records if r["task"] == task):
            epochs = np.arange(1, len(record["epochs"]) + 1)
            dev = np.array([100 * e["dev"]["accuracy"] for e in record["epochs"]])
            loss = [e["train_loss"] for e in record["epochs"]]
            colour = COLOURS[record["method"]]
            axis.plot(epochs, dev, color=colour, alpha=0.8, lw=1.2, marker=".", ms=3)
            kept = next(iter(record["metrics"].values()))["epoch"]
            axis.plot(kept, dev[kept - 1], "o", mfc="none", mec=colour, ms=7)
            loss_axis.plot(epochs, np.array(loss, dtype=float), ":", color=colour, alpha=0.6, lw=1)
        axis.set_title(task)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=5))
        axis.set_xlabel("epoch")
        axis.set_ylabel("dev accuracy, %")
        loss_axis.set_ylabel("training loss (dotted)")
        loss_axis.set_ylim(bottom=0)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    methods = list(dict.fromkeys(r["method"] for r in records))
    if len(methods) > 1:
        legend(figure, {METHODS[m].title: {"color": COLOURS[m]} for m in methods}, 2, ls="-")
    return figure, curves(records)


def relative_to_full(config: Config, records: list[dict[str, Any]]) -> tuple[Figure, pd.DataFrame]:
    """The paper's Figure 3: each method's accuracy minus full fine-tuning's, per target.

    Bars are means over seeds, dots single seeds against the mean of full fine-tuning.
    """
    protocol = protocols(config)[0]
    frame = aggregate(scores(records)).query("metric == 'accuracy' and protocol == @protocol")
    full = frame[frame["method"] == "full"].set_index("task")["mean"]
    targets = tasks_of(config, "fusion_st")
    methods = [m for m in METHODS if m not in ("full", "head") and m in set(frame["method"])]
    rows = -(-len(targets) // 8)  # more in a row, and a page shrinks it beyond reading
    in_row = -(-len(targets) // rows)
    wide = max(6.5, 1.2 + (0.35 + 0.13 * len(methods)) * in_row)
    figure, axes = plt.subplots(
        rows,
        figsize=(wide, 0.6 + 2.8 * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    width = 0.84 / len(methods)
    data = []
    for i, method in enumerate(methods):
        part = frame[frame["method"] == method].set_index("task")
        ran = [(x, task) for x, task in enumerate(targets) if task in part.index]
        for n, (x, task) in enumerate(ran):
            axis = axes[x // in_row, 0]
            centre = x % in_row + (i - (len(methods) - 1) / 2) * width
            delta = part.loc[task, "mean"] - full[task]
            seeds = np.array(part.loc[task, "scores"]) - full[task]
            look = {"color": COLOURS[method], "hatch": HATCHES[method], "edgecolor": "white"}
            label = METHODS[method].title if n == 0 else None
            axis.bar(centre, delta, width * 0.92, label=label, lw=0, **look)
            axis.plot(np.full(len(seeds), centre), seeds, ".", color="black", ms=3)
            data.append((method, task, protocol, delta))
    for row, axis in enumerate(axes[:, 0]):
        names = targets[row * in_row : (row + 1) * in_row]
        axis.axhline(0, color="black", lw=0.8)
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axis.set_xlim(-0.6, in_row - 0.4)
        axis.set_ylabel("points above full fine-tuning")
    figure.legend(ncols=min(4, len(methods)), loc="outside upper center")
    return figure, pd.DataFrame(data, columns=["method", "task", "protocol", "difference"])


def attention_maps(
    records: list[dict[str, Any]], layers: list[int] | None = None
) -> tuple[Figure, pd.DataFrame]:
    """The paper's Figures 4 and 6: where each target's fusion looks, layer by layer.

    Rows are targets, columns adapters; a cell is the mean attention over dev tokens (padding left
    out) and seeds. 0 is black and 1 white, as in the paper. layers: counted from 1; None: all.
    """
    targets = _tasks(records)
    adapters = records[0]["attention"]["adapters"]
    mean = {
        t: np.mean([r["attention"]["layers"] for r in records if r["task"] == t], axis=0)
        for t in targets
    }
    depth = len(next(iter(mean.values())))
    layers = layers or list(range(1, depth + 1))
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(0.9 + (0.33 * len(adapters) + 0.5) * columns, (0.3 * len(targets) + 0.9) * rows),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    data = []
    for axis, layer in zip(axes.flat, layers, strict=False):
        matrix = np.array([mean[t][layer - 1] for t in targets])
        image = axis.imshow(matrix, cmap="gray", vmin=0, vmax=1, aspect="auto")
        for i, target in enumerate(targets):
            for j, adapter in enumerate(adapters):
                data.append((layer, target, adapter, matrix[i, j]))
                if target == adapter:  # the target's own adapter
                    box = plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="#D55E00", lw=1.2)
                    axis.add_patch(box)
        axis.set_title(f"layer {layer}")
        axis.set_xticks(range(len(adapters)), adapters, rotation=90)
        axis.set_yticks(range(len(targets)), targets)
        axis.tick_params(labelbottom=layer > layers[-1] - columns, length=0)
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.6, label="mean attention")
    return figure, pd.DataFrame(data, columns=["layer", "target", "adapter", "attention"])


def attention_by_layer(records: list[dict[str, Any]]) -> tuple[Figure, pd.DataFrame]:
    """One target's attention: layers in rows, adapters in columns, mean over its seeds."""
    adapters, task = records[0]["attention"]["adapters"], records[0]["task"]
    matrix = np.mean([r["attention"]["layers"] for r in records], axis=0)
    figure, axis = plt.subplots(
        figsize=(1.6 + 0.5 * len(adapters), 1.2 + 0.28 * len(matrix)), layout="constrained"
    )
    image = axis.imshow(matrix, cmap="gray", vmin=0, vmax=1, aspect="auto")
    if task in adapters:
        own = adapters.index(task)
        axis.add_patch(
            plt.Rectangle((own - 0.5, -0.5), 1, len(matrix), fill=False, ec="#D55E00", lw=1.5)
        )
    axis.set_xticks(range(len(adapters)), adapters, rotation=45, ha="right")
    axis.set_yticks(range(len(matrix)), [f"layer {i + 1}" for i in range(len(matrix))])
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, label="mean attention")
    data = [
        (layer + 1, task, adapter, matrix[layer, j])
        for layer in range(len(matrix))
        for j, adapter in enumerate(adapters)
    ]
    return figure, pd.DataFrame(data, columns=["layer", "target", "adapter", "attention"])


def overlap_map(overlap: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Per cent of each target's dev rows (rows) of which some text stands in a source's train (columns).

    Colour is the square root of the share, so that a small overlap is seen too.
    """
    shares = 100 * overlap.pivot(index="target", columns="source", values="text_share")
    order = list(dict.fromkeys(overlap["target"]))
    columns = list(dict.fromkeys(overlap["source"]))
    matrix = shares.loc[order, columns].to_numpy()
    figure, axis = plt.subplots(
        figsize=(1.4 + 0.48 * len(columns), 1.0 + 0.3 * len(order)), layout="constrained"
    )
    axis.imshow(np.sqrt(matrix), cmap="Blues", vmin=0, vmax=10, aspect="auto")
    for i, j in np.argwhere(matrix > 0):
        colour = "white" if matrix[i, j] > 45 else "black"
        text = f"{matrix[i, j]:.0f}" if matrix[i, j] >= 1 else "<1"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(order)), order)
    axis.tick_params(length=0)
    axis.set_xlabel("training set")
    axis.set_ylabel("dev set")
    return figure, overlap
