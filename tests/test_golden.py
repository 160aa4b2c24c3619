"""Our formula against the public implementation's numbers (adapters 1.3.0), from files it wrote.

The files come from golden/make_golden.py. Their weights are random and far from initialisation, so
each part of the formula moves the numbers; MISTAKES below make sure of that.
"""

from math import sqrt

import pytest
import torch
from golden_cases import CASES, FUSIONS, build, logits, read_case
from torch.nn import functional as F

from adapterfusion.adapterhub import adapter_names, fusion_names
from adapterfusion.config import FusionConfig
from adapterfusion.fusion import Fusion, record_attention
from adapterfusion.inject import AdaptedOutput

FORMS = ["reference", "token_side", "weight_side"]
EVERY = [(name, form) for name in CASES for form in (FORMS if name in FUSIONS else FORMS[:1])]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_there_are_cases():
    assert len(CASES) == 9 and len(FUSIONS) == 4


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_logits_and_hidden_states(name: str, form: str):
    case = read_case(name)
    assert case.expected["attention_mask"].min() == 0  # padding is part of every case
    model = build(case, form)
    with torch.no_grad():
        hidden = model.backbone(**case.inputs).last_hidden_state
    close(hidden, case.expected["last_hidden_state"])
    close(logits(model, case), case.expected["logits"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUSIONS)
def test_attention_of_every_layer(name: str, form: str):
    case = read_case(name)
    model = build(case, form)
    with record_attention(model.fusion) as recorded:
        logits(model, case)
    assert len(recorded) == model.backbone.config.num_hidden_layers
    for layer, attention in enumerate(recorded):
        close(attention, case.expected[f"attention.{layer}"])


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_gradients_of_all_that_is_trained(name: str, form: str):
    case = read_case(name)
    model = build(case, form)
    loss = F.cross_entropy(model(case.inputs), case.expected["labels"])
    close(loss, case.expected["loss"])
    loss.backward()
    if model.fusion is not None:
        fused = ",".join(case.adapters) if name != "fusion-two" else "pair"
        module, names = model.fusion, fusion_names(fused, model.fusion)
    else:
        (adapter,) = case.adapters
        module, names = model.adapter, adapter_names(adapter, model.adapter)
    theirs = {key: value for key, value in case.expected.items() if key.startswith("grad.")}
    assert set(theirs) == {f"grad.{key}" for key in names.values()}
    for key, parameter in module.named_parameters():
        expected = theirs[f"grad.{names[key]}"]
        distance = (parameter.grad - expected).norm()
        # the gradient of the key's bias is zero but for rounding: equal for all adapters
        assert distance <= 1e-4 * expected.norm() + 1e-6, f"{key}: {distance}"


@pytest.mark.parametrize("name", FUSIONS)
def test_penalty(name: str):
    case = read_case(name)
    penalty = build(case).penalty()
    if name == "fusion-static":
        assert penalty is None and "penalty" not in case.expected
    else:
        torch.testing.assert_close(penalty, case.expected["penalty"], atol=0, rtol=1e-6)


def test_value_starts_where_the_peer_starts_it():
    ours = Fusion(32, FusionConfig()).value.weight
    assert torch.equal(ours, read_case("fusion-two").expected["initial_value"])


# --- mistakes that these files must be able to show -----------------------------------------------


def scaled(self, y, bank):
    up = bank.outputs(bank.bottlenecks(y))
    scores = torch.einsum("...d,...nd->...n", self.query(y), self.key(up)) / sqrt(y.shape[-1])
    return torch.einsum("...n,...nd->...d", scores.softmax(-1), self.value(up))


def no_query_bias(self, y, bank):
    up = bank.outputs(bank.bottlenecks(y))
    q, k = F.linear(y, self.query.weight), self.key(up)
    return torch.einsum(
        "...n,...nd->...d", torch.einsum("...d,...nd->...n", q, k).softmax(-1), self.value(up)
    )


def value_of_residual_too(self, y, bank):
    up = bank.outputs(bank.bottlenecks(y)) + y.unsqueeze(-2)
    a = torch.einsum("...d,...nd->...n", self.query(y), self.key(up)).softmax(-1)
    return torch.einsum("...n,...nd->...d", a, self.value(up))


def no_value(self, y, bank):
    up = bank.outputs(bank.bottlenecks(y))
    a = torch.einsum("...d,...nd->...n", self.query(y), self.key(up)).softmax(-1)
    return torch.einsum("...n,...nd->...d", a, up)


def query_before_norm(self, hidden_states, input_tensor):
    h = self.dropout(self.dense(hidden_states))
    return self.LayerNorm(self.delta(h) + h + input_tensor)


def residual_forgotten(self, hidden_states, input_tensor):
    h = self.dropout(self.dense(hidden_states))
    return self.LayerNorm(self.delta(self.LayerNorm(h + input_tensor)) + input_tensor)


def residual_after_norm(self, hidden_states, input_tensor):
    y = self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)
    return self.LayerNorm(self.delta(y) + y + input_tensor)


def norm_forgotten(self, hidden_states, input_tensor):
    h = self.dropout(self.dense(hidden_states))
    return self.delta(self.LayerNorm(h + input_tensor)) + h + input_tensor


MISTAKES = [
    *((Fusion, "reference", f) for f in (scaled, no_query_bias, value_of_residual_too, no_value)),
    *(
        (AdaptedOutput, "forward", f)
        for f in (query_before_norm, residual_forgotten, residual_after_norm, norm_forgotten)
    ),
]


@pytest.mark.parametrize(
    ("owner", "method", "wrong"), MISTAKES, ids=[m[2].__name__ for m in MISTAKES]
)
def test_a_wrong_formula_is_noticed(owner, method, wrong, monkeypatch):
    case = read_case("fusion-two")
    monkeypatch.setattr(owner, method, wrong)
    difference = logits(build(case, "reference"), case) - case.expected["logits"]
    assert difference.abs().max() > 1e-2
