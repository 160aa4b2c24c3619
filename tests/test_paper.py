"""The paper's tables, their audit, and the comparison with ours: numbers worked out by hand."""

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adapterfusion import audit, forensics, paper, tables
from adapterfusion.config import AdapterConfig, BackboneConfig, load_config

ROOT = Path(__file__).parents[1]
REFERENCE = paper.load(ROOT)
BERT, ROBERTA = "bert-base-uncased", "roberta-base"


# ---- the tables


def test_every_cell_of_the_tables_is_there_once():
    sizes = REFERENCE.groupby("table").size().to_dict()
    assert sizes == {1: 17 * 7, 3: 17 * 3, 4: 17 * 7}
    assert REFERENCE["mean"].between(30, 97).all()
    assert (REFERENCE.groupby("table")["transcriptions"].unique().map(list)).to_dict() == {
        1: [2],
        3: [1],
        4: [1],
    }


def test_doubtful_cells_are_marked():
    notes = REFERENCE[REFERENCE["note"] != ""]
    lost = notes[notes["note"].str.contains("std_not_recovered")]
    assert set(lost["method"]) == {"st_adapter_houlsby"} and set(lost["table"]) == {4}
    assert list(lost["task"]) == ["sst2", "cosmosqa", "argument", "csqa", "mrpc", "rte", "cb"]
    assert lost["std"].isna().all()
    uncertified = notes[notes["note"].str.contains("not_certified_by_mean")]
    assert set(zip(uncertified["table"], uncertified["task"], strict=True)) == {(4, "argument")}
    assert len(uncertified) == 7


def test_wide_keeps_the_order_of_the_table():
    cells = paper.wide(REFERENCE, 1)
    assert list(cells.index[:3]) == ["mnli", "qqp", "sst2"] and cells.index[-1] == "cb"
    assert cells.loc["mrpc", "fusion_st"] == 90.29
    assert paper.wide(REFERENCE, 1, "std").loc["cb", "st_adapter"] == 3.87


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(ROOT / "data" / "reference", tmp_path / "data" / "reference")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table,backbone", "tables,backbone", "columns must be table, backbone"),
        (",cb,head,", ",cbb,head,", "unknown task cbb"),
        (",cb,head,", ",cb,heads,", "unknown method heads"),
        (",cb,full,", ",cb,head,", "twice"),
    ],
)
def test_a_spoilt_table_is_refused_by_name(copy, old, new, message):
    path = copy / "data" / "reference" / "paper_tables.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(paper.PaperError, match=message) as error:
        paper.load(copy)
    assert str(error.value).startswith("data/reference/paper_tables.csv: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,", "name,", "columns must be id"),
        (",improved,", ",better,", "unknown measure 'better'"),
    ],
)
def test_a_spoilt_list_of_statements_is_refused_by_name(copy, old, new, message):
    path = copy / "data" / "reference" / "paper_prose.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(paper.PaperError, match=message):
        audit.prose(REFERENCE, copy)


# ---- the audit


@pytest.mark.parametrize(
    ("printed", "value", "same"),
    [
        ("1.27", 1.2756, True),  # cut off
        ("1.28", 1.2756, True),  # rounded
        ("1.26", 1.2756, False),
        ("1.29", 1.2756, False),
        ("75.80", 75.805, True),
        ("0.66", 0.536, False),
        ("-0.5", -0.54, True),
        ("10", 10.4, True),
        ("10", 11.35, False),
    ],
)
def test_a_printed_number_may_be_rounded_or_cut_off(printed, value, same):
    assert audit.same_printed(printed, value) is same


def test_means_of_table_4_leave_argument_out():
    means = audit.means(REFERENCE)
    by_table = means.groupby("table")[["all_agrees", "without_argument_agrees"]].sum()
    assert by_table.loc[1].tolist() == [7, 0]
    assert by_table.loc[3].tolist() == [3, 0]
    # ST-A with reduction 2 is 78.63 either way
    assert by_table.loc[4].tolist() == [1, 7]
    over_all = means[means["table"] == 4]["all"].round(2).tolist()
    assert over_all == [58.56, 80.89, 78.63, 80.68, 79.46, 81.19, 81.01]


