"""Claims judged on records made up for the purpose, where the right verdict can be seen."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapterfusion import claims, evidence, paper
from adapterfusion.claims import KINDS, ClaimError
from adapterfusion.config import TaskConfig, load_config
from adapterfusion.evidence import NotTested, Sizes, Study
from adapterfusion.run_tests import entropy
from adapterfusion.runs import RunError, load_runs
from adapterfusion.score_tests import decide, region, widened
from adapterfusion.stats import Interval

ROOT = Path(__file__).parents[1]
REFERENCE = paper.load(ROOT)
SIZES = Sizes(large_rows=10000, small_rows=5000, relative=4.0)


# ---- reading claims.yaml


def test_the_papers_claims_are_read():
    sizes, entries = claims.load(ROOT / claims.FILE)
    assert len(entries) >= 14 and sizes == SIZES
    for name in (
        "fusion_st_over_st_adapter", "gain_without_largest", "no_loss_on_large", "gains_on_small",
        "st_adapter_on_par_with_full", "houlsby_on_par_with_pfeiffer", "mt_adapter_loses_csqa_mrpc",
        "fusion_mt_never_below_mt_adapter", "fusion_st_over_mt_adapter", "fusion_st_over_full",
        "head_far_below_full", "large_attend_to_own", "small_attend_to_mnli_qqp",
        "last_layer_spread_out", "backbone_unchanged", "adapter_is_small", "fusion_trains_slower",
        "cost_grows_with_adapters",
    ):  # fmt: skip
        assert name in [c.id for c in entries]
    assert {type(c.test) for c in entries} == set(KINDS.values())


GOOD = {
    "id": "one",
    "place": "Table 1",
    "claim": "A beats B.",
    "test": {"kind": "difference", "a": "fusion_st", "b": "full", "expect": "above"},
    "tolerance": 0.0,
    "needs": {"methods": ["fusion_st", "full"]},
}


def written(folder: Path, *entries: dict, text: str | None = None) -> Path:
    path = folder / "claims.yaml"
    content = {"sizes": dataclasses.asdict(SIZES), "claims": list(entries)}
    path.write_text(text or yaml.safe_dump(content))
    return path


def test_a_plain_claim_is_read(tmp_path):
    _, (claim,) = claims.load(written(tmp_path, GOOD))
    assert (claim.id, claim.tolerance, claim.test.a) == ("one", 0.0, "fusion_st")


def changed(**changes) -> dict:
    entry = json.loads(json.dumps(GOOD))
    for key, value in changes.items():
        target = entry
        *path, last = key.split("__")
        for part in path:
            target = target[part]
        target[last] = value
    return {k: v for k, v in entry.items() if v != "drop"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (changed(test__kind="differences"), "one: test.kind: 'differences' is not known. Use one"),
        (changed(test="drop"), "one: test.kind: None is not known"),
        (changed(test__c="full"), "one: test.c: unknown key. Known keys here: a, b, expect"),
        (
            changed(test__expect="over"),
            "one: test.expect: 'over' is not known. Choose one of above",
        ),
        (changed(tolerence=0.1), "one: tolerence: unknown key"),
        (changed(tolerance="drop"), "one: tolerance: missing. Add it; the other claims have examp"),
        (changed(tolerance="0.3"), "one: tolerance: '0.3' is a str. Write the number without quo"),
        (changed(tolerance=-0.3), "one: tolerance: -0.3 is negative"),
        (changed(test__a="fusion"), "one: methods: 'fusion' is not known. Use one of head"),
        (changed(test__a="head"), "one: needs.methods: the test uses 'head', which is not listed"),
        (
            changed(test__tasks=["rte"]),
            "one: needs.tasks: the test uses 'rte', which is not listed",
        ),
        (changed(test__tasks=["rtf"]), "one: tasks: 'rtf' is not known"),
        (changed(needs=["full"]), r"one: needs: a mapping is needed.*See the other claims"),
        ("fusion wins", "claim 1 is not a mapping"),
    ],
)
def test_mistakes_name_file_claim_and_remedy(tmp_path, entry, message):
    with pytest.raises(ClaimError, match=message) as error:
        claims.load(written(tmp_path, entry))
    assert str(error.value).startswith("data/reference/claims.yaml: ")
    assert "profiles/" not in str(error.value)


def test_two_claims_of_one_name_are_refused(tmp_path):
    with pytest.raises(ClaimError, match="one: two claims have this id"):
        claims.load(written(tmp_path, GOOD, GOOD))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes: {}\nsizes: {}\nclaims: []", "'sizes' is named twice in the mapping at line 1"),
        ("sizes: {}\nclaims: []\nmore: 1", "keys at the top must be sizes and claims"),
        ("sizes: {}\nclaims: []", "sizes.large_rows: missing"),
        ("sizes: {}\nclaims: {}", "claims: a list is needed"),
        ("sizes: [", "not valid YAML"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, text, message):
    with pytest.raises(ClaimError, match=message):
        claims.load(written(tmp_path, text=text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ClaimError, match=r"data/reference/claims.yaml: not found"):
        claims.load(tmp_path / "claims.yaml")


# ---- from an interval to a verdict


@pytest.mark.parametrize(
    ("expect", "tolerance", "low", "high", "verdict"),
    [
        ("above", 0, 0.1, 2, "reproduced"),
        ("above", 0, -0.1, 2, "not distinguishable"),
        ("above", 0, -2, -0.1, "contradicted"),
        ("above", 0, 0, 0, "not distinguishable"),  # no gain, and no loss
        ("above", 5, 4, 9, "not distinguishable"),
        ("above", 5, 1, 4, "contradicted"),
        ("below", 2, -9, -2.1, "reproduced"),
        ("below", 2, -9, -1, "not distinguishable"),
        ("below", 2, -1.9, 3, "contradicted"),
        ("on_par", 1, -1, 1, "reproduced"),
        ("on_par", 1, -0.5, 1.1, "not distinguishable"),
        ("on_par", 1, 1.1, 3, "contradicted"),
        ("on_par", 1, -3, -1.1, "contradicted"),
        ("on_par", 1, -5, 5, "not distinguishable"),
        ("no_loss", 0.3, -0.3, 9, "reproduced"),
        ("no_loss", 0.3, -0.4, 9, "not distinguishable"),
        ("no_loss", 0.3, -4, -0.4, "contradicted"),
        ("no_loss", 0, 0, 0, "reproduced"),
    ],
)
def test_verdict_of_an_interval(expect, tolerance, low, high, verdict):
    assert decide(Interval((low + high) / 2, low, high), region(expect, tolerance)) == verdict


def test_widened_interval_by_hand():
    """Sixteen tasks: the normal quantile goes from 1.9600 to 2.9552."""
    wide = widened(Interval(-2, -3.5, -0.5), 16)
    assert (wide.mean, wide.low, wide.high) == pytest.approx(
        (-2, -2 - 1.5 * 2.9552 / 1.96, -2 + 1.5 * 2.9552 / 1.96), abs=1e-3
    )
    assert widened(Interval(1, 0, 3), 1) == Interval(1, pytest.approx(0), pytest.approx(3))


def test_size_groups():
    rows = {"a": 40000, "b": 10000, "c": 7000, "d": 4999}
    assert SIZES.split(rows)[:2] == (["a", "b"], ["d"])
    rows = {"a": 900, "b": 899, "c": 225}
    large, small, rule = SIZES.split(rows)
    assert (large, small) == (["a"], ["b", "c"]) and "900 rows" in rule
    assert SIZES.split({"a": 100, "b": 399})[:2] == ([], ["a", "b"])


# ---- claims on made-up studies


def config_of(*targets: str):
    config = load_config(ROOT / "profiles" / "minilm.yaml")
    tasks = {t: TaskConfig(seeds=(1,)) for t in targets}
    return dataclasses.replace(config, tasks=tasks, sources=targets, targets=targets)


def record(method: str, task: str, seed: int = 1, train: int = 100, **more) -> dict:
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "data": {"rows": {"train": train}},
        "parameters": {"trainable": 10, "frozen": 1000},
        "frozen_sha256": {"before": "a", "after": "a"},
        "epochs": [{}, {}],
        "seconds": {"train": 8.0, "evaluation": 1.0},
    } | more


@pytest.fixture
def outcome(monkeypatch):
    """Judge one test on records; `differences` stands in for the runs' predictions."""

    def judged(test: dict, records, differences=None, tolerance=0.0, targets=None):
        def difference(config, a, b, task, protocol):
            assert protocol == "held_out"
            sign = 1 if (a, b) == ("fusion_st", "st_adapter") else -1
            return sign * np.array(differences[task], dtype=float)

        monkeypatch.setattr(evidence, "difference", difference)
        targets = targets or tuple(dict.fromkeys(r["task"] for r in records))
        study = Study.of(config_of(*targets), records, SIZES, REFERENCE)
        test = dict(test)
        kind = KINDS[test.pop("kind")]
        return kind(**test).judge(study, tolerance)

    return judged


