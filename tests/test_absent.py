"""A task that nobody fetched is left out, and everything that would name it says so."""

import json

import nbformat
import pytest
import yaml

from adapterfusion import notebook, plans, tables
from adapterfusion.config import parse_config
from adapterfusion.paths import Paths, find_root

NOTE = "Ask for the corpus."


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A project whose second task is absent; its configuration."""
    values = yaml.safe_load((find_root() / "profiles" / "smoke.yaml").read_text())
    values["targets"] = ["uses", "recommend"]
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    config = parse_config(values)
    for task in config.tasks:
        folder = Paths(config.profile).prepared / task
        folder.mkdir(parents=True)
        info = {"task": task} | ({"absent": NOTE} if task == "recommend" else {})
        (folder / "info.json").write_text(json.dumps(info))
    return config


def record(task: str) -> dict:
    scores = {"accuracy": 0.5, "epoch": 1}
    data = {"title": task, "metrics": ["accuracy"], "rows": {"train": 9, "dev": 9}}
    data |= {"official_split": {"train": True}, "capped": {"train": False}}
    return {
        "method": "fusion_st",
        "task": task,
        "seed": 1,
        "metrics": {"held_out": scores, "paper": scores},
        "data": data,
    }


def test_no_method_runs_on_it(study):
    assert plans.absent(study, "recommend") == NOTE
    assert plans.absent(study, "uses") is None
    assert plans.tasks_of(study, "st_adapter") == ["opinions", "uses"]
    assert plans.tasks_of(study, "head") == ["uses"]
    assert plans.tasks_of(study, "full") == ["opinions", "uses"]  # what sequential starts from
    assert not any(run.task == "recommend" for run in plans.study(study))


def test_tables_leave_it_out_and_say_so(study):
    table = tables.main_table(study, [record("uses")], "held_out")
    assert list(table.index) == ["uses", "Mean"]
    assert f"recommend ({NOTE})" in tables.caption(study, [record("uses")], "held_out")


def test_its_notebook_says_so_and_leaves_the_folders_a_stage_must_have(study):
    paths = Paths(study.profile)
    copy = notebook.run("03_single_task_adapter", {"task": "recommend"}, paths.root)
    assert NOTE in nbformat.read(copy, as_version=4).cells[0].source
    assert (paths.runs / "st_adapter" / "recommend").is_dir()
    assert (paths.weights / "st_adapter" / "recommend").is_dir()