def test_a_misread_cell_would_show_in_the_means():
    spoilt = REFERENCE.copy()
    cell = (spoilt["table"] == 1) & (spoilt["task"] == "cb") & (spoilt["method"] == "full")
    spoilt.loc[cell, "mean"] += 0.3
    means = audit.means(spoilt).query("table == 1").set_index("method")
    assert not means.loc["full", "all_agrees"] and means["all_agrees"].sum() == 6


def test_table_2_recomputed():
    arrows = audit.arrows(REFERENCE).set_index(["a", "b"])
    expected = {
        ("fusion_st", "st_adapter"): (9, 6, 1, 1.28),
        ("fusion_st", "mt_adapter"): (10, 1, 5, 1.52),
        ("fusion_mt", "st_adapter"): (7, 2, 7, 1.01),
        ("fusion_mt", "mt_adapter"): (14, 2, 0, 1.26),
        ("fusion_st", "full"): (8, 7, 1, 1.81),
        ("fusion_mt", "full"): (8, 1, 7, 1.54),
        ("st_adapter", "full"): (6, 6, 4, 0.54),
        ("mt_adapter", "full"): (5, 2, 9, 0.29),
    }
    for pair, (improved, same, worse, mean) in expected.items():
        row = arrows.loc[pair]
        assert (row["improved"], row["same"], row["worse"]) == (improved, same, worse)
        assert row["mean"] == pytest.approx(mean, abs=0.0051)
    assert arrows.loc[("fusion_st", "st_adapter"), "worse_on"] == "winogrande"
    assert arrows.loc[("fusion_st", "mt_adapter"), "worse_on"] == (
        "cosmosqa, scitail, boolq, sick, rte"
    )


def test_a_difference_of_the_threshold_itself_is_no_change():
    cells = REFERENCE.copy()
    for task, mean in (("mnli", 84.02), ("qqp", 90.89), ("sst2", 91.54)):  # -0.30, +0.30, -0.31
        cell = (cells["table"] == 1) & (cells["task"] == task) & (cells["method"] == "fusion_st")
        cells.loc[cell, "mean"] = mean
    (row,) = audit.arrows(cells, 1, [("fusion_st", "st_adapter")]).to_dict("records")
    assert (row["improved"], row["same"], row["worse"]) == (8, 6, 2)
    assert row["worse_on"] == "sst2, winogrande"


def test_the_same_for_roberta():
    (row,) = audit.arrows(REFERENCE, 4, [("fusion_st", "st_adapter_r16")]).to_dict("records")
    assert (row["improved"], row["same"], row["worse"]) == (5, 10, 1)
    assert row["worse_on"] == "argument"
    assert row["mean"] == pytest.approx(0.51, abs=0.005)


def test_prose_against_table():
    table = audit.prose(REFERENCE, ROOT).set_index("id")
    recomputed = {
        "st_adapter_over_full": 0.54,
        "mt_adapter_over_full": 0.29,
        "full_over_head": 11.35,
        "fusion_st_gain": 1.28,
        "fusion_mt_gain": 1.26,
        "fusion_st_gain_rte": 5.78,
        "fusion_st_gain_mrpc": 5.13,
        "fusion_st_improved_st": 9,
        "fusion_st_improved_mt": 10,
        "fusion_mt_improved_st": 7,
        "fusion_mt_improved_mt": 14,
        "fusion_st_not_worse": 15,
        "fusion_mt_not_worse": 16,
    }
    for name, value in recomputed.items():
        assert float(table.loc[name, "recomputed"]) == pytest.approx(value, abs=0.0051), name
    assert set(table.index[~table["agrees"]]) == {
        "st_adapter_over_full",
        "mt_adapter_over_full",
        "full_over_head",
        "fusion_st_gain_rte",
        "fusion_st_gain_mrpc",
        "fusion_st_improved_st",
        "fusion_st_improved_mt",
    }
    loses = table.loc["mt_adapter_loses"]
    assert (loses["printed"], loses["recomputed"]) == (
        "csqa, mrpc",
        "csqa, hellaswag, mrpc, winogrande",
    )


def test_what_the_headline_rests_on():
    table = audit.rests_on(REFERENCE).set_index("tasks").round(2)
    expected = [63.42, 75.02, 74.97, 74.18, 75.23, 75.27, 75.17]
    assert table.loc[13].drop("gain").tolist() == expected
    assert table["gain"].to_dict() == {16: 1.28, 15: 1.02, 14: 0.61, 13: 0.26}
    roberta = audit.rests_on(REFERENCE, 4).set_index("tasks")["gain"].round(2)
    assert roberta[[16, 14, 13]].tolist() == [0.51, 0.08, 0.02]


