"""What a reader is told of runs beside their scores: facts, seeds, costs, and how they deviate."""

import json
from typing import Any

import pandas as pd

from adapterfusion.catalogue import PAPER
from adapterfusion.config import Config
from adapterfusion.methods import METHODS, method
from adapterfusion.paths import Paths
from adapterfusion.plans import absent
from adapterfusion.runs import each_run
from adapterfusion.tables import METRICS, by_task, data_notes, noted


def run_facts(records: list[dict[str, Any]]) -> str:
    """Data, parameters and the proof of freezing, in a markdown paragraph or two."""
    first = by_task(records)
    lines = []
    if len(first) == 1:
        (r,) = first.values()
        rows = r["data"]["rows"]
        line = (
            f"**{r['data']['title']}**: {rows['train']:,} training rows, {rows['dev']:,} dev rows."
        )
        if data_notes(r):
            line += f" Mind: {', '.join(data_notes(r))}."
        lines.append(line)
    else:
        lines.append(f"{len(first)} tasks.")
        if marked := noted(records):
            lines[0] += f" Mind: {marked}."
    for name in dict.fromkeys(r["method"] for r in records):
        mine = [r for r in records if r["method"] == name]
        counts = mine[0]["parameters"]
        share = 100 * counts["trainable"] / (counts["trainable"] + counts["frozen"])
        line = f"{METHODS[name].title} trains {counts['trainable']:,} parameters, {share:.2f} % of the model"
        if "joint" in mine[0]:
            line += f", for {len(mine[0]['joint'])} tasks at once"
        if counts["frozen"]:
            moved = [r for r in mine if r["frozen_sha256"]["before"] != r["frozen_sha256"]["after"]]
            same = "**not** all identical" if moved else "bit-identical"
            line += f"; the {counts['frozen']:,} frozen ones are {same} before and after training"
        lines.append(line + ".")
    return "\n\n".join(lines)


def seed_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run: what each protocol chose and scored. Methods and tasks are named if several."""
    several = {key: len({r[key] for r in records}) > 1 for key in ("method", "task")}
    rows = []
    for r in records:
        row: dict[str, Any] = {}
        if several["method"]:
            row["method"] = METHODS[r["method"]].title
        if several["task"]:
            row["task"] = r["task"]
        row |= {"seed": r["seed"], "status": r["status"], "epochs": len(r["epochs"])}
        for protocol, values in r["metrics"].items():
            name = protocol.replace("_", "-")
            row[f"epoch ({name})"] = values["epoch"]
            for metric in r["data"]["metrics"]:
                row[f"{METRICS[metric]} ({name})"] = f"{100 * values[metric]:.2f}"
        rows.append(row)
    keys = [key for key, more in several.items() if more]
    return pd.DataFrame(rows).fillna("").set_index([*keys, "seed"])


def cost_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """What each method costs per run: trained parameters, time, memory, share of padding.

    A joint run is one run, however many tasks it serves. Memory is the peak of the process so far;
    it trained other runs before, so this is an upper bound.
    """
    rows = [
        {
            "method": METHODS[r["method"]].title,
            "tasks per run": len(r.get("joint", [0])),
            "trained parameters": r["parameters"]["trainable"],
            "epochs": len(r["epochs"]),
            "training, s": r["seconds"]["train"],
            "s per epoch": r["seconds"]["train"] / len(r["epochs"]),
            "evaluation, s": r["seconds"]["evaluation"],
            "process's peak memory, MiB": r["peak_memory_mib"],
            "padding, %": 100 * r["padding_share"],
        }
        for r in each_run(records)
    ]
    means = pd.DataFrame(rows).groupby("method", sort=False).mean().round(1)
    means.insert(0, "runs", pd.DataFrame(rows).groupby("method", sort=False).size())
    means["trained parameters"] = means["trained parameters"].map("{:,.0f}".format)
    means["tasks per run"] = means["tasks per run"].astype(int)
    return means


def deviations(config: Config, records: list[dict[str, Any]]) -> str:
    """What separates this profile's numbers from the paper's, as a markdown list."""
    first = by_task(records)
    lines = [f"Backbone {config.backbone.name}; the paper has BERT-base-uncased and RoBERTa-base."]
    outside = [task for task in config.tasks if task not in PAPER]
    if outside:
        lines.append(f"Not tasks of the paper: {', '.join(outside)}.")
    lacking = [task for task in PAPER if task not in config.tasks or absent(config, task)]
    if lacking:
        lines.append(f"Tasks of the paper that are not here: {', '.join(lacking)}.")
    capped = [t for t, r in first.items() if any(r["data"]["capped"].values())]
    if capped:
        lines.append(f"Training or dev rows capped: {', '.join(capped)}.")
    resplit = [t for t, r in first.items() if not all(r["data"]["official_split"].values())]
    if resplit:
        lines.append(f"Not the official split: {', '.join(resplit)}.")
    if config.data.validation:
        share = 100 * config.data.validation
        lines.append(
            f"{share:.0f} % of each training set choose the epoch and are not trained on; the paper "
            "trains on all of it and chooses on dev, which is shown beside."
        )
    rates = ", ".join(f"{name} {r.learning_rate:g}" for name, r in vars(config.recipes).items())
    lines.append(
        f"Learning rates for this backbone ({rates}); the paper has 1e-4 for adapters and 5e-5 for fusion."
    )
    return "\n".join(f"- {line}" for line in lines)


def forecast_table(config: Config, runs: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """What the forecast said of each method's runs (`runs.of_study`), in minutes, and what they took.

    Raises:
        FileNotFoundError: no forecast was saved.
    """
    said = json.loads((Paths(config.profile).results / "forecast.json").read_text())
    rows = {}
    for name, records in runs.items():
        took = sum(r["seconds"]["this_process"] for r in records) / 60 / said["side_by_side"]
        rows[method(name).title] = (len(records), said["minutes"][name], took)
    table = pd.DataFrame(rows, index=["runs", "forecast, min", "measured, min"]).T
    table.loc["All"] = table.sum()
    table["off by, %"] = 100 * (table["forecast, min"] / table["measured, min"] - 1)
    table["runs"] = table["runs"].astype(int)
    return table.round({"forecast, min": 1, "measured, min": 1, "off by, %": 0})