GAIN = {"kind": "difference", "a": "fusion_st", "b": "st_adapter", "expect": "above"}
LOSS = GAIN | {"a": "st_adapter", "b": "fusion_st"}
ONES, ZEROS = [[1] * 10], [[0] * 10]


def both(*tasks: str, **more) -> list[dict]:
    return [record(m, t, **more) for m in ("st_adapter", "fusion_st") for t in tasks]


def test_difference_on_the_mean_by_hand(outcome):
    result = outcome(GAIN, both("x", "y"), {"x": ONES, "y": ZEROS})
    assert result.verdict == "reproduced"
    expected = {"mean": 50, "low": 50, "high": 50, "unit": "points"}
    assert result.interval == pytest.approx(expected)
    assert "mean of 2 targets (x, y; 1 seed a task)" in result.evidence
    assert outcome(LOSS, both("x", "y"), {"x": ONES, "y": ZEROS}).verdict == "contradicted"
    assert outcome(GAIN, both("y"), {"y": ZEROS}).verdict == "not distinguishable"
    noisy = [[1, 1, -1] * 4]
    assert outcome(GAIN, both("x"), {"x": noisy}).verdict == "not distinguishable"


def test_tasks_that_are_left_out_do_not_count(outcome):
    differences = {"x": ONES, "mrpc": [[-1] * 10]}
    test = GAIN | {"without": ("mrpc",)}
    result = outcome(test, both("x", "mrpc"), differences)
    assert result.verdict == "reproduced" and result.interval["mean"] == 100
    assert outcome(GAIN, both("x", "mrpc"), differences).interval["mean"] == 0
    with pytest.raises(NotTested, match="no target is left"):
        outcome(test, both("mrpc"), differences)


