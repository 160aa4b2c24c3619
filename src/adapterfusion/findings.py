"""What the records say, in sentences: generated, so that no number in a notebook is typed by hand."""

from typing import Any

import numpy as np
import pandas as pd

from adapterfusion import comparisons
from adapterfusion.config import Config
from adapterfusion.methods import CONTROLS, LOW_RESOURCE, METHODS, low_resource, method
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import absent, tasks_of
from adapterfusion.runs import correctness, load_runs
from adapterfusion.stats import SeedSpread, bootstrap, seed_spread
from adapterfusion.tables import protocols, scores, write_tables


def paired_table(config: Config, a: str, b: str) -> pd.DataFrame:
    """Method a against method b on every target: difference in points, interval, p, verdict."""
    of = comparisons.differences(config, a, b)
    table, mean = comparisons.per_task(of), bootstrap(list(of.values()))
    shown = pd.DataFrame(
        {
            "seeds": [d.shape[0] for d in of.values()],
            "dev rows": [d.shape[1] for d in of.values()],
            "difference": table["difference"].map("{:+.2f}".format),
            "95 % interval": table["low"].map("[{:+.2f}, ".format)
            + table["high"].map("{:+.2f}]".format),
            "p (Holm)": table["p_holm"].map("{:.3f}".format),
            "verdict": table["verdict"],
        }
    ).astype(object)
    interval = f"[{mean.low:+.2f}, {mean.high:+.2f}]"
    shown.loc["mean"] = ["", "", f"{mean.mean:+.2f}", interval, "", mean.verdict]
    return shown


def verdict(config: Config) -> str:
    """The study's answer in a few markdown lines: what fusion gains, over what, where and by what."""
    lines = []
    for other in ("st_adapter", "full"):
        of = comparisons.differences(config, "fusion_st", other)
        lines.append(
            f"- **Fusion of ST-A against {METHODS[other].title}**: {bootstrap(list(of.values()))} "
            f"points of accuracy on the mean of {len(of)} targets ({_count(of)})."
        )
    lines += _where(config) + _what_else(config) + _made_of(config)
    lines += _longer(config) + _seeds(config)
    lines.append(
        "\nIntervals are 95 % bootstrap intervals that resample seeds and dev rows within each task; a "
        "single target counts as higher or lower after Holm's correction over the targets. They say "
        "nothing about other tasks or backbones."
    )
    return "\n".join(lines)


def _count(of: dict[str, np.ndarray]) -> str:
    """The verdict on the mean, and how many single targets are higher, lower or neither."""
    verdicts = comparisons.per_task(of)["verdict"]
    higher, lower, neither = ((verdicts == v).sum() for v in comparisons.VERDICTS)
    return (
        f"{bootstrap(list(of.values())).verdict}; higher on {higher}, lower on {lower}, not "
        f"distinguishable on {neither}"
    )


def _where(config: Config) -> list[str]:
    """The targets of the controls against the others, and the two ends."""
    of = comparisons.differences(config, "fusion_st", "st_adapter")
    table, lines = comparisons.per_task(of), []
    chosen = [t for t in config.control_targets if t in of]
    others = [t for t in of if t not in chosen]
    if chosen and others:
        here, elsewhere = (bootstrap([of[t] for t in tasks]) for tasks in (chosen, others))
        lines.append(
            f"- **Where it gains over ST-A**: {here} on {', '.join(chosen)}, {elsewhere} on the other {len(others)}. "
            f"Most on {_end(table, table['difference'].idxmax())}, least on "
            f"{_end(table, table['difference'].idxmin())}."
        )
    return lines


def _end(table: pd.DataFrame, task: str) -> str:
    return f"{task} ({table['difference'][task]:+.2f}, {table['verdict'][task]})"


def _what_else(config: Config) -> list[str]:
    """Fusion against transfer in sequence, on the targets that have it, and against joint training."""
    lines = []
    for other in ("sequential", "multitask_full", "mt_adapter"):
        if {other, "fusion_st"} <= set(config.methods):
            of = comparisons.differences(config, "fusion_st", other)
            source = sorted({config.sequential[t] for t in of}) if other == "sequential" else []
            after = f" after {', '.join(source)}" if source else ""
            lines.append(
                f"- **Fusion of ST-A against {METHODS[other].title}**{after}: "
                f"{bootstrap(list(of.values()))} on {len(of)} targets ({_count(of)})."
            )
    return lines


def _control_targets(config: Config) -> list[str]:
    """The controls' targets whose data are there."""
    return [t for t in config.control_targets if not absent(config, t)]


def _on_control_targets(config: Config, a: str, b: str) -> list[np.ndarray]:
    """Method a right minus method b right, on each of the controls' targets."""
    of = comparisons.differences(config, a, b)
    return [of[task] for task in _control_targets(config)]


def _made_of(config: Config) -> list[str]:
    """Each control's difference to fusion."""
    targets = _control_targets(config)
    if not (targets and config.controls):
        return []
    found = [
        f"{method(name).title} {bootstrap(_on_control_targets(config, name, 'fusion_st'))}"
        for name in CONTROLS
        if name in config.controls
    ]
    return [
        f"- **What it is made of**: on {', '.join(targets)}, against fusion, {'; '.join(found)}."
    ]


