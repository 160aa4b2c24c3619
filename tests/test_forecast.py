"""The forecast: one run by hand, a row per method, and no download for backbones it knows."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from conftest import write_task
from test_plans import VALUES

from adapterfusion import forecast as module
from adapterfusion.config import BackboneConfig, parse_config
from adapterfusion.forecast import KNOWN, Size, backbone_size, flops, forecast, rows_and_tokens
from adapterfusion.launch import workers
from adapterfusion.methods import studied
from adapterfusion.paths import Paths
from adapterfusion.plans import RunName, study
from adapterfusion.spec import JOINT

ROOT = Path(__file__).parents[1]
TOKENS = {  # rows, tokens
    ("big", "train"): (100, 1000),
    ("big", "validation"): (10, 100),
    ("big", "dev"): (20, 200),
    ("mid", "train"): (50, 600),
    ("mid", "validation"): (5, 60),
    ("mid", "dev"): (5, 70),
    ("small", "train"): (32, 320),
    ("small", "validation"): (4, 40),
    ("small", "dev"): (10, 90),
}
D, LAYERS, R = 32, 2, 16
FORWARD = 24 * LAYERS * D * D
FUSION = (3 * D * D + 3 * 3 * (D / R) * D) / (12 * D * D)  # N = 3, in shares of a layer


def project(folder: Path) -> Path:
    """A folder with the bundled suite's description, and no task prepared."""
    (folder / "data").mkdir()
    (folder / "data" / "bundled").symlink_to(ROOT / "data" / "bundled")
    return folder


@pytest.fixture
def config(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(project(tmp_path)))
    return parse_config(VALUES | {"backbone": {"name": str(bert.path)}})


@pytest.fixture
def counted(config, monkeypatch):
    """The configuration, with rows and tokens known."""
    monkeypatch.setattr(module, "rows_and_tokens", lambda _c, task, split: TOKENS[task, split])
    return config


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("head", "small", 320 + 40 + 90),
        ("full", "small", 2 * (3 * 320 + 130)),
        ("st_adapter", "small", 3 * (2 * 320 + 130)),
        ("multitask_full", JOINT, 5 * (3 * 1920 + 560)),
        ("mt_adapter", JOINT, 5 * (3 * 1920 + 560)),
        ("fusion_st", "small", 4 * ((2 * (1 + FUSION) + 0.25) * 320 + (1 + FUSION) * 130)),
        ("st_adapter-16rows", "small", 3 * (2 * 160 + 130)),
        ("st_continued", "small", 4 * (2 * 320 + 130)),
    ],
)
def test_arithmetic_of_one_run(counted, name, task, expected):
    assert flops(counted, RunName(name, task, 1)) == pytest.approx(FORWARD * expected)


def test_more_rows_than_there_are_cost_no_more(counted):
    few, many, all_ = (
        flops(counted, RunName(name, "small", 1))
        for name in ("st_adapter-16rows", "st_adapter-999rows", "st_adapter")
    )
    assert few < many == all_


def test_a_prepared_split_is_counted_and_another_is_estimated(config):
    before = rows_and_tokens(config, "small", "train")
    assert before == (1000 * 0.9, 1000 * 0.9 * 24)  # nothing is known of it
    write_task(Paths("plan").prepared / "small", train=30)
    rows, tokens = rows_and_tokens(config, "small", "train")
    assert rows == 30 and 30 * 5 < tokens < 30 * 15


def test_size_of_a_backbone_on_disk(bert):
    size = backbone_size(BackboneConfig(str(bert.path)))
    assert (size.hidden, size.layers) == (32, 2)
    assert size.parameters == pytest.approx(22464, rel=0.1)  # the header of the file counts too
    assert size.forward == FORWARD


@pytest.mark.parametrize("name", KNOWN)
def test_known_backbones_need_no_download(monkeypatch, name):
    monkeypatch.setattr(module, "resolve_backbone", None)
    backbone = BackboneConfig(name, revision="0" * 40)
    assert backbone_size(backbone) == Size(*KNOWN[name])
    assert backbone_size(backbone).forward == 24 * 12 * 768**2


def test_the_table_has_a_row_per_method_and_their_sum(counted):
    table = forecast(counted, speed=1e9, side_by_side=2)
    assert list(table.index) == [*studied(counted), "all"]
    assert table.loc["all", "runs"] == len(study(counted)) == table["runs"].iloc[:-1].sum()
    assert table.loc["head", "runs"] == 4
    assert (table["memory, GB"] >= 0).all()


def test_hours_are_arithmetic_by_speed_and_by_what_runs_side_by_side(counted):
    runs = study(counted)
    for speed, side_by_side in ((1e3, 1), (1e3, 4), (5e2, 2)):
        table = forecast(counted, speed, side_by_side)
        seconds = sum(flops(counted, run) for run in runs) / speed + module.PER_RUN * len(runs)
        expected = seconds / 3600 / side_by_side
        assert table.loc["all", "hours"] == pytest.approx(expected, abs=0.01)


def test_memory_and_disk_of_a_known_backbone(counted):
    named = dataclasses.replace(counted, backbone=BackboneConfig("google-bert/bert-base-uncased"))
    table = forecast(named, 1e12, 1)
    assert table.loc["full", "memory, GB"] >= 16 * 109_482_240 / 1e9
    assert table.loc["full", "memory, GB"] > 2 * table.loc["st_adapter", "memory, GB"]
    assert table.loc["full", "disk, GB"] == pytest.approx(6 * 4 * 0.109482, abs=0.01)
    alone, beside = (forecast(named, 1e12, n).loc["all", "memory, GB"] for n in (1, 3))
    assert beside == pytest.approx(3 * alone, abs=0.1)
    assert alone == table["memory, GB"].iloc[:-1].max()


def test_the_command_prints_a_forecast_for_a_gpu_that_is_not_here(monkeypatch, tmp_path, capsys):
    values = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    values["backbone"] = {"name": "google-bert/bert-base-uncased"}
    (project(tmp_path) / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(module, "resolve_backbone", None)
    monkeypatch.setattr("sys.argv", ["forecast", "--gpu", "a100"])
    module.main()
    printed = capsys.readouterr().out
    assert "fusion_mt" in printed and "Forecast for profile smoke" in printed
    assert "a100: 30 % of 312 TFLOP/s" in printed


def test_workers_are_as_many_as_asked_for(config):
    training = dataclasses.replace(config.training, side_by_side=3)
    assert workers(dataclasses.replace(config, training=training)) == 3
    many = dataclasses.replace(config.training, threads=10_000)
    assert workers(dataclasses.replace(config, training=many)) == 1