def test_only_targets_that_both_methods_have_count(outcome):
    records = [*both("x"), record("fusion_st", "y"), *both("z")]
    result = outcome(GAIN, records, {"x": ONES, "z": ONES}, targets=("x", "y"))
    assert result.runs == [
        "results/minilm/runs/fusion_st/x/seed1/run.json",
        "results/minilm/runs/st_adapter/x/seed1/run.json",
    ]
    with pytest.raises(NotTested, match="no runs on y"):
        outcome(GAIN | {"tasks": ("x", "y")}, records, {"x": ONES}, targets=("x", "y"))


def test_large_and_small_targets(outcome):
    records = both("big", train=400) + both("small", train=100)
    differences = {"big": ONES, "small": ZEROS}
    assert outcome(GAIN | {"over": "large"}, records, differences).interval["mean"] == 100
    assert outcome(GAIN | {"over": "small"}, records, differences).interval["mean"] == 0
    with pytest.raises(NotTested, match="no large target has runs"):
        outcome(GAIN | {"over": "large"}, both("x", "y"), {"x": ONES, "y": ONES})


def rows(right: int, wrong: int, n: int) -> list[list[int]]:
    return [[1] * right + [-1] * wrong + [0] * (n - right - wrong)]


def test_each_task_must_hold(outcome):
    each = GAIN | {"expect": "no_loss", "each": True}
    fine = {"x": ONES, "y": ZEROS}
    assert outcome(each, both("x", "y"), fine, 0.3).verdict == "reproduced"
    result = outcome(each, both("x", "y"), {"x": ONES, "y": [[-1] * 10]}, 0.3)
    assert result.verdict == "contradicted"
    assert result.interval["task"] == "y" and result.here.startswith("y -100.00")
    # the mean hides the loss
    mean = outcome(each | {"each": False}, both("x", "y"), {"x": ONES, "y": [[-1] * 10]}, 0.3)
    assert mean.verdict == "reproduced" and mean.interval["mean"] == 0


