"""The paper's arithmetic, recomputed from its own tables: what adds up, and what a result rests on.

Everything here is a function of data/reference; no run is needed. Sentences are generated, so that no
recomputed number is typed.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from adapterfusion import figures
from adapterfusion.catalogue import PAPER
from adapterfusion.paper import (
    FOLDER,
    LARGEST_GAINS,
    TITLES,
    PaperError,
    printed_means,
    train_rows,
    wide,
)
from adapterfusion.paths import find_root

THRESHOLD = 0.3  # points that count as a gain or a loss in the paper's Table 2
PROSE_COLUMNS = ["id", "statement", "measure", "a", "b", "over", "printed"]
# The comparisons of Table 2, and the baselines that the text compares with.
PAIRS = (
    ("fusion_st", "st_adapter"),
    ("fusion_st", "mt_adapter"),
    ("fusion_mt", "st_adapter"),
    ("fusion_mt", "mt_adapter"),
    ("fusion_st", "full"),
    ("fusion_mt", "full"),
    ("st_adapter", "full"),
    ("mt_adapter", "full"),
)


def same_printed(printed: str, value: float) -> bool:
    """Whether `value` gives the printed number, rounded or cut off at the printed decimals."""
    scale = 10 ** len(printed.partition(".")[2])
    target, exact = round(float(printed) * scale), round(value * scale, 6)
    return target in (math.floor(exact + 0.5), math.trunc(exact))


def means(reference: pd.DataFrame) -> pd.DataFrame:
    """Each printed mean against the mean over all its tasks, and over all but Argument."""
    rows = []
    for table in sorted(reference["table"].unique()):
        cells, printed = wide(reference, table), printed_means(reference, table)
        for method in cells.columns:
            column = cells[method]
            others = column.drop("argument")
            row = {"table": table, "method": method, "printed": printed[method]}
            row |= {"all": column.mean(), "without_argument": others.mean()}
            text = f"{printed[method]:.2f}"
            row["all_agrees"] = same_printed(text, column.mean())
            row["without_argument_agrees"] = same_printed(text, others.mean())
            rows.append(row)
    return pd.DataFrame(rows)


def arrows(
    reference: pd.DataFrame, table: int = 1, pairs: Iterable[tuple[str, str]] = PAIRS
) -> pd.DataFrame:
    """The paper's Table 2: on how many tasks a is better, the same or worse than b by THRESHOLD.

    Returns:
        columns a, b, improved, same, worse, worse_on (comma-separated), mean (of the differences).
    """
    cells = wide(reference, table)
    rows = []
    for a, b in pairs:
        d = (cells[a] - cells[b]).round(2)
        worse = d.index[d < -THRESHOLD]
        row = {"a": a, "b": b, "improved": int((d > THRESHOLD).sum())}
        row |= {"same": int((d.abs() <= THRESHOLD).sum()), "worse": len(worse)}
        rows.append(row | {"worse_on": ", ".join(worse), "mean": float(d.mean())})
    return pd.DataFrame(rows)


def _measured(cells: pd.DataFrame, measure: str, a: str, b: str, over: str) -> str | float:
    d = (cells[a] - cells[b]).round(2)
    if measure == "difference":
        return float(d.mean() if over == "mean" else d[over])
    if measure == "behind_by_two":
        return ", ".join(sorted(d.index[d < -2]))
    return int((d > THRESHOLD).sum() if measure == "improved" else (d >= -THRESHOLD).sum())


def prose(reference: pd.DataFrame, root: Path | None = None) -> pd.DataFrame:
    """What the paper's text says beside what its Table 1 says.

    Returns:
        columns id, statement, printed, recomputed (as text), agrees.

    Raises:
        PaperError: data/reference/paper_prose.csv has other columns, or an unknown measure.
    """
    path = (root or find_root()) / FOLDER / "paper_prose.csv"
    where = f"{FOLDER.as_posix()}/{path.name}"
    frame = pd.read_csv(path, dtype=str)
    if list(frame.columns) != PROSE_COLUMNS:
        raise PaperError(
            f"{where}: columns must be {', '.join(PROSE_COLUMNS)}. Correct the header."
        )
    known = ("difference", "improved", "not_worse", "behind_by_two")
    cells = wide(reference, 1)
    rows = []
    for row in frame.to_dict("records"):
        if row["measure"] not in known:
            raise PaperError(
                f"{where}: {row['id']}: unknown measure {row['measure']!r}. "
                f"Choose one of {', '.join(known)}."
            )
        value = _measured(cells, row["measure"], row["a"], row["b"], row["over"])
        printed, shown = row["printed"].replace(" ", ", "), str(value)
        if isinstance(value, float):
            shown, agrees = f"{value:.3f}", same_printed(printed, value)
        elif row["measure"] == "behind_by_two":  # naming some of the tasks is not wrong
            agrees = set(printed.split(", ")) <= set(shown.split(", "))
        else:
            agrees = shown == printed
        rows.append(
            {"id": row["id"], "statement": row["statement"], "printed": printed}
            | {"recomputed": shown, "agrees": agrees}
        )
    return pd.DataFrame(rows)


def rests_on(
    reference: pd.DataFrame,
    table: int = 1,
    groups: Sequence[Sequence[str]] = ((), ("mrpc",), ("rte", "cb"), LARGEST_GAINS),
) -> pd.DataFrame:
    """Each method's mean with and without some tasks; one row per group that is left out."""
    cells = wide(reference, table)
    rows = {", ".join(group) or "none": cells.drop(list(group)).mean() for group in groups}
    frame = pd.DataFrame(rows).T.rename_axis("left out")
    base = "st_adapter" if "st_adapter" in frame else "st_adapter_r16"
    frame.insert(0, "tasks", [len(cells) - len(group) for group in groups])
    frame["gain"] = frame["fusion_st"] - frame[base]
    return frame