def test_sentences_carry_the_numbers():
    text = audit.rests_on_text(REFERENCE)
    assert "+1.28 points on the mean of 16 tasks, and +0.26 on the 13" in text
    # 5.13 + 5.78 + 6.07 of 20.41
    assert "carry 83 %" in text
    assert "+0.02" in text
    assert "all the mean of all but Argument" in audit.means_text(audit.means(REFERENCE))
    assert audit.prose_text(audit.prose(REFERENCE, ROOT)).startswith("7 of 14")


def test_welch_t():
    table = audit.welch(REFERENCE)
    expected = {
        "mrpc": 11.6, "socialiqa": 6.4, "rte": 5.5, "cb": 3.4, "cosmosqa": 2.6, "sick": 2.4,
        "csqa": 2.3, "sst2": 1.7, "scitail": 1.1, "boolq": 1.0, "argument": 0, "imdb": -0.2,
        "hellaswag": -2.1, "winogrande": -5.8,
    }  # fmt: skip
    assert table["t"].round(1).to_dict() == expected
    assert list(table.index) == list(expected)
    # SICK's ST-A has no spread at all, so only the other's degrees of freedom count
    assert table.loc["sick", "df"] == pytest.approx(4)
    few = audit.welch(REFERENCE, runs=2)
    assert few.loc["mrpc", "t"] == pytest.approx(table.loc["mrpc", "t"] * math.sqrt(2 / 5))


def test_readable_speaks_in_titles():
    table = audit.readable(audit.arrows(REFERENCE))
    assert table.loc[0, ["a", "b", "worse on"]].tolist() == [
        "Fusion w/ ST-A",
        "ST-A",
        "WinoGrande",
    ]
    assert table.loc[0, "mean"] == "1.28"
    assert "MRPC, RTE, CB" in audit.readable(audit.rests_on(REFERENCE)).index
    assert audit.readable(audit.means(REFERENCE)).loc[0, "all agrees"] == "yes"
    assert audit.readable(audit.welch(REFERENCE)).loc["MRPC", "p"] == "< 0.001"


def test_figure_of_gains_holds_both_tables():
    _, data = audit.gains(REFERENCE)
    assert len(data) == 32
    cb = data[(data["table"] == 1) & (data["task"] == "cb")].iloc[0]
    assert cb["difference"] == pytest.approx(6.07)
    assert cb["spread"] == pytest.approx(math.hypot(0.97, 3.87))
    assert data["train_rows"].iloc[:16].is_monotonic_decreasing


# ---- how many runs


@pytest.mark.parametrize(("rows", "runs"), [(7, 2), (10, 3), (5, 4)])
def test_fits_accepts_what_counts_can_give_and_nothing_else(rows, runs):
    """Against all tuples of counts there are."""
    printable = set()
    for counts in itertools.combinations_with_replacement(range(rows + 1), runs):
        scores = 100 * np.array(counts) / rows
        printable.add((scores.mean(), scores.std(ddof=1)))
    for mean, std in printable:
        assert forensics.fits(round(mean, 2), round(std, 2), rows, runs)
        assert forensics.fits(math.floor(100 * mean) / 100, math.floor(100 * std) / 100, rows, runs)
    known = np.array(sorted(printable))
    rng = np.random.default_rng(0)
    near_misses = known[rng.integers(len(known), size=300)] + rng.uniform(-0.03, 0.03, (300, 2))
    found = []
    for mean, std in near_misses.round(2):
        if std < 0:
            continue
        near = (known >= (mean - 0.005 - 1e-6, std - 0.005 - 1e-6)).all(axis=1)
        near &= (known <= (mean + 0.01 + 1e-6, std + 0.01 + 1e-6)).all(axis=1)
        found.append(near.any())
        assert forensics.fits(mean, std, rows, runs) == found[-1]
    assert 20 < sum(found) < len(found) - 20  # both answers were put to the test