def test_one_loser_among_many_needs_more_evidence(outcome):
    """The loser alone contradicts; among ten tasks the same interval is no longer enough."""
    each = GAIN | {"expect": "no_loss", "each": True}
    loser = rows(0, 5, 100)  # 5 points lost, 95 % interval about -9.3 to -0.7
    alone = outcome(each, both("x"), {"x": loser}, 0.3)
    assert alone.verdict == "contradicted" and -1.5 < alone.interval["high"] < -0.3
    names = [f"t{i}" for i in range(9)]
    many = outcome(each, both("x", *names), {"x": loser} | dict.fromkeys(names, ZEROS), 0.3)
    assert many.verdict == "not distinguishable"
    assert many.interval["task"] == "x" and "outside on 1" in many.evidence


def test_hardest_task_comes_first(outcome):
    differences = {"x": [[-1] * 10], "y": ONES}
    below = LOSS | {"expect": "below", "each": True}
    result = outcome(below, both("x", "y"), differences)
    assert result.interval["task"] == "x" and result.verdict == "contradicted"
    on_par = GAIN | {"expect": "on_par", "each": True}
    result = outcome(on_par, both("x", "y"), {"x": rows(1, 0, 10), "y": [[-1] * 10]}, 1.0)
    assert result.interval["task"] == "y"


def test_contrast_of_small_and_large_by_hand(outcome):
    """Small: (100 + 0) / 2; large: 20. The contrast is 30, whatever the groups' sizes."""
    test = {"kind": "contrast", "a": "fusion_st", "b": "st_adapter"}
    records = both("big", train=800) + both("s1", "s2")
    differences = {"big": rows(60, 40, 100), "s1": ONES, "s2": ZEROS}
    result = outcome(test, records, differences)
    assert result.interval["mean"] == pytest.approx(30)
    assert result.verdict == "reproduced"
    assert "+50.00 [+50.00, +50.00] points on small" in result.evidence
    turned = outcome(test | {"a": "st_adapter", "b": "fusion_st"}, records, differences)
    assert turned.interval["mean"] == pytest.approx(-30) and turned.verdict == "contradicted"
    with pytest.raises(NotTested, match="no large target"):
        outcome(test, both("s1", "s2"), differences)


def attending(task: str, seed: int, *layers: list[float], adapters="xyz", **more) -> dict:
    attention = {"adapters": list(adapters), "layers": list(layers)}
    return record("fusion_st", task, seed, attention=attention, **more)


ATTENTION = {"kind": "attention", "method": "fusion_st", "share": 0.8}


