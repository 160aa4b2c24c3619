"""The study's runs: which there are, how each is specified, and where its record lies.

A method is one line in METHODS. A run is trained in the run store (`build/runs/<key>`, by content, so
that nothing finished is ever trained twice) and then placed under `results/<profile>`: its run.json
in git, its weights and predictions in DVC's cache.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from adapterfusion.backbone import file_sha256, resolve_backbone
from adapterfusion.config import Config
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.spec import Artifact, RunSpec


class RunError(ValueError):
    """A run that cannot be planned, or a record that is missing. The message names the remedy."""


@dataclass(frozen=True)
class Method:
    """A row of METHODS: the identifier used in files and tables, its title, and what it trains."""

    name: str
    title: str
    trains: Literal["head", "backbone", "adapter", "fusion"]


METHODS = {
    method.name: method
    for method in (
        Method("head", "Head only", "head"),
        Method("full", "Full fine-tuning", "backbone"),
        Method("st_adapter", "ST-A", "adapter"),
        Method("fusion_st", "Fusion w/ ST-A", "fusion"),
    )
}


def absent(config: Config, task: str) -> str | None:
    """Why a task is left out of the study though params.yaml names it; None where it is there.

    A task that only a person may fetch is prepared as such a note, and everything goes on without it.
    """
    info = Paths(config.profile).prepared / task / "info.json"
    return json.loads(info.read_text("utf-8")).get("absent") if info.is_file() else None


def tasks_of(config: Config, method: str) -> list[str]:
    """The tasks a method is run on: adapters for every task, all else for the targets."""
    names = config.tasks if method == "st_adapter" else config.targets
    return [task for task in names if not absent(config, task)]


def source_seed(config: Config, source: str, seed: int) -> int:
    """The seed of the source adapter that a fusion with `seed` uses: its own, where it was trained."""
    seeds = config.tasks[source].seeds
    return seed if seed in seeds else seeds[0]


def source_adapters(config: Config, seed: int) -> dict[str, Artifact]:
    """The trained adapters that a fusion with `seed` mixes, in the order of `sources`.

    Raises:
        RunError: one of them was not trained.
    """
    paths = Paths(config.profile)
    sources = {}
    for source in config.sources:
        if absent(config, source):
            continue
        trained = source_seed(config, source, seed)
        weights = paths.run_weights("st_adapter", source, trained) / "model.safetensors"
        if not weights.is_file():
            raise RunError(f"{paths.relative(weights)}: missing. Run `dvc repro adapters` first.")
        sources[source] = Artifact(str(weights), file_sha256(weights))
    return sources


def _data_sha256(folder: Path) -> str:
    """One checksum over a prepared task's splits: what a run reads, and nothing that describes it."""
    splits = json.loads((folder / "info.json").read_text(encoding="utf-8"))["splits"]
    text = json.dumps({name: split["sha256"] for name, split in splits.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plan(
    config: Config, method: str, task: str, seed: int, sources: dict[str, Artifact] | None = None
) -> RunSpec:
    """The full specification of one run. sources: adapters to fuse, if not the study's own.

    Raises:
        RunError: the task was not prepared, or a source adapter was not trained.
    """
    paths = Paths(config.profile)
    folder, digest = resolve_backbone(config.backbone)
    data = paths.prepared / task
    if not (data / "info.json").is_file():
        raise RunError(f"{paths.relative(data)}: not prepared. Run `dvc repro data` first.")
    trains = METHODS[method].trains
    if trains == "fusion" and sources is None:
        sources = source_adapters(config, seed)
    training, epochs = config.training, config.tasks[task].epochs
    recipe = getattr(config.recipes, method)
    if epochs:
        recipe = dataclasses.replace(recipe, epochs=epochs, patience=epochs)
    return RunSpec(
        method=method,
        task=task,
        seed=seed,
        trains=trains,
        recipe=recipe,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        precision=training.precision,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        backbone=Artifact(str(folder), digest),
        data=Artifact(str(data), _data_sha256(data)),
        adapter=config.adapter if trains == "adapter" else None,
        fusion=config.fusion if trains == "fusion" else None,
        sources=sources or {},
    )


def _place(source: Path, target: Path) -> None:
    """A second name for a file that is never written in place; a copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run(config: Config, method: str, task: str) -> list[dict[str, Any]]:
    """Train a method on a task with each of the task's seeds, and place the records.

    Returns:
        one run.json per seed, in the order of `tasks.<task>.seeds`.
    """
    from adapterfusion.train import train  # torch takes seconds to import, and tables need none

    paths = Paths(config.profile)
    records = []
    for seed in config.tasks[task].seeds:
        spec = plan(config, method, task, seed)
        folder = paths.scratch / spec.key()
        folder.mkdir(parents=True, exist_ok=True)
        spec.write(folder / "spec.json")
        record = train(spec, folder)
        for name in ("model.safetensors", "predictions.parquet"):
            _place(folder / name, paths.run_weights(method, task, seed) / name)
        target = paths.run(method, task, seed) / "run.json"
        with atomic_write(target) as temporary:
            shutil.copyfile(folder / "run.json", temporary)
        records.append(record)
    return records


def load_runs(config: Config, method: str | None = None) -> list[dict[str, Any]]:
    """The records of all runs that the configuration names, and of no others.

    Files of tasks or seeds that have left params.yaml may still lie there: nothing is globbed.

    Raises:
        RunError: a run's record is missing.
    """
    paths = Paths(config.profile)
    records = []
    for name in [method] if method else METHODS:
        for task in tasks_of(config, name):
            for seed in config.tasks[task].seeds:
                path = paths.run(name, task, seed) / "run.json"
                if not path.is_file():
                    raise RunError(f"{paths.relative(path)}: missing. Run `dvc repro` first.")
                records.append(json.loads(path.read_text()))
    return records


def correctness(config: Config, method: str, task: str, protocol: str) -> np.ndarray:
    """Whether each dev row was answered rightly, for each seed: bool [seeds, rows]"""
    paths = Paths(config.profile)
    right = []
    for seed in config.tasks[task].seeds:
        path = paths.run_weights(method, task, seed) / "predictions.parquet"
        if not path.is_file():
            raise RunError(f"{paths.relative(path)}: missing. Run `dvc repro` first.")
        table = pq.read_table(path)
        logits = np.array(table.column(f"logits_{protocol}").to_pylist())
        right.append(logits.argmax(axis=1) == table.column("label").to_numpy())
    return np.array(right)
