"""The kinds of test that read run records alone: attention, frozen weights, parameters, time."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from adapterfusion.evidence import Kind, NotTested, Outcome, Over, Record, Study, as_json
from adapterfusion.score_tests import decide, region
from adapterfusion.stats import Interval


def _by_share(
    study: Study, method: str, tasks: list[str], holds: dict[str, list[bool]], share: float, of: str
) -> Outcome:
    """A verdict from the share of runs in which something holds; each target weighs the same.

    Attention is kept as a mean over dev tokens, so there are no rows to resample: no interval.
    """
    mean = float(np.mean([np.mean(holds[t]) for t in tasks]))
    verdict = "not distinguishable"
    if mean >= share:
        verdict = "reproduced"
    elif mean <= 1 - share:
        verdict = "contradicted"
    yes = [t for t in tasks if all(holds[t])]
    evidence = (
        f"{of}: in all seeds of {len(yes)} of {len(tasks)} targets"
        f"{' (' + ', '.join(yes) + ')' if yes else ''}, and in {100 * mean:.0f} % of runs, targets "
        f"weighing the same. At least {100 * share:.0f} % is asked; {100 * (1 - share):.0f} % or less "
        "contradicts."
    )
    here = f"{100 * mean:.0f} % of runs"
    return Outcome(verdict, evidence, here, None, study.files([method], tasks))


@dataclass(frozen=True)
class Attention(Kind):
    """The most attended adapter, over all layers, is the target's own, another's, or one listed.

    listed: the own adapter is left out of the comparison. share: of runs in which it must hold.
    """

    method: str
    most: Literal["own", "other", "listed"]
    share: float
    over: Over = "targets"
    tasks: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()

    def _holds(self, record: Record) -> bool:
        task, adapters = record["task"], record["attention"]["adapters"]
        mean = dict(
            zip(adapters, np.mean(record["attention"]["layers"], axis=0), strict=True)
        )  # over layers
        if self.most == "listed":
            mean.pop(task, None)
        top = max(mean, key=mean.get)
        if self.most == "listed":
            return top in self.listed
        return (top == task) == (self.most == "own")

    def judge(self, study: Study, tolerance: float) -> Outcome:
        tasks = study.choose([self.method], self.over, self.tasks)
        adapters = set(study.of_methods([self.method], tasks)[0]["attention"]["adapters"])
        if missing := [t for t in self.listed if t not in adapters]:
            raise NotTested(f"not among the fused adapters: {', '.join(missing)}")
        if self.most != "listed":
            tasks = [t for t in tasks if t in adapters]
        if not tasks or len(adapters) < 2:
            raise NotTested("no target has a choice between its own adapter and another")
        holds = {t: [self._holds(r) for r in study.records[self.method][t]] for t in tasks}
        what = {
            "own": "The own adapter gets most attention",
            "other": "Another task's adapter gets most attention",
            "listed": f"Of the other adapters, one of {', '.join(self.listed)} gets most attention",
        }[self.most]
        return _by_share(study, self.method, tasks, holds, self.share, what)


def entropy(attention: np.ndarray) -> float:
    """Entropy of a distribution over N adapters relative to a uniform one's: 0 to 1."""
    return float(scipy_stats.entropy(attention) / np.log(len(attention)))


@dataclass(frozen=True)
class Spread(Kind):
    """Of all layers, the last has the attention that is most spread out over the adapters."""

    method: str
    share: float

    def judge(self, study: Study, tolerance: float) -> Outcome:
        tasks = study.choose([self.method], "targets", ())
        spreads = {
            t: [[entropy(np.array(layer)) for layer in r["attention"]["layers"]] for r in records]
            for t, records in study.records[self.method].items()
            if t in tasks and len(records[0]["attention"]["adapters"]) > 1
        }
        if not spreads or len(next(iter(spreads.values()))[0]) < 2:
            raise NotTested("there is but one adapter, or one layer")
        holds = {t: [s[-1] >= max(s) for s in seeds] for t, seeds in spreads.items()}
        last = np.mean([np.mean([s[-1] for s in seeds]) for seeds in spreads.values()])
        rest = np.mean([np.mean([s[:-1] for s in seeds]) for seeds in spreads.values()])
        what = (
            f"The last layer is the most spread out (entropy {last:.2f} of 1; the others' mean is "
            f"{rest:.2f})"
        )
        return _by_share(study, self.method, list(spreads), holds, self.share, what)