def test_who_is_attended_to_most_is_decided_over_all_layers(outcome):
    # the own adapter is ahead in the first layer only, but the mean over layers is what counts
    own = attending("x", 1, [0.8, 0.1, 0.1], [0.3, 0.4, 0.3])
    other = attending("x", 2, [0.5, 0.4, 0.1], [0.1, 0.8, 0.1])
    test = ATTENTION | {"most": "own"}
    assert outcome(test, [own]).verdict == "reproduced"
    assert outcome(test, [other]).verdict == "contradicted"
    assert outcome(test, [own, other]).here == "50 % of runs"
    assert outcome(test, [own, other]).verdict == "not distinguishable"
    assert outcome(ATTENTION | {"most": "other"}, [other]).verdict == "reproduced"
    assert outcome(ATTENTION | {"most": "other"}, [own]).verdict == "contradicted"


def test_targets_weigh_the_same_however_many_seeds(outcome):
    x = [attending("x", s, [0.8, 0.1, 0.1]) for s in (1, 2, 3)]
    y = [attending("y", 1, [0.8, 0.1, 0.1])]
    assert outcome(ATTENTION | {"most": "own"}, x + y).here == "50 % of runs"


def test_listed_adapters_compete_without_the_own(outcome):
    r = attending("rte", 1, [0.5, 0.3, 0.2], adapters=("rte", "mnli", "cb"))
    test = ATTENTION | {"most": "listed", "tasks": ("rte",)}
    assert outcome(test | {"listed": ("mnli",)}, [r]).verdict == "reproduced"
    assert outcome(test | {"listed": ("cb",)}, [r]).verdict == "contradicted"
    with pytest.raises(NotTested, match="not among the fused adapters: qqp"):
        outcome(test | {"listed": ("mnli", "qqp")}, [r])


def test_attention_without_a_choice_says_nothing(outcome):
    with pytest.raises(NotTested, match="no target has a choice"):
        outcome(ATTENTION | {"most": "own"}, [attending("x", 1, [1.0], adapters="x")])
    with pytest.raises(NotTested, match="no target has a choice"):
        outcome(ATTENTION | {"most": "own"}, [attending("w", 1, [0.5, 0.3, 0.2])])


def test_spread_of_the_last_layer(outcome):
    assert entropy(np.array([0.25] * 4)) == pytest.approx(1)
    assert entropy(np.array([1.0, 0, 0])) == 0
    assert entropy(np.array([0.5, 0.5, 0, 0])) == pytest.approx(0.5)
    test = {"kind": "spread", "method": "fusion_st", "share": 0.8}
    narrow, wide = [0.9, 0.05, 0.05], [0.3, 0.4, 0.3]
    result = outcome(test, [attending("x", 1, narrow, narrow, wide)])
    assert result.verdict == "reproduced"
    assert outcome(test, [attending("x", 1, narrow, wide, narrow)]).verdict == "contradicted"
    with pytest.raises(NotTested, match="but one adapter, or one layer"):
        outcome(test, [attending("x", 1, wide)])


def test_one_changed_bit_contradicts(outcome):
    test = {"kind": "frozen", "methods": ("st_adapter", "fusion_st")}
    records = both("x", "y")
    assert outcome(test, records).verdict == "reproduced"
    assert outcome(test, records).here == "4 of 4 runs"
    records[2]["frozen_sha256"] = {"before": "a", "after": "b"}
    assert outcome(test, records).verdict == "contradicted"
    assert outcome(test, records).here == "3 of 4 runs"
    records = both("x")
    records[0]["parameters"] = {"trainable": 1010, "frozen": 0}
    assert outcome(test, records).verdict == "contradicted"


def sized(**trained: int) -> list[dict]:
    return [record(m, "x", parameters={"trainable": n, "frozen": 1000}) for m, n in trained.items()]


def test_parameters_by_hand(outcome):
    """A head of 10: adapters of 30 and 60 on a backbone of 1000."""
    records = sized(head=10, st_adapter=40, st_adapter_houlsby=70)
    share = {"kind": "share", "method": "st_adapter", "head": "head"}
    assert outcome(share, records, tolerance=3.0).verdict == "reproduced"
    assert outcome(share, records, tolerance=3.0).here == "3.00 %"
    assert outcome(share, records, tolerance=2.9).verdict == "contradicted"
    ratio = {"kind": "ratio", "a": "st_adapter", "b": "st_adapter_houlsby", "head": "head"}
    assert outcome(ratio | {"value": 50.0}, records, tolerance=1.0).verdict == "reproduced"
    assert outcome(ratio | {"value": 52.0}, records, tolerance=1.0).verdict == "contradicted"


