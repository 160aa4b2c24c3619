"""The paper's own numbers (data/reference), and ours beside them where the two can be compared.

Source: Pfeiffer et al., EACL 2021, Tables 1, 3 and 4. `audit.py` checks their arithmetic.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapterfusion.catalogue import PAPER
from adapterfusion.comparisons import differences
from adapterfusion.config import Config
from adapterfusion.paths import find_root
from adapterfusion.stats import bootstrap
from adapterfusion.tables import aggregate, by_task, data_notes, scores

FOLDER = Path("data") / "reference"
COLUMNS = ["table", "backbone", "task", "method", "mean", "std", "transcriptions", "note"]
TITLES = {
    "head": "Head only",
    "full": "Full fine-tuning",
    "st_adapter": "ST-A",
    "st_adapter_r2": "ST-A, reduction 2",
    "st_adapter_r16": "ST-A, reduction 16",
    "st_adapter_r64": "ST-A, reduction 64",
    "mt_adapter": "MT-A",
    "fusion_st": "Fusion w/ ST-A",
    "fusion_mt": "Fusion w/ MT-A",
    "st_adapter_houlsby": "ST-A Houlsby",
}
# The three small tasks on which fusion gains most in the paper.
LARGEST_GAINS = ("mrpc", "rte", "cb")


class PaperError(ValueError):
    """A file of data/reference that cannot be used. The message names file, place and remedy."""


def load(root: Path | None = None) -> pd.DataFrame:
    """Tables 1, 3 and 4 in long form, one row per printed cell (data/reference/README.md).

    Raises:
        PaperError: the file's columns, tasks or methods are not those known here.
    """
    path = (root or find_root()) / FOLDER / "paper_tables.csv"
    frame = pd.read_csv(path, keep_default_na=False, na_values={"std": [""]})
    name = f"{FOLDER.as_posix()}/{path.name}"
    if list(frame.columns) != COLUMNS:
        raise PaperError(f"{name}: columns must be {', '.join(COLUMNS)}. Correct the header.")
    for column, known in (("task", [*PAPER, "mean"]), ("method", TITLES)):
        unknown = sorted(set(frame[column]) - set(known))
        if unknown:
            raise PaperError(
                f"{name}: unknown {column} {', '.join(unknown)}. Known: {', '.join(known)}."
            )
    if frame.duplicated(["table", "task", "method"]).any():
        raise PaperError(f"{name}: a cell stands there twice. Keep one.")
    return frame


def wide(reference: pd.DataFrame, table: int, column: str = "mean") -> pd.DataFrame:
    """One table as printed: tasks in rows, methods in columns, without the row of means.

    column: mean, or std.
    """
    part = reference[(reference["table"] == table) & (reference["task"] != "mean")]
    frame = part.pivot(index="task", columns="method", values=column)
    return frame.loc[part["task"].unique(), part["method"].unique()]


def printed_means(reference: pd.DataFrame, table: int) -> pd.Series:
    """The row of means as printed, by method."""
    part = reference[(reference["table"] == table) & (reference["task"] == "mean")]
    return part.set_index("method")["mean"]


def train_rows(tasks: Iterable[str] = tuple(PAPER)) -> dict[str, int]:
    """Training rows of the paper's tasks, as their sources have them (the paper prints none)."""
    return {task: PAPER[task].hub.rows["train"] for task in tasks}


def _cell(table: pd.DataFrame, config: Config, method: str, task: str) -> pd.Series | None:
    """The printed cell that a method of this study corresponds to, if there is one.

    table: the cells of one backbone. Reduction and architecture decide: Table 1 and fusion have 16.
    """
    reduction = config.adapter.reduction
    adapters = method not in ("head", "full")
    if adapters and method != "st_adapter" and reduction != 16:
        return None
    if method == "st_adapter" and config.adapter.architecture != "pfeiffer":
        return None
    names = [method]
    if method == "st_adapter":
        names = [f"st_adapter_r{reduction}"] + (["st_adapter"] if reduction == 16 else [])
    found = table[(table["task"] == task) & table["method"].isin(names)]
    # ST-A with reduction 16 stands in Tables 1 and 3 with the same numbers
    return found.iloc[0] if len(found) else None


def _verdict(difference: float, *spreads: float) -> str:
    """alike, higher or lower, by twice the spread of a difference of two single runs."""
    known = [s for s in spreads if not pd.isna(s)]
    if not known:
        return "no spread known"
    if abs(difference) <= 2 * float(np.sqrt(np.sum(np.square(known)))):
        return "alike"
    return "higher" if difference > 0 else "lower"