def test_run_counts_of_the_small_tasks():
    table = forensics.run_counts(REFERENCE).set_index(["task", "rows", "backbone", "runs"])

    def fit(task, rows, backbone, runs):
        row = table.loc[(task, rows, backbone, runs)]
        return row["fit"], row["cells"]

    assert fit("cb", 56, BERT, 5) == (6, 7)
    assert table.loc[("cb", 56, BERT, 5), "unfit"] == "st_adapter_r2"
    assert fit("cb", 56, ROBERTA, 5) == (6, 6)
    assert fit("rte", 277, BERT, 5) == (7, 7)
    assert fit("rte", 277, ROBERTA, 5) == (3, 6)
    assert all(fit("rte", 277, b, k)[0] <= 2 for b in (BERT, ROBERTA) for k in (2, 3, 4))
    assert fit("mrpc", 408, BERT, 5) == (6, 7)
    assert table.loc[("mrpc", 408, BERT, 5), "unfit"] == "st_adapter"
    assert fit("mrpc", 408, ROBERTA, 5) == (5, 5)
    assert all(fit("mrpc", 408, BERT, k)[0] == 0 for k in (2, 3, 4))
    # SICK: two runs on 500 rows for the baselines, five for fusion and Houlsby
    assert table.loc[("sick", 500, BERT, 2), "unfit"] == "fusion_st, st_adapter_houlsby"
    assert table.loc[("sick", 500, BERT, 5), "unfit"] == (
        "head, full, st_adapter_r2, st_adapter_r64"
    )
    assert fit("sick", 495, BERT, 2)[0] == 0
    chances = table["chance"].xs(BERT, level="backbone")
    assert chances[("cb", 56, 5)] < 0.003
    assert chances[("rte", 277, 5)] == pytest.approx(0.16, abs=0.01)
    assert chances[("mrpc", 408, 5)] == pytest.approx(0.28, abs=0.01)
    assert chances[("sick", 500, 2)] == pytest.approx(0.01, abs=0.004)


def test_other_marks_of_the_number_of_runs():
    steps = forensics.steps_of_two_runs(REFERENCE)
    assert {steps[m] for m in ("st_adapter", "st_adapter_r64", "full", "st_adapter_r2")} == {
        1, 2, 3, 4
    }  # fmt: skip
    assert "head" not in steps and "fusion_st" not in steps
    assert forensics.joint_text(REFERENCE).endswith("MT-A: none; Fusion w/ MT-A: none.")


# ---- beside our numbers


def record(method: str, task: str, seed: int, accuracy: float, **data) -> dict:
    facts = {
        "title": task.upper(),
        "rows": {"train": 250, "dev": 56},
        "official_split": {"train": True, "dev": True},
        "capped": {"train": False, "dev": False},
        "metrics": ["accuracy"],
    }
    # the held-out score must not be the one that is compared
    metrics = {"held_out": {"accuracy": 0.1}, "paper": {"accuracy": accuracy}}
    return {
        "method": method, "task": task, "seed": seed, "data": facts | data, "metrics": metrics
    }  # fmt: skip


def config_of(backbone: str = BERT, **changes):
    config = load_config(ROOT / "profiles" / "minilm.yaml")
    return dataclasses.replace(config, backbone=BackboneConfig(backbone), **changes)


def test_comparison_by_hand():
    records = [record("fusion_st", "cb", s, a) for s, a in ((1, 0.90), (2, 0.94))]
    records += [record("full", "cb", 1, 0.70), record("st_adapter", "mnli", 1, 0.84)]
    records += [record("head", "recommend", 1, 0.5)]
    table, text = paper.comparison(config_of(), records, REFERENCE)
    assert table.loc["CB"].to_dict("records") == [
        {
            "method": "Fusion w/ ST-A",
            "paper": "92.14 ± 0.97",
            "ours": "92.00 ± 2.83",
            "Δ": "-0.14",
            "seeds": 2,
            "verdict": "alike",
        },
        {
            # 12.49 below, and twice the paper's spread is 4.66
            "method": "Full fine-tuning",
            "paper": "82.49 ± 2.33",
            "ours": "70.00",
            "Δ": "-12.49",
            "seeds": 1,
            "verdict": "lower",
        },
    ]
    assert table.loc["MNLI", ["paper", "Δ", "verdict"]].tolist() == [
        "84.32",
        "-0.32",
        "no spread known",
    ]
    assert len(table) == 3
    assert "10 % of each training set are held out" in text