def test_time_per_epoch_by_hand(outcome):
    """Two epochs of 4 s against one of 2 s, and on the other target against one of 5 s."""
    test = {"kind": "time", "a": "fusion_st", "b": "st_adapter"}
    fast = record("st_adapter", "x", epochs=[{}], seconds={"train": 2.0})
    slow = record("st_adapter", "y", epochs=[{}], seconds={"train": 5.0})
    first = outcome(test, [record("fusion_st", "x"), fast])
    assert first.verdict == "reproduced" and first.interval["mean"] == 2
    second = outcome(test, [record("fusion_st", "y"), slow])
    assert second.verdict == "contradicted" and second.interval["mean"] == pytest.approx(0.8)
    records = [record("fusion_st", "x"), record("fusion_st", "y"), fast, slow]
    assert outcome(test, records).verdict == "not distinguishable"


def test_run_files_of_joint_runs_and_controls():
    joint = [record("mt_adapter", t, joint=["x", "y"]) for t in ("x", "y")]
    study = Study.of(config_of("x", "y"), [*joint, record("no_last", "x")], SIZES, REFERENCE)
    assert study.files(["mt_adapter"], ["x", "y"]) == [
        "results/minilm/runs/mt_adapter/joint/seed1/run.json"
    ]
    assert study.files(["no_last"], ["x"]) == [
        "results/minilm/runs/controls/no_last/x/seed1/run.json"
    ]


# ---- what the paper has for the same question


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fusion_st_over_st_adapter", "+1.28 on 16 tasks"),
        ("gain_without_largest", "+0.26 on 13 tasks"),
        ("gain_on_mrpc_rte_cb", "mrpc +5.13, rte +5.78, cb +6.07"),
        ("st_adapter_on_par_with_full", "+0.54 on 16 tasks"),
        ("mt_adapter_loses_csqa_mrpc", "csqa -5.58, mrpc -3.28"),
        ("fusion_mt_over_mt_adapter", "+1.26 on 16 tasks"),
        ("head_far_below_full", "+11.35 on 16 tasks"),
        # MNLI to Argument: -.04 .12 .35 -.86 -.03 -.13 .75 .64 .14 0; MRPC SICK RTE CB
        ("no_loss_on_large", "+0.09 on 10 tasks"),
        ("gains_on_small", "+4.52 on small, +0.09 on large tasks"),
        ("last_layer_spread_out", "heat maps, no numbers"),
    ],
)
def test_the_papers_own_number(name, text):
    _, entries = claims.load(ROOT / claims.FILE)
    claim = next(c for c in entries if c.id == name)
    study = Study.of(config_of("x"), [], SIZES, REFERENCE)
    assert claims.judge(study, claim)["paper"] == text


