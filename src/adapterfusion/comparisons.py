"""Method against method over all targets, and the bundled suite's transfer graph put to the test.

Numbers stay numbers here (points of accuracy, p-values), so that claims and figures can use them;
`readable` turns them into a table for people. On a single task the verdict is that of `paired_p` after
Holm's correction over the targets compared; on the mean it is that of the bootstrap interval.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adapterfusion.config import Config
from adapterfusion.plans import tasks_of, title
from adapterfusion.runs import difference
from adapterfusion.stats import LEVEL, bootstrap, holm, paired_p, wilcoxon
from adapterfusion.tables import protocols

VERDICTS = ("higher", "lower", "not distinguishable")
ROLE_COLUMNS = ["target", "adapter", "role", "attention", "layer_max", "rank"]
ROLE_COLUMNS += ["seeds_first", "seeds"]
TEST_COLUMNS = ["target", "expectation", "source", "method", "difference", "low", "high", "p_holm"]
TEST_COLUMNS += ["rank", "attention", "layer_max", "outcome", "verdict"]
GAINS = {
    "higher": "gains over",
    "lower": "loses against",
    "not distinguishable": "is not distinguishable from",
}


def differences(
    config: Config, a: str, b: str, protocol: str | None = None
) -> dict[str, np.ndarray]:
    """target -> a right minus b right [seeds, rows], for the targets that both were run on."""
    protocol = protocol or protocols(config)[0]
    run_on = set(tasks_of(config, a)) & set(tasks_of(config, b))
    targets = [task for task in tasks_of(config, "fusion_st") if task in run_on]
    return {task: difference(config, a, b, task, protocol) for task in targets}


def per_task(of: dict[str, np.ndarray]) -> pd.DataFrame:
    """Each target on its own, from `differences`.

    Returns:
        indexed by task: difference, low, high, p, p_holm, verdict.
    """
    intervals = [bootstrap([d]) for d in of.values()]
    p = [paired_p(d) for d in of.values()]
    table = pd.DataFrame(
        {
            "difference": [i.mean for i in intervals],
            "low": [i.low for i in intervals],
            "high": [i.high for i in intervals],
            "p": p,
            "p_holm": holm(p),
        },
        index=pd.Index(of, name="task"),
    )
    side = np.where(table["difference"] > 0, "higher", "lower")
    table["verdict"] = np.where(table["p_holm"] < 1 - LEVEL, side, "not distinguishable")
    return table


def _scopes(tasks: Iterable[str], without: Sequence[str]) -> dict[str, list[str]]:
    """What a mean is taken over: all targets and, where it makes a difference, all but those named."""
    tasks = list(tasks)
    kept = [task for task in tasks if task not in without]
    scopes = {"all": tasks}
    if kept and len(kept) < len(tasks):
        scopes["without " + ", ".join(t for t in tasks if t in without)] = kept
    return scopes


def comparison_table(
    config: Config,
    pairs: Iterable[tuple[str, str]],
    protocol: str | None = None,
    without: Sequence[str] = (),
) -> pd.DataFrame:
    """Method a minus method b over the targets, one row for each pair and set of targets.

    Args:
        without: tasks that a second row of the same pair leaves out: what a mean owes to them.

    Returns:
        columns a, b, targets (which), tasks (how many), difference, low, high, verdict (of the mean),
        higher, lower, not distinguishable (how many targets), higher_on, lower_on (which, as one
        string), wilcoxon_p, wilcoxon_tasks, too_few (for Wilcoxon's test).
    """
    rows = []
    for a, b in pairs:
        of = differences(config, a, b, protocol)
        for scope, tasks in _scopes(of, without).items():
            part = {task: of[task] for task in tasks}
            if not part:
                continue
            table, mean = per_task(part), bootstrap(list(part.values()))
            test = wilcoxon(table["difference"].tolist())
            on = {v: table.index[table["verdict"] == v].tolist() for v in VERDICTS}
            row = {"a": a, "b": b, "targets": scope, "tasks": len(part)}
            row |= {"difference": mean.mean, "low": mean.low, "high": mean.high}
            row |= {"verdict": mean.verdict} | {v: len(tasks) for v, tasks in on.items()}
            row |= {"higher_on": ", ".join(on["higher"]), "lower_on": ", ".join(on["lower"])}
            row |= {"wilcoxon_p": test.p, "wilcoxon_tasks": test.tasks, "too_few": test.too_few}
            rows.append(row)
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`comparison_table` for people: titles, signs, intervals."""

    few = table["too_few"].map({True: " (too few)", False: ""})
    return pd.DataFrame(
        {
            "comparison": table["a"].map(title) + " − " + table["b"].map(title),
            "targets": table["targets"].str.cat(table["tasks"].astype(str), sep=": "),
            "difference": table["difference"].map("{:+.2f}".format),
            "95 % interval": table["low"].map("[{:+.2f}, ".format)
            + table["high"].map("{:+.2f}]".format),
            "mean": table["verdict"],
            "higher on": table["higher"],
            "lower on": table["lower"],
            "neither on": table["not distinguishable"],
            "Wilcoxon p": table["wilcoxon_p"].map("{:.3f}".format) + few,
        }
    ).set_index("comparison")


def against(
    config: Config, names: Iterable[str], base: str = "fusion_st", protocol: str | None = None
) -> pd.DataFrame:
    """Each control minus `base`, on the mean and on each target: what `study_figures.ablations` draws.

    Returns:
        columns control, task ("mean" first), difference, low, high.
    """
    rows = []
    for name in names:
        of = differences(config, name, base, protocol)
        intervals = {"mean": bootstrap(list(of.values()))}
        intervals |= {task: bootstrap([d]) for task, d in of.items()}
        rows += [(name, task, i.mean, i.low, i.high) for task, i in intervals.items()]
    return pd.DataFrame(rows, columns=["control", "task", "difference", "low", "high"])


def _role(entry: dict[str, Any], target: str, adapter: str) -> str:
    """What the design says about an adapter for a target."""
    if adapter == target:
        return "own"
    return next((r for r in ("helps", "hurts", "tempting") if adapter in entry[r]), "other")


def attention_roles(
    graph: dict[str, dict[str, Any]], records: list[dict[str, Any]]
) -> pd.DataFrame:
    """Where each target's fusion looks, beside what the design says of each adapter.

    Args:
        graph: `bundled.transfer_graph()`.
        records: those of fusion_st; others are passed over.

    Returns:
        ROLE_COLUMNS. role: own, helps, hurts, tempting, other. attention: mean over layers and
        seeds. layer_max: the largest layer's, mean over seeds. rank: among the other adapters, 1 is
        the most attended; the own one has none. seeds_first: seeds in which it is among the first k,
        for k helpers.
    """
    rows = []
    fused = [r for r in records if r["method"] == "fusion_st" and r["task"] in graph]
    for target in dict.fromkeys(r["task"] for r in fused):
        runs = [r["attention"] for r in fused if r["task"] == target]
        adapters = runs[0]["adapters"]
        attention = np.array([run["layers"] for run in runs])  # [seeds, layers, N]
        others = np.array([adapter != target for adapter in adapters])
        by_seed = np.where(others, attention.mean(axis=1), -np.inf)  # [seeds, N]
        helpers = max(1, len(graph[target]["helps"]))
        for j, adapter in enumerate(adapters):
            row = {"target": target, "adapter": adapter}
            row["role"] = _role(graph[target], target, adapter)
            row["attention"] = float(attention[:, :, j].mean())
            row["layer_max"] = float(attention[:, :, j].mean(axis=0).max())
            if others[j]:
                mean = by_seed.mean(axis=0)
                row["rank"] = int((mean > mean[j]).sum()) + 1
                seed_ranks = (by_seed > by_seed[:, [j]]).sum(axis=1) + 1
                row["seeds_first"] = int((seed_ranks <= helpers).sum())
            rows.append(row | {"seeds": len(runs)})
    return pd.DataFrame(rows, columns=ROLE_COLUMNS)


def _expect(found: str, expected: str) -> str:
    """expected: higher or lower (must be shown), or "not higher", "not lower" (must not be refuted)."""
    if expected.startswith("not "):
        return "not as designed" if found == expected[4:] else "as designed"
    if found == "not distinguishable":
        return found
    return "as designed" if found == expected else "not as designed"


def transfer_graph_test(
    config: Config,
    graph: dict[str, dict[str, Any]],
    records: list[dict[str, Any]],
    protocol: str | None = None,
    multitask: Sequence[str] = ("multitask_full", "mt_adapter"),
) -> pd.DataFrame:
    """Each expectation that the design fixes beforehand, against what came out; one row for each.

    - helped: fusion gains over ST-A where a source teaches what the target asks for.
    - attended: each such source is among the most attended of the *other* adapters, as many as there
      are such sources.
    - hurt: where a source teaches the opposite, multi-task methods lose against ST-A and fusion does
      not.
    - nothing helps: where no source teaches it, fusion does not gain. That no gain is shown does not
      show that there is none: the interval says how much room is left.

    Args:
        graph: `bundled.transfer_graph()`.
        records: of the profile's methods. A method without records is "not tested".

    Returns:
        TEST_COLUMNS. Differences are method minus ST-A in points. outcome: as designed, not as
        designed, not distinguishable, not tested. verdict: a sentence.
    """
    run = {r["method"] for r in records}
    compared = {
        m: per_task(differences(config, m, "st_adapter", protocol))
        for m in ("fusion_st", *multitask)
        if {m, "st_adapter"} <= run
    }
    roles = attention_roles(graph, records).set_index(["target", "adapter"])
    rows = []

    def compare(target: str, expectation: str, source: str, method: str, expected: str) -> None:
        row = {"target": target, "expectation": expectation, "source": source, "method": method}
        if method not in compared or target not in compared[method].index:
            sentence = f"{title(method)} was not run beside ST-A on {target}."
            rows.append(row | {"outcome": "not tested", "verdict": sentence})
            return
        found = compared[method].loc[target]
        row |= found[["difference", "low", "high", "p_holm"]].to_dict()
        row["outcome"] = _expect(found["verdict"], expected)
        row["verdict"] = (
            f"{title(method)} {GAINS[found['verdict']]} ST-A on {target}: "
            f"{found['difference']:+.1f} points [{found['low']:+.1f}, {found['high']:+.1f}]."
        )
        rows.append(row)

    def attend(target: str, source: str, helpers: int) -> None:
        row = {"target": target, "expectation": "attended", "source": source}
        row["method"] = "fusion_st"
        if (target, source) not in roles.index:
            sentence = f"No fusion for {target} with an adapter of {source} was run."
            rows.append(row | {"outcome": "not tested", "verdict": sentence})
            return
        found = roles.loc[(target, source)]
        row |= found[["rank", "attention", "layer_max"]].to_dict()
        row["outcome"] = "as designed" if found["rank"] <= helpers else "not as designed"
        place = "first" if helpers == 1 else f"among the first {helpers}"
        row["verdict"] = (
            f"Of {target}'s other adapters, {source} is number {found['rank']:.0f} by attention: "
            f"{found['attention']:.2f} on average, up to {found['layer_max']:.2f} in a layer; "
            f"{place} in {found['seeds_first']:.0f} of {found['seeds']} seeds."
        )
        rows.append(row)

    for target in (t for t in tasks_of(config, "fusion_st") if t in graph):
        helps, hurts = graph[target]["helps"], graph[target]["hurts"]
        if helps:
            compare(target, "helped", ", ".join(helps), "fusion_st", "higher")
        for source in helps:
            attend(target, source, len(helps))
        for method in multitask if hurts else ():
            compare(target, "hurt", ", ".join(hurts), method, "lower")
        if hurts:
            compare(target, "not hurt", ", ".join(hurts), "fusion_st", "not lower")
        if not helps:
            compare(target, "nothing helps", "", "fusion_st", "not higher")
    return pd.DataFrame(rows, columns=TEST_COLUMNS)


def graph_verdict(table: pd.DataFrame) -> str:
    """How many of the design's expectations came out, in a few markdown lines."""
    what = {
        "helped": "Fusion gains over ST-A where a source was made to help",
        "attended": "The source made to help is among the most attended of the others",
        "hurt": "A multi-task method loses against ST-A where a source was made to hurt",
        "not hurt": "Fusion does not lose there",
        "nothing helps": "Fusion does not gain where no source was made to help",
    }
    lines = []
    for expectation, part in table.groupby("expectation", sort=False)["outcome"]:
        counts = part.value_counts().to_dict()
        met = counts.pop("as designed", 0)
        rest = "".join(f", {n} {outcome}" for outcome, n in counts.items())
        lines.append(f"- {what[expectation]}: in {met} of {len(part)} cases{rest}.")
    return "\n".join(lines)