@dataclass(frozen=True)
class Frozen(Kind):
    """The checksum of all frozen weights is the same before and after training, in every run."""

    methods: tuple[str, ...]

    def judge(self, study: Study, tolerance: float) -> Outcome:
        records = [r for m in self.methods for t in study.tasks(m) for r in study.records[m][t]]
        frozen = [r for r in records if r["parameters"]["frozen"]]
        if not frozen:
            raise NotTested("no run has frozen weights")
        same = [r["frozen_sha256"]["before"] == r["frozen_sha256"]["after"] for r in frozen]
        verdict = "reproduced" if all(same) and len(frozen) == len(records) else "contradicted"
        runs = [f for m in self.methods for f in study.files([m], study.tasks(m))]
        count = f"{sum(same)} of {len(records)} runs"
        evidence = f"Frozen weights have the same checksum before and after training in {count}."
        return Outcome(verdict, evidence, count, None, runs)


def _adapter_parameters(study: Study, method: str, head: str, task: str) -> int:
    """Trained parameters beside the head, whose size is that of the run that trains nothing else."""
    trained = study.records[method][task][0]["parameters"]["trainable"]
    return trained - study.records[head][task][0]["parameters"]["trainable"]


@dataclass(frozen=True)
class Share(Kind):
    """A method's parameters, head left out, are at most `tolerance` per cent of the backbone's."""

    method: str
    head: str

    def judge(self, study: Study, tolerance: float) -> Outcome:
        tasks = study.choose([self.method, self.head], "targets", ())
        shares = [
            100
            * _adapter_parameters(study, self.method, self.head, t)
            / study.records[self.head][t][0]["parameters"]["frozen"]
            for t in tasks
        ]
        verdict = "reproduced" if max(shares) <= tolerance else "contradicted"
        count = _adapter_parameters(study, self.method, self.head, tasks[0])
        here = f"{max(shares):.2f} %"
        evidence = f"An adapter has {count:,} parameters, {here} of the backbone's; {tolerance:g} % are allowed."
        return Outcome(verdict, evidence, here, None, study.files([self.method, self.head], tasks))


@dataclass(frozen=True)
class Ratio(Kind):
    """a's parameters are `value` per cent of b's, heads left out, give or take the tolerance."""

    a: str
    b: str
    head: str
    value: float

    def judge(self, study: Study, tolerance: float) -> Outcome:
        methods = (self.a, self.b, self.head)
        tasks = study.choose(methods, "targets", ())
        a, b = (_adapter_parameters(study, m, self.head, tasks[0]) for m in (self.a, self.b))
        ratio = 100 * a / b
        verdict = "reproduced" if abs(ratio - self.value) <= tolerance else "contradicted"
        evidence = (
            f"{a:,} parameters against {b:,}: {ratio:.1f} %; {self.value:g} % are claimed, give or take "
            f"{tolerance:g}."
        )
        return Outcome(verdict, evidence, f"{ratio:.1f} %", None, study.files(methods, tasks[:1]))


@dataclass(frozen=True)
class Time(Kind):
    """An epoch of a takes longer than one of b, on every target; mean over seeds."""

    a: str
    b: str

    def judge(self, study: Study, tolerance: float) -> Outcome:
        methods = (self.a, self.b)
        tasks = study.choose(methods, "targets", ())
        seconds = {
            m: [
                np.mean([r["seconds"]["train"] / len(r["epochs"]) for r in study.records[m][t]])
                for t in tasks
            ]
            for m in methods
        }
        ratios = np.array(seconds[self.a]) / np.array(seconds[self.b])
        of_targets = Interval(float(ratios.mean()), float(ratios.min()), float(ratios.max()))
        evidence = (
            f"An epoch of {self.a} takes {of_targets.mean:.2f} times as long as one of {self.b}, "
            f"{of_targets.low:.2f} to {of_targets.high:.2f} on {len(tasks)} targets (a range, not an "
            "interval; wall-clock time on whatever ran beside)."
        )
        here = f"×{of_targets.mean:.2f}"
        interval = as_json(of_targets, "ratio, range over targets")
        verdict = decide(of_targets, region("above", 1.0 + tolerance))
        return Outcome(verdict, evidence, here, interval, study.files(methods, tasks))


@dataclass(frozen=True)
class Untested(Kind):
    """A claim of the paper that no profile's runs can decide; the reason is given."""

    reason: str

    def judge(self, study: Study, tolerance: float) -> Outcome:
        raise NotTested(self.reason.rstrip("."))
