"""CPU kernels: equal to PyTorch's own in value and gradient, and only where they apply."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from adapterfusion import kernels
from adapterfusion.kernels import _Attention, _CpuKernels, _draw, _Dropout, cpu_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def mkl_holds_back(monkeypatch):
    """The kernels are the same whatever processor the tests run on."""
    monkeypatch.setattr(kernels, "mkl_holds_back", lambda: True)


# ---- products


def value_and_gradients(x, weight, bias) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    with cpu_kernels(CPU):
        out = F.linear(*leaves)
    (out.square() + out).sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize(
    ("shape", "outputs"), [((3, 5, 8), 6), ((1, 8), 1), ((64, 33), 17), ((2, 2, 2, 4), 3)]
)
def test_product_equals_linear_in_value_and_gradient(shape, outputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(outputs, shape[-1], generator=generator), torch.randn(outputs)
    exact = value_and_gradients(x.double(), weight.double(), bias.double())
    for a, b in zip(value_and_gradients(x, weight, bias), exact, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
        assert (a.double() - b).abs().max() <= 2e-6 * b.abs().max()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[:, 3:9],
        lambda t: t[::2],
        lambda t: t[:1].expand(7, -1),
        lambda t: t.unflatten(1, (2, 6)).transpose(0, 1),
    ],
)
def test_product_of_views_of_any_strides(view):
    x = view(torch.randn(12, 12))
    weight = torch.randn(24, x.shape[-1])[4:9]
    with cpu_kernels(CPU):
        out, back = F.linear(x, weight), F.linear(torch.ones(4, 5), weight.T)
    torch.testing.assert_close(out, x @ weight.T)
    torch.testing.assert_close(back, weight.sum(0).expand(4, -1))


def test_product_with_a_gradient_that_is_an_expanded_scalar():
    weight = torch.randn(3, 4, requires_grad=True)
    with cpu_kernels(CPU):
        F.linear(torch.ones(2, 4), weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3, 4), 2.0))


def test_product_with_a_frozen_weight_keeps_no_input():
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4)
    saved = []
    with cpu_kernels(CPU), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        F.linear(x, weight)
    assert [t.data_ptr() for t in saved if t is not None] == [weight.data_ptr()]


def test_product_by_module_and_by_keywords():
    linear, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    expected = linear(x)
    with cpu_kernels(CPU), torch.inference_mode():
        torch.testing.assert_close(linear(x), expected)
        out = F.linear(input=x, weight=linear.weight, bias=linear.bias)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("case", ["float64", "bfloat16", "autocast", "vector", "meta", "intel"])
def test_other_products_are_left_to_pytorch(case, monkeypatch):
    monkeypatch.setattr(kernels, "_Linear", None)
    monkeypatch.setattr(kernels, "mkl_holds_back", lambda: case != "intel")
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    device = "meta" if case == "meta" else "cpu"
    x = torch.ones((4,) if case == "vector" else (2, 4), dtype=dtype, device=device)
    weight = torch.ones(3, 4, dtype=dtype, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), cpu_kernels(CPU):
        out = F.linear(x, weight)
    assert out.shape == (*x.shape[:-1], 3)
    assert out.dtype == (torch.bfloat16 if case == "autocast" else dtype)


# ---- dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_draw_keeps_the_right_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    kept, scale = _draw(torch.Size([100, 1001]), p)
    assert kept.shape == (100, 1001) and kept.dtype == torch.bool
    assert abs(kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(scale * (1 - p) - 1) < 2**-16 / (1 - p)
    for other in (kept.roll(1, 1), kept.roll(4, 1), kept.roll(1, 0)):  # neighbours are independent
        both = (kept & other).double().mean()
        assert abs(both - (1 - p) ** 2) < 5 * kept.numel() ** -0.5


def test_draw_follows_the_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(_draw(torch.Size([50]), 0.5)[0])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_scales_what_it_keeps_in_value_and_gradient(dtype):
    x = torch.ones(200, 30, dtype=dtype, requires_grad=True)
    with cpu_kernels(CPU):
        out = F.dropout(x, 0.25)
    out.sum().backward()
    values = out.detach().unique().tolist()
    assert values == [0.0, pytest.approx(4 / 3, rel=1e-2)]
    assert out.dtype == dtype and torch.equal(x.grad, out.detach())


def test_dropout_keeps_one_byte_an_element():
    saved = []
    x = torch.ones(64, requires_grad=True)
    with cpu_kernels(CPU), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        torch.nn.Dropout(0.1)(x)
    assert [(t.dtype, t.numel()) for t in saved] == [(torch.bool, 64)]


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1.0, True)])
def test_dropout_that_drops_nothing_or_all_is_left_to_pytorch(p, training, monkeypatch):
    monkeypatch.setattr(kernels, "_Dropout", None)
    with cpu_kernels(CPU):
        out = F.dropout(torch.ones(3), p, training)
    assert torch.equal(out, torch.full((3,), 0.0 if p == 1 else 1.0))


# ---- attention


def fixed_draw(shape, p):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(shape, generator=generator) >= p, 1 / (1 - p)


def heads(dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys, values as BERT hands them over: [batch, heads, tokens, d], transposed views."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 5, 3, 4, dtype=dtype, generator=generator) for _ in range(3)]
    return [t.transpose(1, 2).requires_grad_() for t in made]


MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None].expand(-1, 1, 5, -1)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_equals_the_formula_under_one_mask(mask, scale, monkeypatch):
    monkeypatch.setattr(kernels, "_draw", fixed_draw)
    q, k, v = heads(torch.float32)
    with cpu_kernels(CPU):
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.3, scale=scale)
    scores = q.double() @ k.double().transpose(-1, -2) * (scale or 0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    kept, factor = fixed_draw(scores.shape, 0.3)
    expected = (scores.softmax(-1) * kept * factor) @ v.double()
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)
    ours = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, MASK])
def test_gradients_of_attention_and_dropout_are_those_of_their_values(mask, monkeypatch):
    monkeypatch.setattr(kernels, "_draw", fixed_draw)
    q, k, v = heads(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: _Attention.apply(*x, mask, 0.3, 0.5), (q, k, v))
    assert torch.autograd.gradcheck(lambda x: _Dropout.apply(x, 0.3), (q,))


def test_attention_keeps_its_inputs_and_one_byte_a_score():
    saved = []
    with cpu_kernels(CPU), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        F.scaled_dot_product_attention(*heads(torch.float32), dropout_p=0.1)
    assert sorted(str(t.dtype) for t in saved if t is not None) == ["torch.bool"] + 3 * [
        "torch.float32"
    ]


@pytest.mark.parametrize("case", ["no dropout", "causal", "additive mask", "float64"])
def test_other_attention_is_left_to_pytorch(case, monkeypatch):
    monkeypatch.setattr(kernels, "_Attention", None)
    q, k, v = heads(torch.float64 if case == "float64" else torch.float32)
    mask = torch.zeros(5, 5) if case == "additive mask" else None
    options = {"dropout_p": 0.0 if case == "no dropout" else 0.1, "is_causal": case == "causal"}
    with cpu_kernels(CPU):
        out = F.scaled_dot_product_attention(q, k, v, mask, **options)
    assert out.shape == q.shape


# ---- the process


def test_freed_memory_is_kept_without_page_faults():
    code = """