def welch(
    reference: pd.DataFrame, a: str = "fusion_st", b: str = "st_adapter", runs: int = 5
) -> pd.DataFrame:
    """Welch's t of a against b for each task of Table 1 that prints both spreads, largest first.

    runs: how many runs stand behind each cell; the paper does not say.
    """
    mean, std = wide(reference, 1), wide(reference, 1, "std")
    rows = []
    for task in mean.index:
        s, u = std.loc[task, a] ** 2 / runs, std.loc[task, b] ** 2 / runs
        difference = mean.loc[task, a] - mean.loc[task, b]
        if not s + u > 0:  # no spread printed
            continue
        df = (s + u) ** 2 * (runs - 1) / (s**2 + u**2)
        t = difference / math.sqrt(s + u)
        p = 2 * scipy_stats.t.sf(abs(t), df)
        rows.append({"task": task, "difference": difference, "t": t, "df": df, "p": p})
    return pd.DataFrame(rows).sort_values("t", ascending=False).set_index("task")


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of this module or of `forensics` for people: titles, two decimals, yes and no."""

    def shown(value: object, column: str) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if isinstance(value, float):
            if column == "p":
                return f"{value:.3f}" if value >= 0.001 else "< 0.001"
            return f"{value:.2f}"
        return words(str(value))

    def words(text: str) -> str:
        """Identifiers, one or several, as titles."""
        known = TITLES | {name: task.title for name, task in PAPER.items()}
        return ", ".join(known.get(part, part) for part in text.split(", "))

    columns = {c: [shown(v, c) for v in frame[c]] for c in frame.columns}
    numbered = isinstance(frame.index, pd.RangeIndex)
    index = frame.index if numbered else [words(i) for i in frame.index]
    table = pd.DataFrame(columns, index=pd.Index(index, name=frame.index.name))
    return table.rename(columns=lambda c: TITLES.get(c, c.replace("_", " ")))


def markdown(frame: pd.DataFrame) -> str:
    """`readable` as a markdown table, with nothing cut short."""
    numbered = isinstance(frame.index, pd.RangeIndex)
    return readable(frame).to_markdown(index=not numbered, disable_numparse=True)


def _count(number: int, of: int) -> str:
    return "all" if number == of else "none" if not number else str(number)


def means_text(table: pd.DataFrame) -> str:
    """Which printed means are means of which tasks; table: from `means`."""
    lines = []
    for number, part in table.groupby("table"):
        n = len(part)
        everything = _count(part["all_agrees"].sum(), n)
        others = _count(part["without_argument_agrees"].sum(), n)
        lines.append(
            f"- **Table {number}**, {n} printed means: {everything} can be the mean of all its tasks, "
            f"{others} the mean of all but Argument."
        )
    return "\n".join(lines)


def prose_text(table: pd.DataFrame) -> str:
    """How many of the text's numbers follow from the table; table: from `prose`."""
    wrong = table[~table["agrees"]]
    return (
        f"{len(table) - len(wrong)} of {len(table)} numbers in the text follow from Table 1, rounded or "
        f"cut off; {len(wrong)} do not."
    )


