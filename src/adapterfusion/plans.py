"""From params.yaml to runs: which there are, what each needs, and whether it is finished.

A run is trained in the run store (`build/runs/<key>`, by content, so that nothing finished is ever
trained twice) and then placed under `results/<profile>` by `runs.py`.
"""

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from adapterfusion.backbone import file_sha256, resolve_backbone
from adapterfusion.config import Config, Recipe
from adapterfusion.methods import Method, method, studied
from adapterfusion.paths import Paths
from adapterfusion.spec import JOINT, Artifact, RunSpec, code_sha256


class RunError(ValueError):
    """A run that cannot be planned, or a record that is missing. The message names the remedy."""


class RunName(NamedTuple):
    """A run as the study names it; `task` is `joint` for a run on several."""

    method: str
    task: str
    seed: int


def absent(config: Config, task: str) -> str | None:
    """Why a task is left out of the study though params.yaml names it; None where it is there.

    A task that only a person may fetch is prepared as such a note, and everything goes on without it.
    """
    info = Paths(config.profile).prepared / task / "info.json"
    return json.loads(info.read_text("utf-8")).get("absent") if info.is_file() else None


def tasks_of(config: Config, name: str) -> list[str]:
    """The tasks a method is measured on: a joint run and single-task adapters on every task, controls
    on their targets, all else on the targets."""
    row = method(name)
    names: tuple[str, ...] | list[str] = config.targets
    if row.joint or name == "st_adapter":
        names = tuple(config.tasks)
    elif row.rows:
        names = config.low_resource.targets if config.low_resource else ()
    elif row.folder:
        names = config.control_targets
    elif name == "sequential":
        start = config.sequential
        names = [t for t in config.targets if t in start and not absent(config, start[t])]
    elif name == "full" and "sequential" in config.methods:
        known = set(config.targets) | set(config.sequential.values())
        names = [task for task in config.tasks if task in known]
    return [task for task in names if not absent(config, task)]


def seeds_of(config: Config, task: str) -> tuple[int, ...]:
    """A task's seeds; a joint run has every seed that some task has."""
    if task != JOINT:
        return config.tasks[task].seeds
    return tuple(sorted({seed for t in config.tasks.values() for seed in t.seeds}))


def study(config: Config) -> list[RunName]:
    """Every run that params.yaml asks for, in the order of the tables."""
    names = []
    for name in studied(config):
        tasks = [JOINT] if method(name).joint else tasks_of(config, name)
        names += [RunName(name, task, s) for task in tasks for s in seeds_of(config, task)]
    return names


