"""What a study will cost before it is started: time, memory and disk.

    python -m adapterfusion.forecast               # on this machine, calibrated for some seconds
    python -m adapterfusion.forecast --gpu a100    # on a GPU that is not here
    python -m adapterfusion.forecast --save        # ... into results/<profile>/forecast.json, as the pipeline

The arithmetic is that of transformer layers, 24 d^2 FLOPs a token and layer. Training all of it costs
three forward passes and with the weights frozen two; fusion adds 3 d^2 + 3 N r d multiplications.
Rows and lengths are read where a task is prepared; before that, official rows and half the maximum
length are assumed.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from adapterfusion.backbone import resolve_backbone
from adapterfusion.bundled import task_sizes
from adapterfusion.catalogue import PAPER
from adapterfusion.config import BackboneConfig, Config, load_config
from adapterfusion.methods import method
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import Planner, RunName, study, tasks_of

# Peak bf16 TFLOP/s of the makers' data sheets, and the share that models of this size reach.
GPUS = {"t4": 65, "v100": 125, "a10": 125, "rtx4090": 165, "a100": 312, "h100": 989, "h200": 989}
REACHED = 0.3
# Hidden size, layers and parameters of backbones one may ask about before they are downloaded.
KNOWN = {
    "google-bert/bert-base-uncased": (768, 12, 109_482_240),
    "FacebookAI/roberta-base": (768, 12, 124_645_632),
}
PER_RUN = 1.5  # seconds to load, check and save, as seen with the default backbone
UNKNOWN_ROWS = 1000  # of a task of one's own that is not prepared yet


@dataclass(frozen=True)
class Size:
    """A backbone: hidden size, layers, parameters."""

    hidden: int
    layers: int
    parameters: int

    @property
    def forward(self) -> float:
        """FLOPs of one token's forward pass."""
        return 24.0 * self.layers * self.hidden**2


@cache
def backbone_size(backbone: BackboneConfig) -> Size:
    """By name where it is known, so that nothing is downloaded; else from the files."""
    if backbone.name in KNOWN:
        return Size(*KNOWN[backbone.name])
    folder, _ = resolve_backbone(backbone)
    values = json.loads((folder / "config.json").read_text())
    parameters = (folder / "model.safetensors").stat().st_size // 4
    return Size(values["hidden_size"], values["num_hidden_layers"], parameters)


@cache
def _measured(path: Path) -> tuple[int, int]:
    """Rows of a prepared split, and its tokens."""
    rows = pq.read_table(path, columns=["input_ids"]).column(0).combine_chunks()
    return len(rows), len(rows.values.values)


def rows_and_tokens(config: Config, task: str, split: str) -> tuple[float, float]:
    """A split's size: read where it is prepared, else from what is known of the task."""
    path = Paths(config.profile).prepared / task / f"{split}.parquet"
    if path.is_file():
        return _measured(path)
    if split == "validation" and not config.data.validation:
        return 0, 0
    entry, known = config.tasks[task], PAPER.get(task)
    official = task_sizes().get(task) or (known.hub.rows if known and known.hub else {})
    part = "dev" if split == "dev" else "train"
    rows = official.get(part, UNKNOWN_ROWS)
    rows = min(rows, getattr(entry, part) or rows)
    validation = config.data.validation
    share = {"dev": 1.0, "train": 1 - validation, "validation": validation}[split]
    longest = entry.max_length or (known.max_length if known else 48)
    return rows * share, rows * share * 0.5 * longest * ((known.choices if known else 0) or 1)


def flops(config: Config, run: RunName) -> float:
    """Arithmetic of one run's training and evaluation."""
    row, size = method(run.method), backbone_size(config.backbone)
    tasks = tasks_of(config, run.method) if row.joint else [run.task]
    counts = {
        s: [rows_and_tokens(config, t, s) for t in tasks] for s in ("train", "validation", "dev")
    }
    train = sum(tokens for _, tokens in counts["train"])
    if row.rows:
        train *= min(1.0, row.rows / max(1, counts["train"][0][0]))
    seen = sum(tokens for _, tokens in counts["validation"] + counts["dev"])
    if row.trains == "head":  # the backbone is asked once
        return size.forward * (train + seen)
    factor, forward = 2.0, 1.0
    if row.trains == "backbone":
        factor = 3.0
    elif row.trains == "fusion":
        n = len(config.sources)
        fusion = (3 + 3 * n / config.adapter.reduction) / 12
        factor, forward = 2 * (1 + fusion) + 3 / 12, 1 + fusion
    epochs = Planner(config).recipe(run).epochs
    return size.forward * epochs * (factor * train + forward * seen)


