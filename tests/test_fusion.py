"""Fusion: all forms against loops over tokens and adapters, against each other in value and
gradient, its start, its penalty, what it trains, and the attention that is averaged for the reader.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterfusion import evaluate
from adapterfusion.adapter import Adapter, AdapterBank, TaskAdapter
from adapterfusion.assemble import parameter_groups
from adapterfusion.batches import Split, collate
from adapterfusion.config import AdapterConfig, FusionConfig
from adapterfusion.evaluate import mean_attention
from adapterfusion.fusion import Fusion, TaskFusion, record_attention
from adapterfusion.model import TaskModel, load_backbone

FORMS = ["reference", "folded"]
ORDERS = ["token_side", "weight_side"]  # of the products in `folded`
VARIANTS = ["dynamic", "static"]


def randomise(module: torch.nn.Module, scale: float, seed: int = 0) -> torch.nn.Module:
    """All weights far from their start, so that no term of a formula hides."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (scale * noise).to(parameter.dtype)
    return module


def make_adapters(n: int, d: int, widths: list[int], activation: str = "relu") -> list[Adapter]:
    """Random adapters whose outputs are about as large as their input, whatever its width."""
    return [
        randomise(Adapter(d, widths[i % len(widths)], activation), d**-0.5, seed=10 + i)
        for i in range(n)
    ]


def make_fusion(d: int, dtype: torch.dtype, variant="dynamic", dropout=0.0) -> Fusion:
    fusion = randomise(Fusion(d, FusionConfig(variant, dropout=dropout)), 0.5 * d**-0.5, seed=1)
    return fusion.to(dtype)


def by_loops(fusion: Fusion, adapters: list[Adapter], y: Tensor) -> Tensor:
    """The formula, one token and one adapter at a time."""
    q_weight, q_bias = fusion.query.weight, fusion.query.bias
    k_weight, k_bias = fusion.key.weight, fusion.key.bias
    fused = []
    for token in y.flatten(0, -2):
        query = q_weight @ token + q_bias
        scores, values = [], []
        for adapter in adapters:
            inner = torch.relu(adapter.down.weight @ token + adapter.down.bias)
            up = adapter.up.weight @ inner + adapter.up.bias
            scores.append(float(query @ (k_weight @ up + k_bias)))
            values.append(fusion.value.weight @ up if fusion.value is not None else up)
        shares = [math.exp(s - max(scores)) for s in scores]
        mixed = sum(
            share / sum(shares) * value for share, value in zip(shares, values, strict=True)
        )
        fused.append(mixed)
    return torch.stack(fused).view(y.shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["reference", *ORDERS])