def comparison(
    config: Config, records: list[dict[str, Any]], reference: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, str]:
    """The paper's cells beside ours, where task, split, size, backbone and adapter correspond.

    Both report the best dev epoch (protocol "paper"). The paper's spread is over a number of runs
    that it does not state, so the verdict compares with the spread of single runs, not of means.

    Returns:
        a table task, method, paper, ours, Δ, seeds, verdict (empty where nothing corresponds), and
        the sentences to read with it.
    """
    reference = load() if reference is None else reference
    backbone = config.backbone.name.rstrip("/").split("/")[-1]
    cells = reference[(reference["backbone"] == backbone) & (reference["task"] != "mean")]
    first = by_task(records)
    notes = {task: data_notes(record) for task, record in first.items() if task in PAPER}
    columns = ["task", "method", "paper", "ours", "Δ", "seeds", "verdict"]
    nothing = pd.DataFrame(columns=columns).set_index("task")
    if cells.empty:
        known = ", ".join(sorted(set(reference["backbone"])))
        return nothing, (
            f"Nothing here corresponds to the paper's tables: they are about {known}, and this "
            f"profile's backbone is {config.backbone.name}."
        )
    if all(notes.values()):
        what = "; ".join(f"{task}: {', '.join(n)}" for task, n in notes.items())
        return nothing, (
            "Nothing here corresponds to the paper's tables: the backbone does, but no task of the "
            "paper was run on its official split with all rows"
            + (f" ({what})." if what else ": none of this profile's tasks is the paper's.")
        )
    ours = aggregate(scores(records)).query("metric == 'accuracy' and protocol == 'paper'")
    rows = []
    for row in ours.to_dict("records"):
        task, method = row["task"], row["method"]
        if notes.get(task, ["not a task of the paper"]):
            continue
        cell = _cell(cells, config, method, task)
        if cell is None:
            continue
        delta = row["mean"] - cell["mean"]
        rows.append(
            {
                "task": first[task]["data"]["title"],
                "method": TITLES[method],
                "paper": _spread(cell["mean"], cell["std"]),
                "ours": _spread(row["mean"], row["std"]),
                "Δ": f"{delta:+.2f}",
                "seeds": row["n_seeds"],
                "verdict": _verdict(delta, row["std"], cell["std"]),
            }
        )
    if not rows:
        return nothing, (
            "Nothing here corresponds to the paper's tables: backbone and data do, but no method's "
            f"adapters have the paper's architecture and reduction (here {config.adapter.reduction})."
        )
    text = (
        "Accuracy in %, the epoch chosen and reported on dev by both; ± is the sample standard "
        "deviation over runs, and the paper does not say over how many. alike: the difference is at "
        "most twice the spread that two single runs' difference has, by the spreads that are known."
    )
    if config.data.validation:
        text += f" Here {100 * config.data.validation:.0f} % of each training set are held out."
    left_out = [f"{task} ({', '.join(n)})" for task, n in notes.items() if n]
    if left_out:
        text += f" Left out, because their data differ: {'; '.join(left_out)}."
    if "sick" in notes and not notes["sick"]:
        text += (
            " SICK: the paper's cells fit the 500 dev rows of the original trial set, ours has "
            f"{first['sick']['data']['rows']['dev']}."
        )
    return pd.DataFrame(rows, columns=columns).set_index("task"), text


def gains_elsewhere(config: Config, root: Path | None = None) -> pd.DataFrame:
    """What fusion gains over ST-A on each of the paper's tasks: in the paper, in reruns, and here.

    Other backbones, other adapters to fuse: to be read beside each other, not as equals. Ours with its
    95 % bootstrap interval.
    """
    printed = wide(load(root), 1)
    columns = {"paper, BERT-base, 16 fused": printed["fusion_st"] - printed["st_adapter"]}
    reruns = pd.read_csv((root or find_root()) / FOLDER / "reruns.csv").set_index("task")
    for (study, fused), part in reruns.groupby(["study", "fused"], sort=False):
        columns[f"{study}, RoBERTa-base, {fused} fused"] = part["fusion_st"] - part["st_adapter"]
    table = pd.DataFrame(columns).reindex(printed.index)
    table = table.map(lambda x: "" if pd.isna(x) else f"{x:+.2f}")
    ours = differences(config, "fusion_st", "st_adapter")
    if set(ours) & set(table.index):
        backbone = config.backbone.name.rstrip("/").split("/")[-1]
        table[f"here, {backbone}, {len(config.sources)} fused"] = [
            str(bootstrap([ours[task]])) if task in ours else "" for task in table.index
        ]
    return table


def _spread(mean: float, std: float) -> str:
    return f"{mean:.2f}" + ("" if pd.isna(std) else f" ± {std:.2f}")
