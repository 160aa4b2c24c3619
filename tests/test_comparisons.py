"""Comparisons and the transfer-graph test on made-up runs whose outcome is known."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from adapterfusion import comparisons
from adapterfusion.stats import bootstrap

CONFIG = SimpleNamespace(data=SimpleNamespace(validation=0.2))
ROWS = 200


def shift(points: int, rows: int = ROWS, seeds: int = 2) -> np.ndarray:
    """A difference of `points` per cent: so many rows gained (or lost), the others equal."""
    row = np.zeros(rows)
    row[: abs(points) * rows // 100] = np.sign(points)
    return np.tile(row, (seeds, 1))


@pytest.fixture
def study(monkeypatch):
    """A function that sets the differences: (a, b) -> task -> array, and so which methods ran where."""

    def install(table: dict[tuple[str, str], dict[str, np.ndarray]], targets: list[str]) -> None:
        ran = {m: set() for pair in table for m in pair} | {"fusion_st": set(targets)}
        for pair, tasks in table.items():
            for method in pair:
                ran[method] |= set(tasks)
        monkeypatch.setattr(
            comparisons, "tasks_of", lambda _, method: [t for t in targets if t in ran[method]]
        )
        monkeypatch.setattr(
            comparisons, "difference", lambda _, a, b, task, protocol: table[(a, b)][task]
        )

    return install


def test_per_task_corrects_over_the_tasks(study):
    """13 gained rows of 200 have p = 0.0003; 5 have p = 0.025, of which Holm's correction makes 0.1."""
    points = {"a": 6.5, "b": 2.5, "c": 2.5, "d": 2.5, "e": -6.5}
    of = {
        t: np.repeat([np.sign(p), 0], [abs(p) * 2, ROWS - abs(p) * 2])[None]
        for t, p in points.items()
    }
    table = comparisons.per_task(of)
    assert table["difference"].to_dict() == pytest.approx(points)
    assert table["verdict"].tolist() == ["higher"] + ["not distinguishable"] * 3 + ["lower"]
    assert (table["p"] < 0.05).all()  # each alone would do
    assert table.loc["b", "p_holm"] == pytest.approx(3 * table.loc["b", "p"])
    interval = bootstrap([of["b"]])
    assert table.loc["b", ["low", "high"]].tolist() == [interval.low, interval.high]


def test_comparison_table_counts_and_leaves_tasks_out(study):
    of = {
        "big": shift(0),
        "rte": shift(20),
        "cb": shift(-20),
        "mrpc": shift(30),
        "only_a": shift(9),
    }
    study(
        {
            ("a", "b"): {k: v for k, v in of.items() if k != "only_a"},
            ("a", "c"): {"only_a": of["only_a"]},
        },
        list(of),
    )
    table = comparisons.comparison_table(CONFIG, [("a", "b")], without=("mrpc", "rte", "absent"))
    assert table["targets"].tolist() == ["all", "without rte, mrpc"]
    whole, part = table.to_dict("records")
    assert (whole["tasks"], part["tasks"]) == (4, 2)  # b was not run on only_a
    assert whole["difference"] == pytest.approx((0 + 20 - 20 + 30) / 4)
    assert part["difference"] == pytest.approx((0 - 20) / 2)
    assert (whole["higher"], whole["lower"], whole["not distinguishable"]) == (2, 1, 1)
    assert (whole["higher_on"], whole["lower_on"], part["higher_on"]) == ("rte, mrpc", "cb", "")
    assert (whole["verdict"], part["verdict"]) == ("higher", "lower")
    assert whole["low"] < whole["difference"] < whole["high"]
    # 20, -20 and 30: ranks 1.5, 1.5, 3; W = 1.5, and sums up to 1.5 are 0, 1.5, 1.5 of 8 outcomes
    assert whole["wilcoxon_p"] == pytest.approx(2 * 3 / 8)
    assert (whole["wilcoxon_tasks"], whole["too_few"]) == (3, True)


def test_nothing_left_out_gives_one_row(study):
    study({("a", "b"): {"x": shift(5)}}, ["x"])
    assert len(comparisons.comparison_table(CONFIG, [("a", "b")], without=("y",))) == 1
    assert len(comparisons.comparison_table(CONFIG, [("a", "b")], without=("x",))) == 1


def test_readable(study):
    study({("fusion_st", "st_adapter"): {"x": shift(5), "y": shift(-1)}}, ["x", "y"])
    table = comparisons.comparison_table(CONFIG, [("fusion_st", "st_adapter")])
    row = comparisons.readable(table).loc["Fusion w/ ST-A − ST-A"]
    assert row["targets"] == "all: 2"
    assert row["difference"] == "+2.00"
    assert row["95 % interval"].startswith("[+")
    assert row["Wilcoxon p"] == "1.000 (too few)"


def test_against_has_the_mean_and_every_task(study):
    of = {"x": shift(-10), "y": shift(0)}
    study({("frozen_value", "fusion_st"): of}, ["x", "y"])
    table = comparisons.against(CONFIG, ["frozen_value"])
    assert table["task"].tolist() == ["mean", "x", "y"]
    assert table["difference"].tolist() == pytest.approx([-5, -10, 0])
    assert (table["control"] == "frozen_value").all()
    assert table.loc[0, "low"] == bootstrap(list(of.values())).low


# ---- the transfer graph ----

GRAPH = {
    "small": {"needs": ["words"], "helps": ["good"], "hurts": ["bad"], "tempting": {"near": "why"}},
    "both": {"needs": ["words"], "helps": ["good", "bad"], "hurts": [], "tempting": {}},
    "alone": {"needs": ["other"], "helps": [], "hurts": [], "tempting": {}},
}
ADAPTERS = ["good", "bad", "near", "small", "both", "alone"]


