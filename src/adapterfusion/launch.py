"""Train every run of the profile that is not finished yet, several side by side.

    python -m adapterfusion.launch

Each worker is a process of its own with `training.threads` threads; a run starts as soon as what it
builds on is finished, long ones first. Stopped at any moment and started again, it goes on.

`build/launch/<profile>/<notebook>` then names the runs that a notebook shows by their keys. A key is a
hash of data, code and parameters, so the notebook's stage depends on that file alone.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from adapterfusion.config import Config, load_config
from adapterfusion.forecast import flops, weights_bytes
from adapterfusion.methods import method
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import Planner, RunError, RunName, study
from adapterfusion.progress import PROGRESS, timed


def _end_with_parent(parent: int) -> None:
    """Let a worker end when the process that started it is killed, so that none trains on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(folder: Path) -> None:
    """What a worker does with one run."""
    from adapterfusion.spec import RunSpec
    from adapterfusion.train import train

    train(RunSpec.read(folder / "spec.json"), folder)


def workers(config: Config) -> int:
    """How many runs are trained at once."""
    if config.training.side_by_side:
        return config.training.side_by_side
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, (os.cpu_count() or 1) // config.training.threads)


def _missing(planner: Planner, runs: list[RunName]) -> list[RunName]:
    """The runs that are not finished, or build on one that is not. runs: in the study's order."""
    missing, done = [], set()
    for run in runs:
        if planner.needs(run) <= done and planner.finished(run):
            done.add(run)
        else:
            missing.append(run)
    return missing


def _check_room(config: Config, missing: list[RunName]) -> None:
    """Say it before hours are spent when the disk will not do.

    Raises:
        RunError: names the folder, what is free there and what is needed.
    """
    store = Paths(config.profile).scratch
    store.mkdir(parents=True, exist_ok=True)
    sizes = [weights_bytes(config, run) for run in missing]
    # while a run trains: its checkpoint and the next one, each the weights now, the best, two moments
    needed = sum(sizes) + 8 * sum(sorted(sizes)[-workers(config) :])
    free = shutil.disk_usage(store).free
    if needed > free:
        raise RunError(
            f"{store}: {free / 1e9:.1f} GB are free, and the {len(missing)} runs that are missing take "
            f"{needed / 1e9:.1f} GB. Make room, or ask for fewer runs in params.yaml."
        )


def train_all(config: Config) -> None:
    """Train what is missing. A run that fails stops what builds on it, and nothing else.

    Raises:
        RunError: the disk is too full; or some runs failed: names them, the first one's error, and
            the remedy.
    """
    planner = Planner(config)
    runs = study(config)
    missing = _missing(planner, runs)
    _check_room(config, missing)
    cost = {run: round(flops(config, run)) for run in runs}  # whole numbers add up to their sum
    waiting = sorted(missing, key=lambda run: -cost[run])
    done = set(runs) - set(missing)
    failed: dict[RunName, BaseException] = {}
    running: dict[Future, RunName] = {}
    os.environ[PROGRESS] = os.devnull  # one bar for all, not one for each
    bar = tqdm(total=sum(cost.values()), initial=sum(cost[run] for run in done), ncols=140)
    bar.bar_format = "{l_bar}{bar}| {elapsed} gone, about {remaining} left{postfix}"

    def finish(run: RunName) -> None:
        done.add(run)
        bar.update(cost[run])

    pool = ProcessPoolExecutor(
        workers(config), get_context("spawn"), initializer=_end_with_parent, initargs=(os.getpid(),)
    )
    with pool, bar:
        while waiting or running:
            ready = [run for run in waiting if planner.needs(run) <= done]
            for run in ready[: pool._max_workers - len(running)]:
                waiting.remove(run)
                planner.write_spec(run)
                running[pool.submit(_train, planner.folder(run))] = run
            if not running:
                break  # what is left builds on a run that failed
            current = ", ".join(f"{r.method} {r.task} {r.seed}" for r in running.values())
            bar.set_postfix_str(f"{len(done)}/{len(runs)} runs, now {current}", refresh=True)
            for future in wait(running, timeout=2.0, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                if error := future.exception():
                    failed[run] = error
                    if isinstance(error, BrokenProcessPool):
                        waiting.clear()
                else:
                    finish(run)
    if waiting and not failed:
        run = waiting[0]
        missing = ", ".join(sorted({need.method for need in planner.needs(run) - done}))
        raise RunError(f"{run.method} on {run.task} needs {missing}. Add it to methods.")
    if failed:
        run, error = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} runs failed, {len(done)} of {len(runs)} are finished and kept. First: "
            f"{run.method} on {run.task}, seed {run.seed}: {error}. Run the same command again."
        )


def write_keys(config: Config) -> None:
    """Name the finished runs, one file for each execution of a notebook that shows some."""
    planner = Planner(config)
    target = Paths(config.profile).root / "build" / "launch" / config.profile
    shutil.rmtree(target, ignore_errors=True)
    lines: dict[str, list[str]] = {"04_multitask": [], "08_ablations": []}
    lines |= {f"02_finetuning-{name}": [] for name in ("head", "full")}
    lines |= {f"03_single_task_adapter-{task}": [] for task in config.tasks}
    lines |= {f"05_fusion-{task}": [] for task in config.targets}
    for run in study(config):
        notebook = method(run.method).notebook
        name = next(n for n in lines if n in (notebook, *(f"{notebook}-{x}" for x in run[:2])))
        lines[name].append(f"{run.method} {run.task} {run.seed} {planner.spec(run).key()}\n")
    for name, text in lines.items():
        with atomic_write(target / name) as temporary:
            temporary.write_text("".join(text))


def main() -> None:
    argparse.ArgumentParser(description="Train all runs of params.yaml side by side.").parse_args()
    try:
        config = load_config()
        with timed("train"):
            train_all(config)
            write_keys(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
