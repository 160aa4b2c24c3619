"""Scores of a classifier in plain numpy, so that the training core needs no further library."""

import numpy as np


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of right answers."""
    return float(np.mean(labels == predictions))


def f1(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> float:
    """F1 of class 1 for two classes, the unweighted mean over the classes otherwise (GLUE, SuperGLUE).

    A class that is neither present nor predicted counts as zero, as in scikit-learn.
    """
    scores = []
    for c in range(n_classes):
        hits = np.sum((labels == c) & (predictions == c))
        scores.append(2 * hits / max(1, np.sum(labels == c) + np.sum(predictions == c)))
    return float(scores[1] if n_classes == 2 else np.mean(scores))


def cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels; logits [rows, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_normaliser = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_normaliser - shifted[np.arange(len(labels)), labels]))


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """All scores of one split.

    degenerate: 1.0 where one class is predicted throughout though the labels hold several.
    """
    predictions = logits.argmax(axis=1)
    collapsed = len(np.unique(predictions)) == 1 and len(np.unique(labels)) > 1
    return {
        "loss": cross_entropy(labels, logits),
        "accuracy": accuracy(labels, predictions),
        "f1": f1(labels, predictions, logits.shape[1]),
        "degenerate": float(collapsed),
    }
