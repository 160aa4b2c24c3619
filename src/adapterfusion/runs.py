"""A study's runs in its results: trained where they are missing, placed, and read back.

Of a run under `results/<profile>`, run.json is in git; weights and predictions are in DVC's cache.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from adapterfusion.config import Config
from adapterfusion.methods import METHODS, method, studied
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import Planner, RunError, RunName, seeds_of, tasks_of
from adapterfusion.spec import JOINT, predictions_file


def _place(source: Path, target: Path) -> None:
    """A second name for a file that is never written in place; a copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def place(config: Config, run: RunName, folder: Path) -> None:
    """Put a finished run's record, weights and predictions where the results are."""
    paths, where = Paths(config.profile), method(run.method).folder + run.method
    weights = paths.run_weights(where, run.task, run.seed)
    for file in (folder / "model.safetensors", *folder.glob("predictions*.parquet")):
        _place(file, weights / file.name)
    with atomic_write(paths.run(where, run.task, run.seed) / "run.json") as temporary:
        shutil.copyfile(folder / "run.json", temporary)


def run(config: Config, name: str, task: str | None = None) -> list[dict[str, Any]]:
    """Train a method with each seed where that is not done yet, and place the runs.

    task: one task; None: all of the method's, or the joint run.

    Returns:
        the records, as `load_runs` gives them.
    """
    planner = Planner(config)
    joint = method(name).joint
    tasks = [JOINT] if joint else [task] if task else tasks_of(config, name)
    for each in tasks:
        for seed in seeds_of(config, each):
            one = RunName(name, each, seed)
            if planner.finished(one) is None:
                from adapterfusion.train import (
                    train,
                )  # slow to import, and finished runs need it not

                train(planner.write_spec(one), planner.folder(one))
            if planner.folder(one).is_dir():
                place(config, one, planner.folder(one))
    shown = [task] if task else tasks_of(config, name)
    return [_read(config, name, each, seed) for each in shown for seed in config.tasks[each].seeds]


def shown(config: Config, notebook: str, task: str | None = None) -> list[dict[str, Any]]:
    """The records of all runs that a notebook shows, trained where they are missing.

    task: only this one's.
    """
    records = []
    for name in studied(config):
        tasks = tasks_of(config, name)
        if method(name).notebook == notebook and (task is None or task in tasks):
            records += run(config, name, task)
    return records


def _read(config: Config, name: str, task: str, seed: int) -> dict[str, Any]:
    """One task's record of a run. A joint run's is its part, with what the tasks share beside it.

    Raises:
        RunError: the record is missing.
    """
    row, paths = method(name), Paths(config.profile)
    path = paths.run(row.folder + name, JOINT if row.joint else task, seed) / "run.json"
    if not path.is_file():
        raise RunError(f"{paths.relative(path)}: missing. Run `dvc repro` first.")
    record = json.loads(path.read_text())
    if row.joint:
        parts = record.pop("tasks")
        part = parts[task]
        epochs = [a | b for a, b in zip(record["epochs"], part["epochs"], strict=True)]
        record |= part | {"task": task, "epochs": epochs, "joint": list(parts)}
    return record


def load_runs(config: Config, name: str | None = None) -> list[dict[str, Any]]:
    """The records of a method's or control's runs, or of all of the study's methods: one per task.

    Files of tasks or seeds that have left params.yaml may still lie there: nothing is globbed.

    Raises:
        RunError: a run's record is missing.
    """
    names = [name] if name else [m for m in METHODS if m in config.methods]
    return [
        _read(config, each, task, seed)
        for each in names
        for task in tasks_of(config, each)
        for seed in config.tasks[task].seeds
    ]


def each_run(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every run once: a joint run has a record for each of its tasks."""
    return list({(r["method"], r["seed"], "joint" in r or r["task"]): r for r in records}.values())


def of_study(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Every run of the study once, by its method or control."""
    return {name: each_run(load_runs(config, name)) for name in studied(config)}


def correctness(config: Config, name: str, task: str, protocol: str) -> np.ndarray:
    """Whether each dev row was answered rightly, for each seed: bool [seeds, rows]"""
    row, paths = method(name), Paths(config.profile)
    where = JOINT if row.joint else task
    right = []
    for seed in config.tasks[task].seeds:
        folder = paths.run_weights(row.folder + name, where, seed)
        path = folder / predictions_file(where, task)
        if not path.is_file():
            raise RunError(f"{paths.relative(path)}: missing. Run `dvc repro` first.")
        table = pq.read_table(path)
        logits = np.array(table.column(f"logits_{protocol}").to_pylist())
        right.append(logits.argmax(axis=1) == table.column("label").to_numpy())
    return np.array(right)


def difference(config: Config, a: str, b: str, task: str, protocol: str) -> np.ndarray:
    """Method a right minus method b right: [seeds, rows], paired by seed and dev row."""
    right_a = correctness(config, a, task, protocol).astype(float)
    return right_a - correctness(config, b, task, protocol)