import resource, sys, torch
from adapterfusion.kernels import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(20)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # glibc's documented defaults, held fixed: it would adapt them to what it sees
    defaults = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

    def faults(kind: str) -> int:
        command = [sys.executable, "-c", code, kind]
        done = subprocess.run(command, capture_output=True, env=os.environ | defaults)
        return int(done.stdout)

    assert faults("kept") < faults("given back") / 10


def test_what_an_earlier_run_left_is_given_back_at_the_next_ones_start():
    code = """
import torch
from adapterfusion.kernels import keep_freed_memory

def resident_mib():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 2**20

keep_freed_memory()
before = resident_mib()
tensors = [torch.ones(2**20) for _ in range(100)]
del tensors
kept = resident_mib() - before
keep_freed_memory()
print(kept, resident_mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    kept, left = map(float, done.stdout.split())
    assert kept > 300  # of 400
    assert left < 100


# ---- the context


def test_same_seed_gives_the_same_bits():
    def run() -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        with cpu_kernels(CPU):
            return layer(torch.ones(2, 3, 8))

    assert torch.equal(run(), run())


def test_context_is_for_the_cpu_alone():
    assert isinstance(cpu_kernels(CPU), _CpuKernels)
    assert not isinstance(cpu_kernels(torch.device("cuda")), _CpuKernels)