@pytest.mark.parametrize(("n", "widths"), [(1, [3]), (2, [4]), (5, [2, 5, 1])])
def test_equals_loops_over_tokens_and_adapters(form, variant, n, widths):
    fusion = make_fusion(8, torch.float64, variant)
    adapters = [adapter.double() for adapter in make_adapters(n, 8, widths)]
    y = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        result = getattr(fusion, form)(y, AdapterBank(adapters))
        torch.testing.assert_close(result, by_loops(fusion, adapters, y), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "tokens", "training", "order"),
    [
        (8, 64, True, "weight_side"),
        (8, 4, True, "token_side"),
        (30, 64, True, "token_side"),
        (30, 64, False, "weight_side"),
        (8, 16, False, "token_side"),
    ],
)
def test_folded_takes_the_cheaper_order(monkeypatch, n, tokens, training, order):
    fusion = make_fusion(32, torch.float32)
    bank = AdapterBank(make_adapters(n, 32, [2 if n > 8 else 4]))
    for name in ORDERS:
        monkeypatch.setattr(fusion, name, lambda y, bank, name=name: name)
    with torch.set_grad_enabled(training):
        assert fusion.folded(torch.zeros(2, tokens // 2, 32), bank) == order


def test_implementation_chooses_the_form(monkeypatch):
    for form in FORMS:
        fusion = Fusion(4, FusionConfig(implementation=form))
        monkeypatch.setattr(fusion, form, lambda y, bank, form=form: form)
        assert fusion(torch.zeros(1, 4), None) == form


def value_and_gradients(fusion: Fusion, form: str, bank: AdapterBank, y: Tensor, mask: Tensor):
    """Output and gradients of a loss over the real tokens; the dropout mask is that of one seed."""
    fusion.zero_grad(set_to_none=True)
    y = y.clone().requires_grad_()
    torch.manual_seed(99)
    out = getattr(fusion, form)(y, bank)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    ((out * weights + out.square()) * mask.unsqueeze(-1)).sum().backward()
    gradients = {name: p.grad for name, p in fusion.named_parameters()}
    return {"output": out.detach(), "input": y.grad, **gradients}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of any tensor, relative to that tensor's largest value.

    Without dropout b_k has no gradient but rounding (it moves all scores alike), so it is measured
    by the gradient of K.
    """
    assert a.keys() == b.keys()
    worst = 0.0
    for name in a:
        scale = a[name].abs().max()
        if name == "key.bias":
            scale = torch.maximum(scale, a["key.weight"].abs().max())
        scale = max(float(scale), 1e-3)
        worst = max(worst, float((a[name] - b[name]).abs().max()) / scale)
    return worst


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    d=st.sampled_from([4, 16, 33]),
    n=st.integers(1, 32),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    variant=st.sampled_from(VARIANTS),
    activation=st.sampled_from(["relu", "gelu", "swish", "leakyrelu"]),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    precision=st.sampled_from([(torch.float64, 1e-10), (torch.float32, 1e-5)]),
    seed=st.integers(0, 1000),
)
def test_folded_equals_reference(
    d, n, widths, batch, tokens, variant, activation, dropout, precision, seed
):
    dtype, tolerance = precision
    generator = torch.Generator().manual_seed(seed)
    fusion = make_fusion(d, dtype, variant, dropout)
    bank = AdapterBank([a.to(dtype) for a in make_adapters(n, d, widths, activation)])
    y = torch.randn(batch, tokens, d, generator=generator).to(dtype)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    reference = value_and_gradients(fusion, "reference", bank, y, mask)
    assert set(reference) >= {"query.weight", "query.bias", "key.weight", "key.bias", "input"}
    assert ("value.weight" in reference) == (variant == "dynamic")
    for order in ORDERS:
        folded = value_and_gradients(fusion, order, bank, y, mask)
        assert largest_difference(reference, folded) < tolerance, order


@pytest.mark.parametrize("order", ORDERS)
def test_folded_equals_reference_in_mixed_precision(order):
    fusion = make_fusion(64, torch.float32)
    bank = AdapterBank(make_adapters(4, 64, [8]))
    y = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))
    exact = value_and_gradients(fusion, "reference", bank, y, torch.ones(4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        rough = {
            form: value_and_gradients(fusion, form, bank, y, torch.ones(4, 16))
            for form in ("reference", order)
        }
    worst = largest_difference(exact, rough["reference"])
    assert largest_difference(exact, rough[order]) < 1.5 * worst < 0.15


@pytest.mark.parametrize("form", ["reference", *ORDERS])
def test_key_bias_is_kept_because_dropout_sees_it(form):
    fusion = make_fusion(8, torch.float64, dropout=0.5)
    bank = AdapterBank([a.double() for a in make_adapters(3, 8, [4])])
    y = torch.randn(4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(4, 5)
    with_dropout = value_and_gradients(fusion, form, bank, y, everywhere)
    assert with_dropout["key.bias"].abs().max() > 1e-3
    without = value_and_gradients(fusion.eval(), form, bank, y, everywhere)
    assert without["key.bias"].abs().max() < 1e-12


@pytest.mark.parametrize("form", ["reference", *ORDERS])
def test_dropout_falls_on_scores_before_the_softmax(form):
    fusion = make_fusion(8, torch.float64, dropout=0.5)
    bank = AdapterBank([a.double() for a in make_adapters(4, 8, [4])])
    seen = []
    fusion.softmax.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    torch.manual_seed(0)
    getattr(fusion, form)(torch.randn(64, 8, dtype=torch.float64), bank)
    scores, attention = seen[0]
    assert 0.3 < (scores == 0).double().mean() < 0.7
    assert attention.min() > 0
    torch.testing.assert_close(attention.sum(-1), torch.ones(64, dtype=torch.float64))


# ---- how a fusion starts


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["reference", *ORDERS])
@pytest.mark.parametrize("n", [1, 4])
def test_new_fusion_of_identical_adapters_equals_the_adapter(form, variant, n):
    torch.manual_seed(0)
    adapter = randomise(Adapter(32, 8, "relu"), 0.1)
    fusion = Fusion(32, FusionConfig(variant)).eval()
    y = torch.randn(3, 6, 32)
    with torch.no_grad():
        fused = getattr(fusion, form)(y, AdapterBank([adapter] * n))
        bound = 1e-6 * (1 + float(adapter(y).abs().sum(-1).max()))  # V holds 1e-6 off its diagonal
        torch.testing.assert_close(fused, adapter(y), atol=bound, rtol=0)
        assert bound < 2e-5


def test_new_fusion_has_v_at_the_identity_and_small_random_q_and_k():
    torch.manual_seed(0)
    fusion = Fusion(200, FusionConfig())
    off_diagonal = fusion.value.weight[~torch.eye(200, dtype=torch.bool)]
    assert torch.equal(fusion.value.weight.diagonal(), torch.ones(200))
    assert torch.equal(off_diagonal, torch.full_like(off_diagonal, 1e-6))
    assert fusion.value.bias is None
    for linear in (fusion.query, fusion.key):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert torch.equal(linear.bias, torch.zeros(200))
    assert not torch.equal(fusion.query.weight, fusion.key.weight)


def test_static_fusion_has_no_v_and_no_penalty():
    fusion = Fusion(8, FusionConfig("static"))
    assert {name for name, _ in fusion.named_parameters()} == {
        "query.weight",
        "query.bias",
        "key.weight",
        "key.bias",
    }
    assert fusion.penalty().item() == 0


@pytest.mark.parametrize("form", ["reference", *ORDERS])
def test_order_of_adapters_does_not_change_the_output(form):
    fusion = make_fusion(16, torch.float64)
    adapters = [adapter.double() for adapter in make_adapters(6, 16, [2, 5])]
    y = torch.randn(2, 4, 16, dtype=torch.float64)
    order = [4, 0, 5, 2, 1, 3]
    recorded = []
    fusion.softmax.register_forward_hook(lambda _m, _in, out: recorded.append(out.detach()))
    plain = getattr(fusion, form)(y, AdapterBank(adapters))
    moved = getattr(fusion, form)(y, AdapterBank([adapters[i] for i in order]))
    torch.testing.assert_close(moved, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(recorded[1], recorded[0][..., order], atol=1e-12, rtol=1e-12)


# ---- penalty and weight decay


def test_penalty_and_its_gradient_equal_the_formula():
    fusion = randomise(TaskFusion(8, 3, FusionConfig(penalty=0.25)), 0.5)
    identity = torch.eye(8)
    differences = [layer.value.weight.detach() - identity for layer in fusion.layers]
    penalty = fusion.penalty()
    expected = 0.25 * sum(float((difference**2).sum()) for difference in differences)
    assert penalty.item() == pytest.approx(expected, rel=1e-6)
    penalty.backward()
    for layer, difference in zip(fusion.layers, differences, strict=True):
        torch.testing.assert_close(layer.value.weight.grad, 2 * 0.25 * difference)
        assert layer.query.weight.grad is None and layer.key.weight.grad is None


def test_penalty_of_a_new_fusion_on_bert_base_is_next_to_nothing():
    penalty = TaskFusion(768, 1, FusionConfig()).penalty()
    assert penalty.item() == pytest.approx(0.01 * 768 * 767 * 1e-12, rel=1e-3)


def fused_model(backbone_path, n: int = 3, **fields) -> TaskModel:
    """A tiny BERT with a strong random fusion over strong random adapters."""
    backbone = load_backbone(backbone_path)
    adapters = [
        randomise(TaskAdapter(32, 2, AdapterConfig(reduction=4)), 0.5, seed=i) for i in range(n)
    ]
    torch.manual_seed(0)
    fusion = randomise(TaskFusion(32, 2, FusionConfig(**fields)), 0.2, seed=7)
    return TaskModel(backbone, 2).with_fusion(fusion, adapters)


def test_penalty_of_zero_leaves_no_term_at_all(bert, monkeypatch):
    model = fused_model(bert.path, penalty=0.0)
    monkeypatch.setattr(TaskFusion, "penalty", lambda self: pytest.fail("computed all the same"))
    assert model.penalty() is None


def test_penalty_is_in_the_loss_of_a_fusion_alone(bert):
    model = fused_model(bert.path, penalty=0.5)
    assert model.penalty().item() == pytest.approx(model.fusion.penalty().item())
    assert model.penalty().item() > 0
    assert TaskModel(load_backbone(bert.path), 2).penalty() is None


def step_without_gradient(model: TaskModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One optimizer step in which only weight decay can move a parameter: before and after."""
    parameters = model.trainable()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return before, {name: p.detach() for name, p in parameters.items()}


def test_v_and_biases_are_exempt_from_weight_decay_and_q_is_not(bert):
    before, after = step_without_gradient(fused_model(bert.path))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {n for n in before if n.endswith("bias") or n.endswith("value.weight")}
    for name in before.keys() - kept:
        torch.testing.assert_close(after[name], 0.99 * before[name])
    assert "fusion.layers.1.query.weight" not in kept


def test_layer_norms_are_exempt_from_weight_decay_in_full_fine_tuning(bert):
    before, after = step_without_gradient(TaskModel(load_backbone(bert.path), 2))
    norms = [name for name in before if "LayerNorm" in name]
    assert len(norms) == 10
    assert all(torch.equal(before[name], after[name]) for name in norms)
    name = "backbone.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(after[name], 0.99 * before[name])


def test_no_other_matrix_than_fusions_v_is_exempt_from_weight_decay(bert):
    before, after = step_without_gradient(TaskModel(load_backbone(bert.path), 2))
    kept = {n for n in before if before[n].ndim == 2 and torch.equal(before[n], after[n])}
    assert not kept


# ---- what is trained


@pytest.mark.parametrize("stage", ["head", "adapter", "fusion"])
def test_only_what_is_trained_gets_gradients(bert, stage):
    if stage == "fusion":
        model = fused_model(bert.path)
    else:
        model = TaskModel(load_backbone(bert.path), 2)
        adapter = TaskAdapter(32, 2, AdapterConfig("houlsby", reduction=4))
        model = model.with_adapter(adapter) if stage == "adapter" else model.with_frozen_backbone()
    model.train()
    logits = model(collate(a_split(), np.arange(4), 0))
    penalty = model.penalty()
    (logits.square().sum() + (penalty if penalty is not None else 0)).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    stages = ("head.",) if stage == "head" else ("head.", f"{stage}.")
    assert with_gradient == set(model.trainable())
    assert with_gradient == {n for n, _ in model.named_parameters() if n.startswith(stages)}
    prefixes = {name.split(".")[0] for name in with_gradient}
    assert prefixes == {"head", stage}


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([], "at least one"),
        ([TaskAdapter(32, 2, AdapterConfig("houlsby"))], "Houlsby"),
        ([TaskAdapter(32, 3, AdapterConfig())], "3 layers, the fusion 2"),
        (
            [TaskAdapter(32, 2, AdapterConfig(activation=a)) for a in ("relu", "gelu")],
            "one activation",
        ),
    ],
)
def test_adapters_that_cannot_be_fused_are_refused(adapters, message):
    with pytest.raises(ValueError, match=message):
        TaskFusion(32, 2, FusionConfig()).over(adapters)


