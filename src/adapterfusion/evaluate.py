"""Logits of a split, and where a fusion's attention goes on it. Pure functions of weights and input."""

import numpy as np
import torch
from torch import Tensor

from adapterfusion.batches import Split, collate, evaluation_batches
from adapterfusion.fusion import record_attention
from adapterfusion.model import TaskModel

EVALUATION_ROWS = 128


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.inference_mode()
def first_token_states(model: TaskModel, split: Split, pad_id: int) -> Tensor:
    """What the frozen backbone says of each sequence, once for all epochs: [rows, choices, d]"""
    model.eval()
    device = next(model.parameters()).device
    states = [None] * len(split)
    for rows in evaluation_batches(split.lengths, EVALUATION_ROWS):
        encoded = model.encode(_to(collate(split, rows, pad_id), device)).float()
        for row, state in zip(rows, encoded.unflatten(0, (len(rows), -1)), strict=True):
            states[row] = state
    return torch.stack(states).clone()


@torch.inference_mode()
def predict(
    model: TaskModel, split: Split, pad_id: int, features: Tensor | None = None
) -> np.ndarray:
    """Logits [rows, classes] in the split's order."""
    model.eval()
    device = next(model.parameters()).device
    logits: list[Tensor] = []
    order: list[np.ndarray] = []
    for rows in evaluation_batches(split.lengths, EVALUATION_ROWS):
        if features is None:
            batch = _to(collate(split, rows, pad_id), device)
        else:
            batch = {"features": features[rows].flatten(0, 1)}
        logits.append(model(batch).float().cpu())
        order.append(rows)
    result = np.empty((len(split), logits[0].shape[1]), dtype=np.float32)
    result[np.concatenate(order)] = torch.cat(logits).numpy()
    return result


@torch.inference_mode()
def mean_attention(model: TaskModel, split: Split, pad_id: int) -> np.ndarray:
    """Mean fusion attention over the split's tokens, padding left out: [layers, N]

    The paper's Figure 4 averages over all instances of the dev set; here each real token counts
    once, and rows sum to one.
    """
    if model.fusion is None:
        raise ValueError("the model has no fusion, so there is no attention to average")
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for rows in evaluation_batches(split.lengths, EVALUATION_ROWS):
        batch = _to(collate(split, rows, pad_id), device)
        with record_attention(model.fusion) as per_layer:
            model.encode(batch)
        real = batch["attention_mask"].bool()
        total = total + torch.stack([a[real].double().sum(0) for a in per_layer])
        tokens += int(real.sum())
    return (total / tokens).cpu().numpy()