def _beside_longer(config: Config) -> list[str]:
    """What fusion trained longer is held against: ST-A as it is, and what was trained as long."""
    as_long = [name for name in ("st_longer", "own_longer") if name in config.controls]
    return ["st_adapter", *as_long] if "longer" in config.controls else []


def _longer(config: Config) -> list[str]:
    """What longer training makes of fusion, target by target."""
    found = []
    for other in _beside_longer(config):
        of = comparisons.differences(config, "longer", other)
        table = comparisons.per_task(of)
        each = ", ".join(_end(table, task) for task in of)
        found.append(f"{bootstrap(list(of.values()))} over {method(other).title}: {each}")
    return [f"- **Fusion trained longer**: {'; '.join(found)}."] if found else []


def _seeds(config: Config) -> list[str]:
    """How far seeds alone move an accuracy, where the study can tell whose."""
    if "one_seed" not in config.controls:
        return []
    moved = seed_spread_table(config)["together"].map("{:.2f}".format)
    adapter, fusion, alone, dev = moved  # in the order of the table
    return [
        f"- **What a seed moves** on {', '.join(_control_targets(config))}, as standard deviation: {adapter} "
        f"points of ST-A, {fusion} of fusion, {alone} of fusion over the same adapters; the size of the "
        f"dev sets leaves {dev} in any case."
    ]


