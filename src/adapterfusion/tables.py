"""Tables as pure functions of run records: scores, the summary, and the paper-shaped table.

Scores are in percent here, as in the paper. A spread is the sample standard deviation over seeds.
"""

import json
from typing import Any

import pandas as pd

from adapterfusion.config import Config
from adapterfusion.methods import METHODS
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import absent, tasks_of
from adapterfusion.runs import each_run

PROTOCOLS = {
    "held_out": "epoch chosen on a part of train that was held out, reported on dev",
    "paper": "epoch chosen and reported on dev, as in the paper",
}


def protocols(config: Config) -> list[str]:
    """The protocols that this configuration's runs can report, the one to read first in front."""
    return ["held_out", "paper"] if config.data.validation else ["paper"]


METRICS = {"accuracy": "accuracy", "f1": "F1"}


def scores(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, protocol and metric: method, task, seed, protocol, metric, score."""
    rows = [
        (r["method"], r["task"], r["seed"], protocol, metric, 100 * values[metric])
        for r in records
        for protocol, values in r["metrics"].items()
        for metric in r["data"]["metrics"]
    ]
    columns = ["method", "task", "seed", "protocol", "metric", "score"]
    return pd.DataFrame(rows, columns=columns)


def curves(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and epoch: what the learning curves are drawn from."""
    rows = [
        (r["method"], r["task"], r["seed"], n, 100 * e["dev"]["accuracy"], e["train_loss"])
        for r in records
        for n, e in enumerate(r["epochs"], start=1)
    ]
    columns = ["method", "task", "seed", "epoch", "dev_accuracy", "train_loss"]
    return pd.DataFrame(rows, columns=columns)


def aggregate(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, std and the seeds' scores for each method, task, metric and protocol, in study order."""
    keys = ["method", "task", "metric", "protocol"]
    grouped = frame.sort_values("seed").groupby(keys, sort=False)["score"]
    table = grouped.agg(mean="mean", std="std", n_seeds="count", scores=list).reset_index()
    return table


def by_task(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first record of each task, tasks in the order of the records."""
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        first.setdefault(record["task"], record)
    return first


def data_notes(record: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing a score with another: split and size."""
    data = record["data"]
    notes = []
    if not all(data["official_split"].values()):
        notes.append("not the official split")
    if any(data["capped"].values()):
        notes.append("rows capped")
    return notes


def noted(records: list[dict[str, Any]]) -> str:
    """`data_notes` of several tasks: each note with the titles it holds for; empty if none does."""
    titles: dict[str, list[str]] = {}
    for record in by_task(records).values():
        for note in data_notes(record):
            titles.setdefault(note, []).append(record["data"]["title"])
    return "; ".join(f"{note} ({', '.join(names)})" for note, names in titles.items())


def _data_sha256(record: dict[str, Any]) -> str:
    """The checksum of a record's task; records from before there were joint runs have no other's."""
    data = record["config"]["data"]
    return data.get(record["task"], data)["sha256"]


def summary(config: Config, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What summary.json holds: every aggregated score with its seeds, and what it was measured on."""
    first = by_task(records)
    rows = []
    for row in aggregate(scores(records)).to_dict("records"):
        data = first[row["task"]]["data"]
        row["scores"] = [round(s, 4) for s in row["scores"]]
        row["mean"] = round(row["mean"], 4)
        row["std"] = None if pd.isna(row["std"]) else round(row["std"], 4)
        rows.append(row | {"official_split": all(data["official_split"].values())})
    return {
        "profile": config.profile,
        "backbone": {"name": config.backbone.name}
        | {"sha256": records[0]["config"]["backbone"]["sha256"]},
        "data": {
            task: {
                "sha256": _data_sha256(first[task]),
                "source": first[task]["data"]["source"],
                "rows": first[task]["data"]["rows"],
                "official_split": first[task]["data"]["official_split"],
                "capped": first[task]["data"]["capped"],
            }
            for task in config.tasks
            if task in first
        },
        "runs": len(each_run(records)),
        "failed": [
            f"{r['method']}/{r['task']}/seed{r['seed']}"
            for r in records
            if r["status"] != "finished"
        ],
        "degenerate": [
            f"{r['method']}/{r['task']}/seed{r['seed']}"
            for r in records
            if r["metrics"]["paper"]["degenerate"]
        ],
        "rows": rows,
    }


def headline(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The few numbers `dvc exp show` prints: mean accuracy over the targets, of methods that have all."""
    frame = pd.DataFrame(summary["rows"])
    frame = frame[frame["metric"] == "accuracy"]
    targets = set(frame[frame["method"] == "fusion_st"]["task"])
    frame = frame[frame["task"].isin(targets)]
    grouped = frame.groupby(["protocol", "method"], sort=False)["mean"]
    means = grouped.mean()[grouped.size() == len(targets)].round(2)
    return {
        protocol: {method: float(v) for (_, method), v in part.items()}
        for protocol, part in means.groupby(level=0)
    }


def main_table(
    config: Config, records: list[dict[str, Any]], protocol: str, metric: str = "accuracy"
) -> pd.DataFrame:
    """The paper's Table 1 in shape: targets in rows, methods in columns, mean ± std over seeds.

    A task marked * was not measured on its official split, or on capped rows. The last row is the
    mean of the task means, for methods that were run on every target.
    """
    frame = aggregate(scores(records))
    frame = frame[(frame["protocol"] == protocol) & (frame["metric"] == metric)]
    targets = tasks_of(config, "fusion_st")
    frame = frame[frame["task"].isin(targets)]
    first = by_task(records)
    means = frame.pivot(index="task", columns="method", values="mean")
    tasks = [t for t in targets if t in means.index]
    methods = [m for m in METHODS if m in means.columns]
    cells = frame.set_index(["task", "method"])

    def cell(task: str, method: str) -> str:
        if (task, method) not in cells.index:
            return "–"
        row = cells.loc[(task, method)]
        spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.2f}"
        return f"{row['mean']:.2f}{spread}"

    def title(task: str) -> str:
        return first[task]["data"]["title"] + ("*" if data_notes(first[task]) else "")

    table = pd.DataFrame(
        {METHODS[m].title: [cell(t, m) for t in tasks] for m in methods},
        index=pd.Index([title(t) for t in tasks], name="Task"),
    )
    table.insert(0, "Train", [f"{first[t]['data']['rows']['train']:,}" for t in tasks])
    table.insert(1, "Dev", [f"{first[t]['data']['rows']['dev']:,}" for t in tasks])
    table.insert(2, "Seeds", [len(config.tasks[t].seeds) for t in tasks])
    table = table.astype(object)  # counts above, blanks in the row of means

    def mean(method: str) -> str:
        return "–" if means.loc[tasks, method].isna().any() else f"{means[method].mean():.2f}"

    table.loc["Mean"] = ["", "", ""] + [mean(m) for m in methods]
    return table


def caption(config: Config, records: list[dict[str, Any]], protocol: str) -> str:
    """One sentence per thing a reader must know of a table made from these records."""
    targets = tasks_of(config, "fusion_st")
    marked = noted([r for r in records if r["task"] in targets])
    text = (
        f"Accuracy in %, mean ± sample standard deviation over seeds; {PROTOCOLS[protocol]}. "
        f"Backbone {config.backbone.name}."
    )
    if config.data.validation:
        text += f" {100 * config.data.validation:.0f} % of each training set are held out."
    if marked:
        text += f" * Not comparable with published numbers: {marked}."
    missing = [f"{task} ({reason})" for task in config.tasks if (reason := absent(config, task))]
    if missing:
        text += f" Absent: {'; '.join(missing)}"
    return text


def write_tables(config: Config, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write summary.json, metrics.json and tables/*.md, *.csv; returns the summary."""
    paths = Paths(config.profile)
    result = summary(config, records)
    texts = {
        paths.results / "summary.json": json.dumps(result, indent=1) + "\n",
        paths.results / "metrics.json": json.dumps(headline(result), indent=1) + "\n",
        paths.tables / "scores.csv": scores(records).round(4).to_csv(index=False),
        paths.tables / "curves.csv": curves(records).round(4).to_csv(index=False),
    }
    for protocol in protocols(config):
        table = main_table(config, records, protocol)
        texts[paths.tables / f"main_{protocol}.csv"] = table.to_csv()
        texts[paths.tables / f"main_{protocol}.md"] = (
            f"{table.to_markdown()}\n\n{caption(config, records, protocol)}\n"
        )
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return result


def read_main_table(config: Config, protocol: str | None = None) -> str:
    """The main table that the evaluation wrote, as markdown with its caption."""
    name = f"main_{protocol or protocols(config)[0]}.md"
    return (Paths(config.profile).tables / name).read_text(encoding="utf-8")