def fused(task: str, *by_seed: list[list[float]]) -> list[dict]:
    return [
        {
            "method": "fusion_st",
            "task": task,
            "seed": seed,
            "attention": {"adapters": ADAPTERS, "layers": layers},
        }
        for seed, layers in enumerate(by_seed)
    ]


RECORDS = [
    # two layers, two seeds; good has 0.3 and 0.5, then 0.1 and 0.1; own (small) more than all
    *fused(
        "small",
        [[0.3, 0.1, 0.1, 0.5, 0, 0], [0.5, 0.1, 0.0, 0.4, 0, 0]],
        [[0.1, 0.3, 0.0, 0.6, 0, 0], [0.1, 0.0, 0.3, 0.6, 0, 0]],
    ),
    *fused("both", [[0.3, 0.0, 0.4, 0.1, 0.2, 0]]),
    *fused("alone", [[0.1, 0.1, 0.1, 0.1, 0.1, 0.5]]),
    *({"method": m, "task": t} for m in ("st_adapter", "multitask_full") for t in GRAPH),
]


def test_attention_roles_by_hand():
    table = comparisons.attention_roles(GRAPH, RECORDS).set_index(["target", "adapter"])
    small = table.loc["small"]
    assert small["role"].tolist() == ["helps", "hurts", "tempting", "own", "other", "other"]
    assert small.loc["good", "attention"] == pytest.approx((0.3 + 0.5 + 0.1 + 0.1) / 4)
    assert small.loc["good", "layer_max"] == pytest.approx(0.3)  # layers: 0.2 and 0.3
    assert small["rank"].tolist()[:3] == [1, 2, 3]  # 0.25, 0.125, 0.1
    assert np.isnan(small.loc["small", "rank"])  # the most attended of all, and no competitor
    # first seed 0.4 is first; second seed 0.1 is behind 0.15 and 0.15
    assert (small.loc["good", "seeds_first"], small.loc["good", "seeds"]) == (1, 2)
    assert table.loc[("both", "near"), "rank"] == 1
    assert table.loc[("both", "good"), "seeds_first"] == 1  # second, and two sources help


def graph_table(study, small: int, both: int, alone: int, multitask: int) -> pd.DataFrame:
    points = {"small": small, "both": both, "alone": alone}
    study(
        {
            ("fusion_st", "st_adapter"): {t: shift(p) for t, p in points.items()},
            ("multitask_full", "st_adapter"): {t: shift(multitask) for t in points},
        },
        list(GRAPH),
    )
    return comparisons.transfer_graph_test(CONFIG, GRAPH, RECORDS).set_index(
        ["target", "expectation", "source", "method"]
    )


def test_all_as_designed_but_one_source(study):
    table = graph_table(study, small=20, both=15, alone=0, multitask=-10)
    outcome = table["outcome"].to_dict()
    assert outcome == {
        ("small", "helped", "good", "fusion_st"): "as designed",
        ("small", "attended", "good", "fusion_st"): "as designed",
        ("small", "hurt", "bad", "multitask_full"): "as designed",
        ("small", "hurt", "bad", "mt_adapter"): "not tested",
        ("small", "not hurt", "bad", "fusion_st"): "as designed",
        ("both", "helped", "good, bad", "fusion_st"): "as designed",
        ("both", "attended", "good", "fusion_st"): "as designed",
        ("both", "attended", "bad", "fusion_st"): "not as designed",
        ("alone", "nothing helps", "", "fusion_st"): "as designed",
    }
    helped = table.loc[("small", "helped", "good", "fusion_st")]
    assert helped["difference"] == pytest.approx(20)
    assert helped["verdict"].startswith("Fusion w/ ST-A gains over ST-A on small: +20.0 points [")
    attended = table.loc[("small", "attended", "good", "fusion_st")]
    assert (attended["rank"], attended["attention"]) == (1, pytest.approx(0.25))
    assert attended["verdict"].endswith("up to 0.30 in a layer; first in 1 of 2 seeds.")


def test_nothing_as_designed(study):
    table = graph_table(study, small=-20, both=0, alone=15, multitask=10)["outcome"]
    assert table[("small", "helped", "good", "fusion_st")] == "not as designed"
    assert table[("small", "hurt", "bad", "multitask_full")] == "not as designed"
    assert table[("small", "not hurt", "bad", "fusion_st")] == "not as designed"
    assert table[("both", "helped", "good, bad", "fusion_st")] == "not distinguishable"
    assert table[("alone", "nothing helps", "", "fusion_st")] == "not as designed"


def test_without_records_nothing_is_tested(study):
    study({("fusion_st", "st_adapter"): {t: shift(1) for t in GRAPH}}, list(GRAPH))
    table = comparisons.transfer_graph_test(CONFIG, GRAPH, [])
    assert (table["outcome"] == "not tested").all()
    assert len(table) == 9


def test_graph_verdict_counts(study):
    table = graph_table(study, small=20, both=0, alone=0, multitask=-10).reset_index()
    lines = comparisons.graph_verdict(table).splitlines()
    assert lines[0].endswith("in 1 of 2 cases, 1 not distinguishable.")
    assert lines[1].endswith("in 2 of 3 cases, 1 not as designed.")
    assert lines[2].endswith("in 1 of 2 cases, 1 not tested.")
    assert len(lines) == 5


def test_comparisons_and_statistics_need_no_torch():
    code = "import sys, adapterfusion.comparisons; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