def calibrate(config: Config, seconds: float = 4.0) -> float:
    """FLOP/s that one run reaches on this machine: training steps of full fine-tuning on noise."""
    import torch

    from adapterfusion.model import TaskModel, load_backbone

    folder, _ = resolve_backbone(config.backbone)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(config.training.threads)
    model = TaskModel(load_backbone(folder), 2).to(device)
    rows, length = config.training.micro_batch_size, 32
    batch = {"input_ids": torch.randint(1000, 20_000, (rows, length), device=device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    half = config.training.precision == "bfloat16"

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(batch).float().square().mean()
        loss.backward()
        model.zero_grad()
        return loss.item()

    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    size = backbone_size(config.backbone)
    return 3 * size.forward * rows * length * steps / (time.perf_counter() - started)


def weights_bytes(config: Config, run: RunName) -> float:
    """What a run trains, in float32: the file of weights that it leaves."""
    size, r = backbone_size(config.backbone), config.adapter.reduction
    d2 = size.layers * size.hidden**2
    trained = {
        "head": size.hidden**2,
        "adapter": 2 * d2 / r,
        "fusion": 3 * d2,
        "backbone": size.parameters,
    }
    return 4 * trained[method(run.method).trains]


def forecast(config: Config, speed: float, side_by_side: int) -> pd.DataFrame:
    """One row per method: runs, hours, GB on disk, and GB of memory while it trains.

    speed: FLOP/s of one run. Memory counts weights, gradients and AdamW's two moments in float32, and
    activations as the public rule of thumb has it (34 d bytes a token and layer).
    """
    size = backbone_size(config.backbone)
    longest = max(
        t.max_length or (PAPER[n].max_length if n in PAPER else 48) for n, t in config.tasks.items()
    )
    activations = 34 * size.hidden * size.layers * longest * config.training.micro_batch_size
    rows: dict[str, dict[str, float]] = {}
    for run in study(config):
        weights = weights_bytes(config, run)
        entry = rows.setdefault(run.method, {"runs": 0, "hours": 0.0, "disk, GB": 0.0})
        entry["runs"] += 1
        entry["hours"] += (flops(config, run) / speed + PER_RUN) / 3600 / side_by_side
        entry["disk, GB"] += weights / 1e9  # the run store, the results and DVC's cache share it
        entry["memory, GB"] = (4 * size.parameters + 3 * weights + activations) / 1e9
    table = pd.DataFrame(rows).T
    table.loc["all"] = table.sum()
    table.loc["all", "memory, GB"] = table["memory, GB"].iloc[:-1].max() * side_by_side
    table["runs"] = table["runs"].astype(int)
    return table.round({"hours": 4, "disk, GB": 2, "memory, GB": 1})


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time, memory and disk that params.yaml will take."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", choices=GPUS, help="a GPU that is not here, by its data sheet")
    where.add_argument("--save", action="store_true", help="for the report to be held against")
    arguments = parser.parse_args()
    gpu = arguments.gpu
    try:
        config = load_config()
        if gpu:
            speed, side_by_side = REACHED * GPUS[gpu] * 1e12, 1
            basis = f"{gpu}: {100 * REACHED:.0f} % of {GPUS[gpu]} TFLOP/s, one run at a time"
        else:
            from adapterfusion.launch import workers

            speed, side_by_side = calibrate(config), workers(config)
            basis = f"measured here: {speed / 1e9:.0f} GFLOP/s a run, {side_by_side} side by side"
        table = forecast(config, speed, side_by_side)
        if arguments.save:
            minutes = (60 * table["hours"]).round(1).to_dict()
            said = {"flops_per_second": round(speed), "side_by_side": side_by_side}
            with atomic_write(Paths(config.profile).results / "forecast.json") as temporary:
                temporary.write_text(json.dumps(said | {"minutes": minutes}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table.round(2).to_markdown())
    hours = table.loc["all", "hours"]
    spent = f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"
    print(f"\nForecast for profile {config.profile}: {spent} of training and evaluation ({basis}).")


if __name__ == "__main__":
    main()