def test_only_whole_official_data_are_compared():
    capped = record("full", "cb", 1, 0.8, capped={"train": True, "dev": False})
    unofficial = record("full", "rte", 1, 0.6, official_split={"train": True, "dev": False})
    table, text = paper.comparison(config_of(), [capped, unofficial], REFERENCE)
    assert table.empty and "cb: rows capped; rte: not the official split" in text
    table, text = paper.comparison(
        config_of(), [capped, unofficial, record("full", "sick", 1, 0.87)], REFERENCE
    )
    assert list(table.index) == ["SICK"] and "Left out" in text and "cb (rows capped)" in text
    assert text.endswith("ours has 56.")  # what the made-up record says


def test_notes_name_each_task_once_and_in_order():
    capped = {"train": True, "dev": False}
    records = [record("full", "rte", s, 0.6, capped=capped) for s in (1, 2)]
    records += [record("full", "cb", 1, 0.8), record("full", "sick", 1, 0.8, capped=capped)]
    records += [record("head", "mnli", 1, 0.4, official_split={"train": True, "dev": False})]
    assert tables.noted(records) == "rows capped (RTE, SICK); not the official split (MNLI)"
    assert tables.noted(records[2:3]) == ""
    assert list(tables.by_task(records)) == ["rte", "cb", "sick", "mnli"]
    assert tables.by_task(records)["rte"]["seed"] == 1


def test_another_backbone_corresponds_to_nothing():
    records = [record("full", "cb", 1, 0.8)]
    table, text = paper.comparison(config_of("some/bert-large"), records, REFERENCE)
    assert table.empty and "some/bert-large" in text
    table, _ = paper.comparison(config_of("google-bert/bert-base-uncased"), records, REFERENCE)
    assert len(table) == 1
    table, _ = paper.comparison(config_of("FacebookAI/roberta-base"), records, REFERENCE)
    assert table["paper"].tolist() == ["90.00 ± 1.60"]


@pytest.mark.parametrize(
    ("backbone", "reduction", "cells"),
    [
        (BERT, 16, {"ST-A": "86.07 ± 3.87", "Fusion w/ ST-A": "92.14 ± 0.97"}),
        (BERT, 2, {"ST-A": "87.85 ± 2.94"}),
        (BERT, 8, {}),
        (ROBERTA, 16, {"ST-A": "89.28 ± 2.82", "Fusion w/ ST-A": "92.86 ± 3.79"}),
        (ROBERTA, 64, {"ST-A": "81.07 ± 4.82"}),
    ],
)
def test_the_adapter_must_be_the_papers(backbone, reduction, cells):
    config = config_of(backbone, adapter=AdapterConfig(reduction=reduction))
    records = [record(m, "cb", 1, 0.85) for m in ("st_adapter", "fusion_st")]
    table, text = paper.comparison(config, records, REFERENCE)
    assert dict(zip(table["method"], table["paper"], strict=True)) == cells
    assert bool(cells) != text.startswith("Nothing here corresponds")


def test_nothing_is_compared_for_tasks_of_our_own():
    table, text = paper.comparison(config_of(), [record("full", "own", 1, 0.8)], REFERENCE)
    assert table.empty and "none of this profile's tasks is the paper's" in text
    assert isinstance(table, pd.DataFrame)


# ---- what others measured


def test_gains_elsewhere_stand_beside_the_papers(monkeypatch):
    rows = np.repeat([1.0, 0.0], [5, 95])[None]  # five rows of a hundred gained, one seed
    monkeypatch.setattr(paper, "differences", lambda config, a, b: {"rte": rows})
    config = load_config(ROOT / "profiles" / "minilm.yaml")
    table = paper.gains_elsewhere(config, ROOT)
    printed, *reruns, ours = table.columns
    assert len(table) == 16 and len(reruns) == 2
    assert table.loc["rte", printed] == "+5.78"  # 76.82 - 71.04
    assert table.loc["cb", reruns].tolist() == ["", "-2.50"]  # 82.32 - 84.82
    assert ours.startswith("here, all-MiniLM-L6-v2")
    assert table.loc["rte", ours].startswith("+5.00 [")
    assert (table[ours] != "").sum() == 1


def test_gains_elsewhere_of_other_tasks_have_no_column_of_ours(monkeypatch):
    monkeypatch.setattr(paper, "differences", lambda config, a, b: {"kinds": np.zeros((1, 9))})
    table = paper.gains_elsewhere(load_config(ROOT / "profiles" / "bundled.yaml"), ROOT)
    assert not any(column.startswith("here") for column in table.columns)