def rests_on_text(reference: pd.DataFrame) -> str:
    """The headline with and without the three tasks that gain most, for both backbones."""
    lines = []
    for number, backbone in ((1, "BERT"), (4, "RoBERTa")):
        table = rests_on(reference, number)
        whole, rest = table.loc["none"], table.loc[", ".join(LARGEST_GAINS)]
        share = 1 - rest["gain"] * rest["tasks"] / (whole["gain"] * whole["tasks"])
        lines.append(
            f"- **{backbone}** (Table {number}): fusion of ST-A gains {whole['gain']:+.2f} points on "
            f"the mean of {whole['tasks']:.0f} tasks, and {rest['gain']:+.2f} on the "
            f"{rest['tasks']:.0f} that remain without MRPC, RTE and CB. These three carry "
            f"{100 * share:.0f} % of the sum of all differences."
        )
    return "\n".join(lines)


def _titles(tasks: list[str]) -> str:
    return ", ".join(PAPER[task].title for task in tasks) or "none"


def welch_text(table: pd.DataFrame, runs: int = 5) -> str:
    """On how many tasks the difference stands out, once for each task and corrected for their number."""
    level = 0.05
    strong = table[table["p"] * len(table) < level]  # Bonferroni
    weak = table[table["p"] < level]
    up = strong.index[strong["difference"] > 0].tolist()
    down = strong.index[strong["difference"] < 0].tolist()
    return (
        f"If {runs} runs stand behind every cell, {len(weak)} of {len(table)} differences have p < {level} "
        f"taken alone, and {len(strong)} after Bonferroni's correction for {len(table)} tasks: better on "
        f"{_titles(up)}, worse on {_titles(down)}."
    )


def gains(reference: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """What fusion adds to ST-A on each task, tasks in order of their training rows, both backbones.

    Whiskers are the spread of a difference of two single runs, where both spreads are printed. Lines
    are the means with (solid) and without (dashed) the three tasks that gain most, drawn in orange.
    """
    rows = train_rows()
    order = sorted(rows, key=rows.get, reverse=True)
    plt.rcParams.update(figures.STYLE)
    figure, axes = plt.subplots(2, 1, figsize=(7.0, 4.6), sharex=True, layout="constrained")
    data = []
    panels = (
        (1, "st_adapter", "BERT-base, Table 1"),
        (4, "st_adapter_r16", "RoBERTa-base, Table 4"),
    )
    for axis, (number, base, title) in zip(axes, panels, strict=True):
        mean, std = (wide(reference, number, c).loc[order] for c in ("mean", "std"))
        difference = mean["fusion_st"] - mean[base]
        spread = (std["fusion_st"] ** 2 + std[base] ** 2) ** 0.5
        for x, task in enumerate(order):
            colour = "#D55E00" if task in LARGEST_GAINS else "#0072B2"
            axis.bar(x, difference[task], width=0.7, color=colour)
            axis.errorbar(x, difference[task], spread[task], color="black", lw=0.9, capsize=2)
            data.append((number, task, rows[task], difference[task], spread[task]))
        rest = difference.drop(list(LARGEST_GAINS))
        axis.axhline(0, color="black", lw=0.8)
        axis.axhline(difference.mean(), color="#555555", lw=1)
        axis.axhline(rest.mean(), color="#555555", lw=1, ls="--")
        axis.set_title(
            f"{title}: mean {difference.mean():+.2f} (solid), without MRPC, RTE and CB "
            f"{rest.mean():+.2f} (dashed)"
        )
        axis.set_ylabel("points above ST-A")
    labels = [f"{PAPER[t].title}  {rows[t]:,}" for t in order]
    axes[-1].set_xticks(range(len(order)), labels, rotation=40, ha="right")
    return figure, pd.DataFrame(
        data, columns=["table", "task", "train_rows", "difference", "spread"]
    )