def write(config: Config, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write all tables and the verdict of the evaluation; returns the summary."""
    summary = write_tables(config, records)
    folder = Paths(config.profile).tables
    paired = paired_table(config, "fusion_st", "st_adapter")
    texts = {"verdict.md": verdict(config) + "\n", "fusion_against_st_adapter.csv": paired.to_csv()}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return summary


def failures(summary: dict[str, Any]) -> str:
    """Runs that diverged or collapsed to one class, by name."""
    text = f"{summary['runs']} runs of the methods in the tables. "
    for key, what in (("failed", "diverged"), ("degenerate", "predict one class throughout")):
        names = summary[key]
        text += f"{len(names)} {what}" + (f": {', '.join(names)}. " if names else ". ")
    return text.strip()


def _mean_attention(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """target -> attention [layers, N], the mean over seeds"""
    tasks = dict.fromkeys(r["task"] for r in records)
    return {
        t: np.mean([r["attention"]["layers"] for r in records if r["task"] == t], axis=0)
        for t in tasks
    }


def _spread(attention: np.ndarray) -> float:
    """Entropy relative to a uniform choice: 0 one adapter only, 1 no preference."""
    if len(attention) == 1:
        return 0.0
    p = np.clip(attention, 1e-12, 1)
    return float(-(p * np.log(p)).sum() / np.log(len(p)))


def attention_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Per target: attention on its own adapter, on the most preferred other, and its spread."""
    adapters = records[0]["attention"]["adapters"]
    rows = []
    for task, layers in _mean_attention(records).items():
        mean = layers.mean(axis=0)
        others = {a: v for a, v in zip(adapters, mean, strict=True) if a != task}
        row = {"target": task}
        if task in adapters:
            row["own adapter"] = f"{mean[adapters.index(task)]:.2f}"
        if others:
            best = max(others, key=others.get)
            row |= {"preferred other": best, "its attention": f"{others[best]:.2f}"}
        middle = len(layers) // 2
        row |= {
            "spread, first layer": f"{_spread(layers[0]):.2f}",
            f"spread, layer {middle + 1}": f"{_spread(layers[middle]):.2f}",
            "spread, last layer": f"{_spread(layers[-1]):.2f}",
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("target")


def attention_verdict(records: list[dict[str, Any]]) -> str:
    """How many targets prefer their own adapter, and whether the last layer is the most spread out."""
    adapters = records[0]["attention"]["adapters"]
    attention = _mean_attention(records)
    own = [t for t, a in attention.items() if adapters[a.mean(axis=0).argmax()] == t]
    spreads = np.array([[_spread(layer) for layer in a] for a in attention.values()]).mean(axis=0)
    widest = int(spreads.argmax()) + 1
    return (
        f"{len(own)} of {len(attention)} targets attend most to their own adapter"
        f"{' (' + ', '.join(own) + ')' if own else ''}. Averaged over targets, attention is most "
        f"spread out in layer {widest} of {len(spreads)} ({spreads.max():.2f}) and least in layer "
        f"{int(spreads.argmin()) + 1} ({spreads.min():.2f})."
    )


def low_resource_frame(config: Config, protocol: str | None = None) -> pd.DataFrame:
    """Scores as a target's training set shrinks, down from the full one: what the curve is drawn from.

    Returns:
        columns method, task, rows, seed, score (accuracy in per cent).
    """
    protocol = protocol or protocols(config)[0]
    cut = config.low_resource
    rows = []
    for base in LOW_RESOURCE if cut else ():
        for name in (base, *(low_resource(base, n) for n in cut.rows)):
            for r in load_runs(config, name):
                if r["task"] in cut.targets:
                    n, score = r["data"]["rows"]["train"], 100 * r["metrics"][protocol]["accuracy"]
                    rows.append((base, r["task"], n, r["seed"], score))
    return pd.DataFrame(rows, columns=["method", "task", "rows", "seed", "score"])


def pairs(config: Config) -> list[tuple[str, str]]:
    """The comparisons that the study is about, of those methods it runs."""
    wanted = [
        ("fusion_st", "st_adapter"),
        ("fusion_st", "full"),
        ("fusion_st", "mt_adapter"),
        ("fusion_st", "multitask_full"),
        ("fusion_st", "sequential"),
        ("fusion_mt", "mt_adapter"),
        ("fusion_mt", "fusion_st"),
        ("st_adapter", "full"),
        ("st_adapter_houlsby", "st_adapter"),
        ("mt_adapter", "full"),
        ("head", "full"),
    ]
    return [(a, b) for a, b in wanted if {a, b} <= set(config.methods)]


def complete(config: Config, records: list[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy of every run on a target, of the methods that were run on all of them."""
    protocol, targets = protocols(config)[0], tasks_of(config, "fusion_st")
    frame = scores(records)
    frame = frame[(frame["protocol"] == protocol) & (frame["metric"] == "accuracy")]
    frame = frame[frame["task"].isin(targets)]
    return frame[frame.groupby("method")["task"].transform("nunique") == len(targets)]


def control_table(config: Config) -> pd.DataFrame:
    """Each control's mean accuracy over its targets, and its difference to fusion and to ST-A."""
    protocol, targets = protocols(config)[0], _control_targets(config)
    rows = []
    for name in ("fusion_st", "st_adapter", *(c for c in CONTROLS if c in config.controls)):
        right = [correctness(config, name, task, protocol).mean() for task in targets]
        row = {"method": method(name).title, "mean accuracy": f"{100 * np.mean(right):.2f}"}
        for other in ("fusion_st", "st_adapter"):
            of = "" if name == other else bootstrap(_on_control_targets(config, name, other))
            row[f"minus {METHODS[other].title}"] = str(of)
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def longer_table(config: Config) -> pd.DataFrame:
    """Fusion trained longer, target by target, against ST-A and against what was trained as long."""
    others = _beside_longer(config)
    tables = {f"minus {method(b).title}": paired_table(config, "longer", b) for b in others}
    return pd.concat(tables, names=[CONTROLS["longer"].title, "task"])


def seed_spread_table(config: Config) -> pd.DataFrame:
    """How far seeds move the accuracy on the controls' targets, in points, by what they decide.

    Sample standard deviations over seeds, a column per target, `together` being the root of the mean
    variance; the last line is the standard error that dev sets of this size leave in any case.
    """
    decides = {
        "st_adapter": "adapter and head",
        "fusion_st": "adapters, fusion and head",
        "one_seed": "fusion and head",
    }
    protocol, targets = protocols(config)[0], _control_targets(config)
    of = {
        name: [correctness(config, name, t, protocol) for t in targets]
        for name in decides
        if name in (*config.methods, *config.controls)
    }
    lines = {
        (method(name).title, decides[name]): [s.std for s in map(_seed_spread, right)]
        for name, right in of.items()
    }
    error = [_seed_spread(right).binomial_error for right in of["fusion_st"]]
    lines["any", "nothing: the size of the dev set"] = error
    table = pd.DataFrame(lines, index=targets).T
    table["together"] = np.sqrt((table**2).mean(axis=1))
    table.index.names = ["method", "what the seed decides"]
    return table.round(2)


def _seed_spread(right: np.ndarray) -> SeedSpread:
    """right: [seeds, rows]"""
    return seed_spread(100 * right.mean(axis=1), right.shape[1])


def pruning_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What is lost, saved and gained with k adapters per layer: means over targets and seeds."""
    means = frame.groupby("k")[["accuracy", "seconds", "adapter_parameters"]].mean()
    means = means.sort_index(ascending=False)
    means["time, % of all"] = 100 * means["seconds"] / means["seconds"].max()
    means["adapter parameters"] = means.pop("adapter_parameters").astype(int)
    return means.drop(columns="seconds").round(2)


def knowledge_table(config: Config, graph: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Attention to the sources that hold a target's missing knowledge: on its words and elsewhere."""
    frame = pd.read_csv(Paths(config.profile).results / "probes" / "knowledge.csv")
    rows = []
    for target in dict.fromkeys(frame["target"]):
        for source in graph[target]["helps"]:
            part = frame.query("target == @target and adapter == @source")
            mass = part.groupby("place")["mass"].mean()
            share = 1 / frame.query("target == @target")["adapter"].nunique()
            rows.append((target, source, mass["word"], mass["other"], share))
    columns = ["target", "source", "on the words", "on other tokens", "an equal share"]
    return pd.DataFrame(rows, columns=columns).set_index(["target", "source"]).round(3)