def _data_sha256(folder: Path) -> str:
    """One checksum over a prepared task's splits: what a run reads, and nothing that describes it."""
    splits = json.loads((folder / "info.json").read_text(encoding="utf-8"))["splits"]
    text = json.dumps({name: split["sha256"] for name, split in splits.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Planner:
    """Specs of a study's runs, and where finished ones lie."""

    def __init__(self, config: Config):
        self.config = config
        self.paths = Paths(config.profile)
        self._specs: dict[RunName, RunSpec] = {}

    @cached_property
    def backbone(self) -> Artifact:
        folder, digest = resolve_backbone(self.config.backbone)
        return Artifact(str(folder), digest)

    def data(self, task: str) -> Artifact:
        """A prepared task. Raises RunError where it is not prepared."""
        folder = self.paths.prepared / task
        if not (folder / "info.json").is_file():
            where = self.paths.relative(folder)
            raise RunError(f"{where}: not prepared. Run `dvc repro data` first.")
        return Artifact(str(folder), _data_sha256(folder))

    def _seed(self, task: str, seed: int) -> int:
        """The seed of a run that another with `seed` builds on: its own where that was trained."""
        wanted = seed if self.config.source_seed is None else self.config.source_seed
        seeds = seeds_of(self.config, task)
        return wanted if wanted in seeds else seeds[0]

    def sources(self, run: RunName) -> dict[str, RunName]:
        """The runs whose adapters a fusion mixes: source task -> run, in the order of `sources`."""
        row = method(run.method)
        if row.sources is None:
            return {}
        found = {}
        for task in self.config.sources:
            own = task == run.task
            if absent(self.config, task) or (row.only and own != (row.only == "own")):
                continue
            if method(row.sources).joint:
                found[task] = RunName(row.sources, JOINT, self._seed(JOINT, run.seed))
            elif row.rows and own:  # the low-resource curve: its own adapter saw no more rows
                found[task] = RunName(f"{row.sources}-{row.rows}rows", task, run.seed)
            else:
                first = seeds_of(self.config, task)[0]
                seed = self._seed(task, first if row.one_seed else run.seed)
                found[task] = RunName(row.sources, task, seed)
        return found

    def start(self, run: RunName) -> RunName | None:
        """The run whose weights this one starts from."""
        row = method(run.method)
        if row.start is None:
            return None
        if method(row.start).joint:
            return RunName(row.start, JOINT, self._seed(JOINT, run.seed))
        if row.start == row.recipe == "full":
            source = self.config.sequential[run.task]
            return RunName(row.start, source, self._seed(source, run.seed))
        return RunName(row.start, run.task, run.seed)

    def needs(self, run: RunName) -> set[RunName]:
        """The runs that must be finished before this one can be planned."""
        start = self.start(run)
        return {*self.sources(run).values(), *([start] if start else [])}

    def folder(self, run: RunName) -> Path:
        """Where the run is trained."""
        return self.paths.scratch / self.spec(run).key()

    def finished(self, run: RunName) -> Path | None:
        """The finished run's weights: in the run store, or in the results if they are the same run's."""
        weights = self.folder(run) / "model.safetensors"
        if (weights.parent / "run.json").is_file() and weights.is_file():
            return weights
        where = method(run.method).folder + run.method
        weights = self.paths.run_weights(where, run.task, run.seed) / "model.safetensors"
        record = self.paths.run(where, run.task, run.seed) / "run.json"
        if weights.is_file() and record.is_file():
            values = json.loads(record.read_text())
            # as text, because the order of tasks and sources decides too
            same = json.dumps(values["config"]) == json.dumps(self.spec(run).identity())
            if same and values["code_sha256"] == code_sha256():
                return weights
        return None

    def records(self) -> list[Path]:
        """run.json of every finished run of the study in the run store."""
        paths = [self.folder(run) / "run.json" for run in study(self.config)]
        return [path for path in paths if path.is_file()]

    def write_spec(self, run: RunName) -> RunSpec:
        """The run's spec, written where it will be trained."""
        folder, spec = self.folder(run), self.spec(run)
        folder.mkdir(parents=True, exist_ok=True)
        spec.write(folder / "spec.json")
        return spec

    def _artifact(self, run: RunName) -> Artifact:
        weights = self.finished(run)
        if weights is None:
            missing = f"{run.method} on {run.task}, seed {run.seed}"
            raise RunError(f"{missing}: not trained yet. Run `dvc repro train` first.")
        return Artifact(str(weights), file_sha256(weights))

    def recipe(self, run: RunName) -> Recipe:
        """The method's recipe, with the epochs of another where the method says so, or of the task."""
        row, recipes = method(run.method), self.config.recipes
        recipe = getattr(recipes, row.recipe)
        if row.epochs:
            other = getattr(recipes, row.epochs)
            recipe = dataclasses.replace(recipe, epochs=other.epochs, patience=other.patience)
        epochs = None if row.joint else self.config.tasks[run.task].epochs
        if epochs:
            recipe = dataclasses.replace(recipe, epochs=epochs, patience=epochs)
        return recipe

    def spec(self, run: RunName, sources: dict[str, Artifact] | None = None) -> RunSpec:
        """The full specification of one run. sources: adapters to fuse, if not the study's own.

        Raises:
            RunError: a task was not prepared, or a run this one builds on is not finished.
        """
        by_hand = sources is not None
        if run in self._specs and not by_hand:
            return self._specs[run]
        row, config = method(run.method), self.config
        tasks = tasks_of(config, run.method) if row.joint else [run.task]
        if sources is None:
            sources = {task: self._artifact(r) for task, r in self.sources(run).items()}
        start = self.start(run)
        spec = RunSpec(
            method=run.method,
            task=run.task,
            seed=run.seed,
            trains=row.trains,
            recipe=self.recipe(run),
            batch_size=config.training.batch_size,
            micro_batch_size=config.training.micro_batch_size,
            precision=config.training.precision,
            clip_norm=config.training.clip_norm,
            threads=config.training.threads,
            backbone=self.backbone,
            data={task: self.data(task) for task in tasks},
            adapter=self._replaced(config.adapter, row.adapter),
            fusion=self._replaced(config.fusion, row.fusion) if row.trains == "fusion" else None,
            sources=sources,
            start=self._artifact(start) if start else None,
            rows=row.rows,
        )
        if not by_hand:
            self._specs[run] = spec
        return spec

    @staticmethod
    def _replaced(section, changes: dict | None):
        """A section of params.yaml with a method's changes; None where the method has no such part."""
        return None if changes is None else dataclasses.replace(section, **changes)


def title(name: str) -> str:
    """A method's or control's title, as tables print it."""
    row: Method = method(name)
    return row.title
