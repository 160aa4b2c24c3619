"""Questions asked of trained models: what was forgotten, which adapters matter, how few would do.

    python -m adapterfusion.probes      # results/<profile>/probes/*.csv

Nothing is trained here. Every probe loads a finished run, changes one thing, and reads the dev set again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from adapterfusion.adapter import AdapterBank
from adapterfusion.assemble import build_model, source_adapters
from adapterfusion.batches import Split, collate, evaluation_batches, load_split
from adapterfusion.bundled import transfer_graph, words
from adapterfusion.config import Config, load_config
from adapterfusion.evaluate import EVALUATION_ROWS, mean_attention, predict
from adapterfusion.fusion import FusedAdapters, record_attention
from adapterfusion.kernels import same_from_run_to_run
from adapterfusion.metrics import score
from adapterfusion.model import TaskModel
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.plans import Planner, RunName, tasks_of
from adapterfusion.progress import timed
from adapterfusion.spec import RunSpec

KEPT = (1, 2, 4, 8)  # adapters per layer that a pruned fusion keeps


@torch.no_grad()
def _restored(planner: Planner, run: RunName) -> tuple[TaskModel, RunSpec, Split]:
    """A finished run on one task as it was left, its spec, and the task's dev split."""
    spec = planner.spec(run)
    data = Path(spec.data[run.task].path)
    model = build_model(spec, {run.task: json.loads((data / "info.json").read_text())})
    mine = dict(model.named_parameters())
    for name, tensor in load_file(planner.finished(run)).items():
        mine[name].copy_(tensor)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model, spec, load_split(data / "dev.parquet")