# ---- the ledger


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with the reference data, found by every path."""
    shutil.copytree(ROOT / "data" / "reference", tmp_path / "data" / "reference")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def by_id(ledger: dict) -> dict:
    return {c["id"]: c for c in ledger["claims"]}


def test_no_runs_at_all_leave_everything_untested(project):
    ledger = claims.evaluate(config_of("x", "y"), [])
    assert {c["verdict"] for c in ledger["claims"]} == {"not tested"}
    entry = by_id(ledger)["fusion_st_over_mt_adapter"]
    assert entry["evidence"] == "No runs of fusion_st, mt_adapter in this profile."
    assert entry["runs"] == [] and entry["interval"] is None
    assert "benchmark" in by_id(ledger)["cost_grows_with_adapters"]["evidence"]


def test_named_tasks_must_be_targets(project, monkeypatch):
    monkeypatch.setattr(evidence, "difference", lambda *a: np.ones((1, 10)))
    records = both("mrpc", "rte", attention={"adapters": ["mrpc", "rte"], "layers": [[0.5, 0.5]]})
    ledger = by_id(claims.evaluate(config_of("mrpc", "rte"), records))
    assert ledger["gain_without_largest"]["verdict"] == "not tested"
    assert ledger["gain_without_largest"]["evidence"] == ("Not among this profile's targets: cb.")
    assert ledger["fusion_st_over_st_adapter"]["verdict"] == "reproduced"
    assert ledger["backbone_unchanged"]["runs"] == [
        f"results/minilm/runs/{m}/{t}/seed1/run.json"
        for m in ("st_adapter", "fusion_st")
        for t in ("mrpc", "rte")
    ]


def test_missing_predictions_are_the_runs_error(project):
    with pytest.raises(RunError, match=r"predictions.parquet: missing. Run `dvc repro` first."):
        claims.evaluate(config_of("x"), both("x"))


def test_ledger_is_written_read_and_shown(project, monkeypatch):
    monkeypatch.setattr(evidence, "difference", lambda *a: np.ones((1, 10)))
    config = config_of("x", "y")
    with pytest.raises(RunError, match=r"results/minilm/claims.json: missing"):
        claims.read(config)
    attention = {"adapters": ["x", "y"], "layers": [[0.9, 0.1], [0.5, 0.5]]}
    written_ = claims.write(config, both("x", "y", attention=attention))
    ledger = claims.read(config)
    assert ledger == json.loads(json.dumps(written_))
    keys = ["id", "claim", "place", "paper", "here", "verdict", "evidence", "interval", "runs"]
    assert all(list(c) == keys for c in ledger["claims"])
    assert ledger["protocol"] == "held_out" and ledger["sizes"]["small"] == ["x", "y"]
    table = claims.table(ledger)
    assert list(table.columns) == ["claim", "place", "paper", "here", "verdict"]
    row = table.loc["fusion_st_over_st_adapter"]
    assert (row["here"], row["verdict"]) == ("+100.00 [+100.00, +100.00]", "reproduced")
    assert table.loc["fusion_st_over_full", "here"] == "–"
    # x attends to itself and y to x; an epoch of either method takes as long
    assert set(table.index[table["verdict"] == "not distinguishable"]) == {
        "small_attend_to_others",
        "fusion_trains_slower",
    }
    counts = {v: table["verdict"].tolist().count(v) for v in evidence.VERDICTS}
    assert ", ".join(f"{n} {v}" for v, n in counts.items()) in claims.summary(ledger)
    assert claims.evidence_list(ledger).count("\n") == len(table) - 1


COMMITTED = sorted((ROOT / "results").glob("*/claims.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=[p.parent.name for p in COMMITTED])
def test_committed_verdicts_name_runs_that_exist(path):
    ledger = json.loads(path.read_text(encoding="utf-8"))
    _, entries = claims.load(ROOT / claims.FILE)
    assert [c["id"] for c in ledger["claims"]] == [c.id for c in entries]
    for claim in ledger["claims"]:
        assert claim["verdict"] in evidence.VERDICTS
        assert bool(claim["runs"]) == (claim["verdict"] != "not tested"), claim["id"]
        assert all((ROOT / run).is_file() for run in claim["runs"])


def test_runs_of_this_repository_can_be_judged_as_far_as_they_go():
    """Without predictions, which are not in git: the claims that need run records alone."""
    config = load_config(ROOT / "profiles" / "minilm.yaml")
    study = Study.of(config, load_runs(config), SIZES, REFERENCE)
    _, entries = claims.load(ROOT / claims.FILE)
    for name in ("backbone_unchanged", "adapter_is_small"):
        claim = next(c for c in entries if c.id == name)
        entry = claims.judge(study, claim)
        assert entry["verdict"] == "reproduced"
        assert all((ROOT / run).is_file() for run in entry["runs"])
