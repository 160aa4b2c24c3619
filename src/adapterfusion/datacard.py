"""What a study's data are, from the prepared files alone: sizes, balance, lengths, and examples.

Text is shown of the bundled suite only: what other people wrote stays out of notebooks and reports.
"""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from adapterfusion.batches import load_split
from adapterfusion.config import Config
from adapterfusion.paths import Paths


def infos(config: Config) -> dict[str, dict[str, Any]]:
    """task -> info.json of every task that is there, in study order.

    Raises:
        FileNotFoundError: a task was not prepared.
    """
    folder = Paths(config.profile).prepared
    read = {t: json.loads((folder / t / "info.json").read_text("utf-8")) for t in config.tasks}
    return {task: info for task, info in read.items() if "absent" not in info}


def _labels(config: Config, task: str, split: str) -> np.ndarray:
    path = Paths(config.profile).prepared / task / f"{split}.parquet"
    return pq.read_table(path, columns=["label"]).column("label").to_numpy()


def overview(config: Config) -> pd.DataFrame:
    """One row per task: what it asks, how many rows it has of how many, and where they come from."""
    rows = []
    for task, info in infos(config).items():
        official = info["official_rows"]
        sizes = info["rows"]
        kind = f"{info['choices']} choices" if info["choices"] else f"{len(info['labels'])} classes"
        rows.append(
            {
                "task": task,
                "title": info["title"],
                "group": info["group"],
                "kind": kind,
                "train": sizes["train"],
                "held out": sizes.get("validation", 0),
                "dev": sizes["dev"],
                "official train / dev": " / ".join(f"{official[s]:,}" for s in official),
                "official split": "yes" if all(info["official_split"].values()) else "no",
                "metrics": ", ".join(info["metrics"]),
                "licence": info["licence"],
            }
        )
    return pd.DataFrame(rows).set_index("task")


def balance(config: Config) -> pd.DataFrame:
    """The share of each label (or right choice), train / dev in per cent, and the majority's score."""
    rows = []
    for task, info in infos(config).items():
        n = info["choices"] or len(info["labels"])
        train, dev = (
            np.bincount(_labels(config, task, split), minlength=n) for split in ("train", "dev")
        )
        row: dict[str, Any] = {"task": task}
        for i in range(n):
            row[f"label {i}"] = (
                f"{100 * train[i] / train.sum():.0f} / {100 * dev[i] / dev.sum():.0f}"
            )
        row["majority on dev, %"] = f"{100 * dev[train.argmax()] / dev.sum():.1f}"
        rows.append(row)
    table = pd.DataFrame(rows).set_index("task").fillna("")
    return table[sorted(table, key=lambda name: not name.startswith("label"))]


def lengths(config: Config) -> tuple[Figure, pd.DataFrame]:
    """Word pieces per sequence in train: quartiles, whiskers to the 1st and 99th percentile.

    The mark is the maximum length; the number beside it is the share of rows that it cuts.
    """
    entries = infos(config)
    folder = Paths(config.profile).prepared
    figure, axis = plt.subplots(figsize=(6.5, 0.6 + 0.32 * len(entries)), layout="constrained")
    data = []
    for y, (task, info) in enumerate(entries.items()):
        split = load_split(folder / task / "train.parquet")
        every = np.array([len(sequence) for row in split.input_ids for sequence in row])
        low, q1, median, q3, high = np.percentile(every, [1, 25, 50, 75, 99])
        axis.plot([low, high], [y, y], color="black", lw=1)
        axis.barh(y, q3 - q1, left=q1, height=0.55, color="#0072B2", alpha=0.85)
        axis.plot([median, median], [y - 0.27, y + 0.27], color="white", lw=1.5)
        axis.plot(info["max_length"], y, "|", color="#D55E00", ms=12, mew=2)
        cut = 100 * info["truncated"]["train"]
        axis.annotate(f" {cut:.0f} %", (info["max_length"], y), va="center", fontsize=7)
        data.append((task, low, q1, median, q3, high, info["max_length"], cut))
    axis.set_yticks(range(len(entries)), list(entries))
    axis.invert_yaxis()
    axis.set_xlabel("word pieces per sequence")
    columns = ["task", "p1", "p25", "median", "p75", "p99", "max_length", "truncated_percent"]
    return figure, pd.DataFrame(data, columns=columns)


def examples(config: Config) -> str:
    """The first training row of each task as markdown; for the bundled suite only."""
    if config.data.source != "bundled":
        return "Examples are shown for the bundled suite only; this study's text belongs to others."
    lines = []
    for task, info in infos(config).items():
        table = pq.read_table(Paths(config.profile).prepared / task / "train.parquet").slice(0, 1)
        row = table.to_pylist()[0]
        label = row["label"]
        answer = f"choice {label + 1}" if info["choices"] else info["labels"][label]
        first = row["first"][0]
        second = "".join(f"<br>→ {text}" for text in row["second"])
        lines.append(f"| `{task}` | {first}{second} | {answer} |")
    return "\n".join(["| task | row | answer |", "|---|---|---|", *lines])