# ---- attention


def a_split() -> Split:
    """Four sequences of very different lengths."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 20, 7, 11])
    ids = [[rng.integers(10, 100, size=n)] for n in lengths]
    kinds = [[np.zeros_like(row[0])] for row in ids]
    return Split(list("abcd"), np.array([0, 1, 0, 1]), ids, kinds, lengths)


@pytest.mark.parametrize("form", FORMS)
def test_attention_rows_sum_to_one(bert, form):
    model = fused_model(bert.path, implementation=form).eval()
    with record_attention(model.fusion) as recorded, torch.no_grad():
        model(collate(a_split(), np.arange(4), 0))
    assert [tuple(a.shape) for a in recorded] == [(4, 20, 3)] * 2
    for attention in recorded:
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, 20))
        assert attention.std() > 0.05  # far from uniform, or other tests would say little


def test_recording_ends_with_its_block(bert):
    model = fused_model(bert.path).eval()
    batch = collate(a_split(), np.arange(4), 0)
    with record_attention(model.fusion) as recorded:
        model(batch)
    model(batch)
    assert len(recorded) == 2


def test_mean_attention_equals_a_mean_over_real_tokens_by_hand(bert):
    model, split = fused_model(bert.path).eval(), a_split()
    sums, tokens = np.zeros((2, 3)), 0
    for row in range(4):  # each row alone, so that there is no padding to leave out
        with record_attention(model.fusion) as recorded, torch.no_grad():
            model(collate(split, np.array([row]), 0))
        for layer, attention in enumerate(recorded):
            for token in attention[0]:
                sums[layer] += token.double().numpy()
        tokens += int(split.lengths[row])
    result = mean_attention(model, split, 0)
    np.testing.assert_allclose(result, sums / tokens, atol=1e-6)
    np.testing.assert_allclose(result.sum(1), 1, atol=1e-6)


def test_padding_does_not_move_mean_attention(bert, monkeypatch):
    model, split = fused_model(bert.path), a_split()
    together = mean_attention(model, split, 0)
    monkeypatch.setattr(evaluate, "EVALUATION_ROWS", 1)
    alone = mean_attention(model, split, 0)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    with record_attention(model.fusion) as recorded, torch.no_grad():
        model(collate(split, np.arange(4), 0))
    everything = np.array([a.double().mean((0, 1)).numpy() for a in recorded])
    assert np.abs(everything - alone).max() > 1e-3  # counting padding would show


def test_mean_attention_needs_a_fusion(bert):
    with pytest.raises(ValueError, match="no fusion"):
        mean_attention(TaskModel(load_backbone(bert.path), 2), a_split(), 0)
