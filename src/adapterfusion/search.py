"""A small learning-rate search, the same effort for every method, recorded trial by trial.

    make profile NAME=minilm-search && dvc repro data && python -m adapterfusion.search

The targets of params.yaml decide; they should not be the small tasks a study is about. Scores are
those of the validation split, which is cut from train: dev is never looked at. The best rate by mean
over the tasks is printed (of equal ones the highest: small targets see few steps). It is copied into
params.yaml by hand, so that a run never depends on a search. Finished trials are found again in the
run store.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from adapterfusion.backbone import file_sha256
from adapterfusion.config import Config, load_config
from adapterfusion.methods import method
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import Planner, RunError, RunName
from adapterfusion.spec import JOINT, Artifact, RunSpec
from adapterfusion.train import train

GRIDS = {
    "head": (3e-4, 1e-3, 3e-3, 1e-2),
    "full": (3e-5, 1e-4, 3e-4, 1e-3),
    "st_adapter": (3e-4, 1e-3, 3e-3, 1e-2),
    "multitask_full": (3e-5, 1e-4, 3e-4, 1e-3),
    "fusion_st": (1e-4, 2e-4, 5e-4, 1e-3),
}  # methods that are not here use the recipe of one that is
SEED = 0  # a seed the study does not use


def _trial(config: Config, spec: RunSpec) -> tuple[dict[str, float], Path]:
    """Train one trial; task -> its best validation accuracy, and the folder that holds its weights."""
    folder = Paths(config.profile).scratch / spec.key()
    folder.mkdir(parents=True, exist_ok=True)
    spec.write(folder / "spec.json")
    record = train(spec, folder)
    found = {}
    for task, part in record.get("tasks", {spec.task: record}).items():
        kept = part["epochs"][part["metrics"]["held_out"]["epoch"] - 1]
        found[task] = 100 * kept["validation"]["accuracy"]
    return found, folder


def search(config: Config) -> pd.DataFrame:
    """One row per trial and task: method, task, learning_rate, validation_accuracy.

    Fusion is searched over the best adapters found for the same tasks.

    Raises:
        RunError: no part of train is held out to decide on.
    """
    if not config.data.validation:
        raise RunError("data.validation: 0 leaves nothing to search on. Hold out a share of train.")
    trials = [
        (name, task, rate)
        for name in GRIDS
        for task in ([JOINT] if method(name).joint else config.targets)
        for rate in GRIDS[name]
    ]
    rows = []
    best: dict[str, tuple[float, Path]] = {}
    for name, task, rate in tqdm(trials, unit="trial", ncols=100):
        run = RunName(name, task, SEED)
        recipe = dataclasses.replace(Planner(config).recipe(run), learning_rate=rate)
        sources = {}
        if method(name).trains == "fusion":
            for source, (_, folder) in best.items():
                weights = folder / "model.safetensors"
                sources[source] = Artifact(str(weights), file_sha256(weights))
        spec = Planner(config).spec(run, sources)
        found, folder = _trial(config, dataclasses.replace(spec, recipe=recipe))
        rows += [(name, each, rate, round(accuracy, 2)) for each, accuracy in found.items()]
        if name == "st_adapter" and found[task] > best.get(task, (-1.0, folder))[0]:
            best[task] = (found[task], folder)
    columns = ["method", "task", "learning_rate", "validation_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    argparse.ArgumentParser(description="Search each method's learning rate.").parse_args()
    try:
        config = load_config()
        table = search(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    target = Paths(config.profile).results / "search.csv"
    with atomic_write(target) as temporary:
        temporary.write_text(table.to_csv(index=False))
    means = table.groupby(["method", "learning_rate"], sort=False)["validation_accuracy"].mean()
    print(means.round(2).to_string())
    chosen = {name: max(means[name].items(), key=lambda x: (x[1], x[0]))[0] for name in GRIDS}
    print("best by mean over the tasks:", json.dumps(chosen))


if __name__ == "__main__":
    main()
