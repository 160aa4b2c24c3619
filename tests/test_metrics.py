"""Scores in plain numpy against scikit-learn and torch, for any labels and predictions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F

from adapterfusion.metrics import accuracy, cross_entropy, f1, score


@st.composite
def scored(draw):
    """Labels, logits and the number of classes; some classes may be absent from both."""
    classes, rows = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(scale=draw(st.sampled_from([0.1, 3, 300])), size=(rows, classes))
    return np.array(labels), logits.astype(np.float32), classes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scored())
def test_scores_equal_scikit_learn_and_torch(case):
    labels, logits, classes = case
    predictions = logits.argmax(axis=1)
    average = {"average": "binary"} if classes == 2 else {"average": "macro"}
    if classes > 2:
        average["labels"] = list(range(classes))
    expected_f1 = f1_score(labels, predictions, zero_division=0, **average)
    loss = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    result = score(labels, logits)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    assert result["f1"] == pytest.approx(expected_f1, abs=1e-12)
    assert result["loss"] == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert all(type(value) is float for value in result.values())


def test_f1_of_two_classes_is_that_of_class_one_and_not_the_mean():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert f1(labels, predictions, 2) == pytest.approx(2 / 3)
    assert f1(labels, predictions, 3) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert accuracy(labels, predictions) == 0.75


def test_cross_entropy_survives_huge_logits():
    logits = np.array([[1e30, 0], [0, -1e30]], dtype=np.float32)
    assert cross_entropy(np.array([0, 0]), logits) == 0
    assert cross_entropy(np.array([1, 0]), logits) == pytest.approx(5e29)


@pytest.mark.parametrize(
    ("labels", "predicted", "degenerate"),
    [([0, 1, 0], [0, 0, 0], 1.0), ([0, 0, 0], [0, 0, 0], 0.0), ([0, 1, 0], [0, 0, 1], 0.0)],
)
def test_one_class_throughout_is_called_degenerate(labels, predicted, degenerate):
    logits = np.eye(2, dtype=np.float32)[predicted]
    assert score(np.array(labels), logits)["degenerate"] == degenerate