@contextmanager
def _precision(spec: RunSpec, model: TaskModel) -> Iterator[None]:
    """Evaluate as the run did."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=spec.precision == "bfloat16"):
        yield


def _scores(model: TaskModel, spec: RunSpec, dev: Split) -> dict[str, float]:
    with _precision(spec, model):
        logits = predict(model, dev, model.backbone.config.pad_token_id)
    return score(dev.labels, logits)


def forgetting(planner: Planner) -> Iterator[dict]:
    """Sequential transfer: the source's accuracy with its own head, before and after the target.

    Single-task adapters and fusion cannot forget: their runs prove by hash that nothing else moved.
    """
    config = planner.config
    for target in tasks_of(config, "sequential") if "sequential" in config.methods else []:
        for seed in config.tasks[target].seeds:
            run = RunName("sequential", target, seed)
            source = planner.start(run)
            model, spec, dev = _restored(planner, source)
            before = _scores(model, spec, dev)["accuracy"]
            moved = load_file(planner.finished(run))
            with torch.no_grad():
                for name, parameter in model.backbone.named_parameters():
                    parameter.copy_(moved[f"backbone.{name}"])
            after = _scores(model, spec, dev)["accuracy"]
            row = {"method": run.method, "target": target, "source": source.task, "seed": seed}
            yield row | {"before": round(100 * before, 4), "after": round(100 * after, 4)}


@contextmanager
def without(model: TaskModel, adapter: int) -> Iterator[None]:
    """The fusion may not attend to one adapter, in any layer; the others share its weight."""

    def mask(_module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        scores = inputs[0].clone()
        scores[..., adapter] = -torch.inf
        return (scores,)

    handles = [layer.softmax.register_forward_pre_hook(mask) for layer in model.fusion.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def faithfulness(planner: Planner) -> Iterator[dict]:
    """Does attention say what matters? Loss on dev without one adapter against its attention mass."""
    config = planner.config
    for target in config.control_targets:
        run = RunName("fusion_st", target, config.tasks[target].seeds[0])
        model, spec, dev = _restored(planner, run)
        with _precision(spec, model):
            mass = mean_attention(model, dev, model.backbone.config.pad_token_id).mean(0)
        loss = _scores(model, spec, dev)["loss"]
        for n, adapter in enumerate(spec.sources if len(spec.sources) > 1 else []):
            with without(model, n):
                change = _scores(model, spec, dev)["loss"] - loss
            row = {"target": target, "seed": run.seed, "adapter": adapter}
            yield row | {"mass": round(float(mass[n]), 6), "loss_change": round(change, 6)}


def prune(model: TaskModel, spec: RunSpec, attention: np.ndarray, k: int) -> None:
    """Keep, in each layer, the k adapters that were attended to most; attention is [layers, N]."""
    adapters = source_adapters(spec, model.backbone)
    device = next(model.parameters()).device
    for i, fusion in enumerate(model.fusion.layers):
        kept = np.sort(np.argsort(-attention[i], kind="stable")[:k])
        bank = AdapterBank([adapters[n].output[i] for n in kept])
        model.backbone.encoder.layer[i].output.delta = FusedAdapters(bank, fusion).to(device).eval()


def pruning(planner: Planner) -> Iterator[dict]:
    """Accuracy, time for the dev set, and adapter parameters with the k most attended adapters only."""
    config = planner.config
    for target in config.control_targets:
        for seed in config.tasks[target].seeds:
            run = RunName("fusion_st", target, seed)
            model, spec, dev = _restored(planner, run)
            n = len(spec.sources)
            with _precision(spec, model):
                attention = mean_attention(model, dev, model.backbone.config.pad_token_id)
            for k in (n, *(k for k in KEPT if k < n)):
                if k < n:
                    prune(model, spec, attention, k)
                started = time.perf_counter()
                accuracy = 100 * _scores(model, spec, dev)["accuracy"]
                seconds = time.perf_counter() - started
                stored = sum(
                    p.numel() for name, p in model.backbone.named_parameters() if ".bank." in name
                )
                row = {"target": target, "seed": seed, "k": k, "accuracy": round(accuracy, 4)}
                yield row | {"seconds": round(seconds, 4), "adapter_parameters": stored}


@cache
def _tokenizer(folder: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def word_mask(input_ids: np.ndarray, pieces: list[list[int]]) -> np.ndarray:
    """Where one of the words stands, as a sequence of token ids: bool [tokens]"""
    mask = np.zeros(len(input_ids), dtype=bool)
    ids = input_ids.tolist()
    for word in pieces:
        for i in range(len(ids) - len(word) + 1):
            if ids[i : i + len(word)] == word:
                mask[i : i + len(word)] = True
    return mask


@torch.inference_mode()
def knowledge(planner: Planner) -> Iterator[dict]:
    """The bundled suite: attention to each adapter on the words that carry a target's knowledge.

    One row per target, seed, adapter, and place (on those words, or on all other tokens): the mean
    over layers and tokens.
    """
    config = planner.config
    if config.data.source != "bundled":
        return
    graph = transfer_graph()
    for target in config.targets:
        kinds = graph.get(target, {}).get("needs", [])
        for seed in config.tasks[target].seeds if kinds else []:
            model, spec, dev = _restored(planner, RunName("fusion_st", target, seed))
            tokenizer = _tokenizer(spec.backbone.path)
            texts = {w.text for kind in kinds for w in words(kind) if w.level != "known"}
            pieces = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in sorted(texts)]
            totals = {place: np.zeros(len(spec.sources)) for place in ("word", "other")}
            counts = dict.fromkeys(totals, 0)
            for rows in evaluation_batches(dev.lengths, EVALUATION_ROWS):
                batch = collate(dev, rows, model.backbone.config.pad_token_id)
                del batch["labels"]
                device = next(model.parameters()).device
                with record_attention(model.fusion) as layers, _precision(spec, model):
                    model.encode({name: tensor.to(device) for name, tensor in batch.items()})
                attention = torch.stack(layers).float().mean(0).cpu().numpy()  # [rows, tokens, N]
                ids, real = batch["input_ids"].numpy(), batch["attention_mask"].numpy() > 0
                on_word = np.array([word_mask(sequence, pieces) for sequence in ids]) & real
                for place, mask in (("word", on_word), ("other", real & ~on_word)):
                    totals[place] += attention[mask].sum(0)
                    counts[place] += int(mask.sum())
            for place, total in totals.items():
                for adapter, mass in zip(spec.sources, total / max(1, counts[place]), strict=True):
                    row = {"target": target, "seed": seed, "adapter": adapter, "place": place}
                    yield row | {"mass": round(float(mass), 6)}


PROBES = {
    "forgetting": (forgetting, ["method", "target", "source", "seed", "before", "after"]),
    "faithfulness": (faithfulness, ["target", "seed", "adapter", "mass", "loss_change"]),
    "pruning": (pruning, ["target", "seed", "k", "accuracy", "seconds", "adapter_parameters"]),
    "knowledge": (knowledge, ["target", "seed", "adapter", "place", "mass"]),
}


def read(config: Config, name: str) -> pd.DataFrame:
    """What a probe found.

    Raises:
        FileNotFoundError: it was not run.
    """
    return pd.read_csv(Paths(config.profile).results / "probes" / f"{name}.csv")


def main() -> None:
    argparse.ArgumentParser(description="Ask the profile's trained models.").parse_args()
    try:
        config = load_config()
        torch.set_num_threads(os.cpu_count() or 1)
        same_from_run_to_run()
        planner = Planner(config)
        with timed("probes"):
            for name, (probe, columns) in PROBES.items():
                rows = list(tqdm(probe(planner), desc=name, unit="row", ncols=100))
                path = Paths(config.profile).results / "probes" / f"{name}.csv"
                with atomic_write(path) as temporary:
                    temporary.write_text(pd.DataFrame(rows, columns=columns).to_csv(index=False))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
