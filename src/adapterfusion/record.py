"""run.json: what a finished run says of itself. Tables and figures are functions of these records."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterfusion.batches import padding_share
from adapterfusion.evaluate import mean_attention
from adapterfusion.metrics import score
from adapterfusion.provenance import device_info, git_state, peak_memory_mib, versions
from adapterfusion.spec import code_sha256

if TYPE_CHECKING:
    from adapterfusion.train import Run


def _task(run: "Run", name: str) -> dict[str, Any]:
    """One task's part: its data, its scores by either rule, and every epoch's."""
    task = run.tasks[name]
    used = {name: len(split) for name, split in task.splits.items()}
    return {
        "data": task.info | {"rows": task.info["rows"] | used},
        "metrics": {
            rule: score(task.splits["dev"].labels, best["logits"][name])
            | {"epoch": best["epoch"] + 1}
            for rule, best in run.state.best.items()
        },
        "epochs": [epoch["tasks"][name] for epoch in run.state.history],
    }


def _attention(run: "Run") -> dict[str, Any]:
    """Where a fusion looks on its dev set, layer by layer; nothing for a run without attention."""
    fusion = run.spec.fusion and run.model.fusion
    if not (fusion and fusion.attends):
        return {}
    dev = run.tasks[run.spec.task].splits["dev"]
    with run.accelerator.autocast():
        layers = mean_attention(run.model, dev, run.pad_id).round(6).tolist()
    return {"attention": {"adapters": list(run.spec.sources), "layers": layers}}


def describe(run: "Run", frozen_sha256: str, resumed: bool, seconds: float) -> dict[str, Any]:
    """The record of a run that stands at its kept weights.

    A run on several tasks has a part per task under `tasks`; a run on one task says it at the top.
    """
    spec, history, device = run.spec, run.state.history, run.accelerator.device
    trainable = sum(p.numel() for p in run.model.trainable().values())
    common = [
        {key: epoch[key] for key in ("train_loss", "train_seconds", "evaluation_seconds")}
        for epoch in history
    ]
    started = time.perf_counter()
    attention = _attention(run)
    attention_seconds = time.perf_counter() - started  # one more pass over dev
    tasks = {name: _task(run, name) for name in run.tasks}
    if spec.task in tasks:
        content = tasks[spec.task]
        content["epochs"] = [a | b for a, b in zip(common, content["epochs"], strict=True)]
    else:
        content = {"tasks": tasks, "epochs": common}
    lengths = {name: task.splits["train"].lengths for name, task in run.tasks.items()}
    return {
        "method": spec.method,
        "task": spec.task,
        "seed": spec.seed,
        "status": run.state.status,
        "config": spec.identity(),
        **content,
        "parameters": {
            "trainable": trainable,
            "stored": sum(tensor.numel() for tensor in run.state.kept.values()),
            "frozen": sum(p.numel() for p in run.model.parameters()) - trainable,
        },
        "frozen_sha256": {"before": run.frozen_before, "after": frozen_sha256},
        "padding_share": round(padding_share(lengths, run.batches(0)), 4),
        "seconds": {
            "train": round(sum(e["train_seconds"] for e in history) + run.setup_seconds, 3),
            "evaluation": round(
                sum(e["evaluation_seconds"] for e in history) + attention_seconds, 3
            ),
            "this_process": round(seconds + run.setup_seconds + attention_seconds, 3),
        },
        "resumed": resumed,
        "peak_memory_mib": round(peak_memory_mib(device), 1),
        "device": device_info(device),
        "versions": versions(),
        "git": git_state(Path(__file__).parents[2]),
        "code_sha256": code_sha256(),
        **attention,
    }
