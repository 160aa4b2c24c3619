"""The sentences of the verdict, on made-up differences whose outcome is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapterfusion import comparisons, findings

POINTS = {"big": 0, "rte": 20, "cb": -20, "mrpc": 30}
AGAINST = {"st_adapter": 1, "full": 1, "sequential": -1, "multitask_full": 0, "own_only": 2}


@pytest.fixture
def config(monkeypatch):
    """fusion_st minus another method is POINTS, times the method's factor in AGAINST."""

    def rows(points: float) -> np.ndarray:
        row = np.zeros(200)
        row[: int(abs(points) * 2)] = np.sign(points)
        return np.tile(row, (3, 1))

    def differences(config, a, b):
        tasks = config.sequential if b == "sequential" else POINTS
        factor = -AGAINST[a] if b == "fusion_st" else AGAINST[b]
        return {task: rows(factor * POINTS[task]) for task in tasks}

    monkeypatch.setattr(comparisons, "differences", differences)
    monkeypatch.setattr(findings, "absent", lambda config, task: None)
    return SimpleNamespace(
        methods=["full", "st_adapter", "fusion_st", "sequential", "multitask_full"],
        sequential={"rte": "mnli", "cb": "mnli"},
        controls=["own_only"],
        control_targets=["rte", "cb"],
        data=SimpleNamespace(validation=0.1),
    )


def test_verdict_says_what_over_what_where_and_by_what(config):
    lines = findings.verdict(config).splitlines()
    assert lines[0].startswith("- **Fusion of ST-A against ST-A**: +7.50 [")
    assert "(higher; higher on 2, lower on 1, not distinguishable on 1)" in lines[0]
    assert lines[1].startswith("- **Fusion of ST-A against Full fine-tuning**: +7.50 [")
    assert lines[2].startswith("- **Where it gains over ST-A**: +0.00 [")
    assert "on rte, cb, +15.00 [" in lines[2] and "on the other 2" in lines[2]
    assert "Most on mrpc (+30.00, higher), least on cb (-20.00, lower)" in lines[2]
    assert lines[3].startswith("- **Fusion of ST-A against Sequential** after mnli: +0.00 [")
    assert "on 2 targets" in lines[3]
    assert lines[4].startswith("- **Fusion of ST-A against Multi-task**: +0.00 [+0.00, +0.00]")
    assert lines[5].startswith("- **What it is made of**: on rte, cb, against fusion, Own adapter")


def test_longer_training_is_held_against_longer_training_and_st_adapter(config, monkeypatch):
    monkeypatch.setitem(AGAINST, "own_longer", 0)
    monkeypatch.setitem(AGAINST, "st_longer", 3)
    monkeypatch.setitem(AGAINST, "longer", 0)
    assert "longer" not in findings.verdict(config)
    config.controls = ["longer", "st_longer", "own_longer"]
    line = findings.verdict(config).splitlines()[6]
    assert line.startswith("- **Fusion trained longer**: +7.50 [")
    assert "over ST-A: big (+0.00, not distinguishable), rte (+20.00, higher), cb (-20" in line
    assert "over ST-A trained longer: big (" in line
    assert "+0.00 [+0.00, +0.00] over Own adapter only, longer: big (+0.00, not" in line
    config.controls = ["longer"]
    (line,) = (line for line in findings.verdict(config).splitlines() if "**Fusion trained" in line)
    assert line.count("over") == 1


def test_longer_table_holds_it_against_what_had_as_long_and_against_st_adapter(config, monkeypatch):
    monkeypatch.setitem(AGAINST, "own_longer", 0)
    config.controls = ["longer", "own_longer"]
    table = findings.longer_table(config)
    assert table.loc[("minus Own adapter only, longer", "mean"), "difference"] == "+0.00"
    assert table.loc[("minus ST-A", "mean"), "difference"] == "+7.50"
    assert table.loc[("minus ST-A", "cb"), "difference"] == "-20.00"


def test_verdict_without_controls_and_other_methods(config):
    config.methods, config.controls, config.control_targets = ["full", "st_adapter"], [], []
    lines = findings.verdict(config).splitlines()
    assert len([line for line in lines if line.startswith("-")]) == 2


def test_seed_spread_table_pools_the_spread_of_targets(monkeypatch):
    """Accuracies of 50, 52 and 54 % spread by 2 points, equal ones by none: together sqrt(2)."""

    def correctness(config, name, task, protocol):
        right = {"moves": (50, 52, 54), "rests": (50, 50, 50)}[task]
        return np.array([[i < n for i in range(100)] for n in right])

    monkeypatch.setattr(findings, "correctness", correctness)
    monkeypatch.setattr(findings, "absent", lambda config, task: None)
    config = SimpleNamespace(
        methods=["st_adapter", "fusion_st"],
        controls=["own_only"],
        control_targets=["moves", "rests"],
        data=SimpleNamespace(validation=0.1),
    )
    table = findings.seed_spread_table(config)
    assert table.index.get_level_values("method").tolist() == ["ST-A", "Fusion w/ ST-A", "any"]
    assert table.loc["ST-A"].iloc[0].tolist() == [2.0, 0.0, pytest.approx(np.sqrt(2), abs=0.005)]
    assert table.loc["any"].iloc[0]["rests"] == pytest.approx(5.0)
    config.controls = ["one_seed"]
    assert "Adapters of one seed" in findings.seed_spread_table(config).index.get_level_values(
        "method"
    )
