"""The learning-rate search: the same effort for every method, decided on rows held out of train."""

import json
from pathlib import Path

import pytest
from conftest import write_task
from test_plans import RECIPES

from adapterfusion import search
from adapterfusion.config import Config, parse_config
from adapterfusion.plans import RunError

RATES = (1e-4, 1e-3)


@pytest.fixture
def config_of(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(search, "GRIDS", dict.fromkeys(search.GRIDS, RATES))
    for task in ("one", "two"):
        write_task(tmp_path / "data" / "prepared" / "search" / task, train=16, held_out=8)

    def make(validation: float) -> Config:
        tasks = {"one": {"seeds": [1]}, "two": {"seeds": [1]}}
        return parse_config(
            {
                "profile": "search",
                "backbone": {"name": str(bert.path)},
                "data": {"source": "bundled", "validation": validation},
                "tasks": tasks,
                "sources": list(tasks),
                "targets": list(tasks),
                "methods": ["head", "full", "st_adapter", "multitask_full", "fusion_st"],
                "recipes": RECIPES,
            }
        )

    return make


def test_every_method_is_tried_with_each_rate_on_each_task(config_of, tmp_path):
    table = search.search(config_of(0.5))
    keys = ["method", "task", "learning_rate"]
    wanted = {(m, t, r) for m in search.GRIDS for t in ("one", "two") for r in RATES}
    assert {tuple(row) for row in table[keys].itertuples(index=False)} == wanted
    assert len(table) == len(wanted)

    found = table.set_index(keys)["validation_accuracy"]
    records = [json.loads(p.read_text()) for p in Path(tmp_path).rglob("run.json")]
    assert len(records) == 4 * 2 * 2 + 2  # joint runs serve both tasks
    for record in records:
        assert record["seed"] == search.SEED
        for task, part in record.get("tasks", {record["task"]: record}).items():
            kept = part["epochs"][part["metrics"]["held_out"]["epoch"] - 1]["validation"]
            rate = record["config"]["recipe"]["learning_rate"]
            keys = (record["method"], task, rate)
            assert found[keys] == round(100 * kept["accuracy"], 2)


def test_fusion_is_searched_over_the_best_adapters(config_of, tmp_path):
    table = search.search(config_of(0.5))
    records = [json.loads(p.read_text()) for p in Path(tmp_path).rglob("run.json")]
    hashes = {}
    for path in Path(tmp_path).rglob("run.json"):
        record = json.loads(path.read_text())
        if record["method"] == "st_adapter":
            rate = record["config"]["recipe"]["learning_rate"]
            digest = search.file_sha256(path.parent / "model.safetensors")
            hashes[digest] = (record["task"], rate)
    for record in (r for r in records if r["method"] == "fusion_st"):
        for task, source in record["config"]["sources"].items():
            tried = table[(table["method"] == "st_adapter") & (table["task"] == task)]
            best = tried["validation_accuracy"].max()
            of, rate = hashes[source["sha256"]]
            assert of == task
            (accuracy,) = tried[tried["learning_rate"] == rate]["validation_accuracy"]
            assert accuracy == best


def test_a_search_without_held_out_rows_is_refused(config_of):
    with pytest.raises(RunError, match=r"data\.validation: 0"):
        search.search(config_of(0.0))
