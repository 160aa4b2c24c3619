"""Products by oneDNN: equal to PyTorch's own in value and gradient, and only where they apply."""

import pytest
import torch
from torch.nn import functional as F

from adapterfusion import products
from adapterfusion.products import _OneDNN, fast_products

SHAPES = [((3, 5, 8), 6), ((1, 8), 1), ((64, 33), 17), ((2, 2, 2, 4), 3)]


def value_and_gradients(x, weight, bias, mode) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    with mode:
        out = F.linear(*leaves)
    (out.square() + out).sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_equals_linear_in_value_and_gradient(shape, outputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(outputs, shape[-1], generator=generator), torch.randn(outputs)
    ours = value_and_gradients(x, weight, bias, _OneDNN())
    exact = value_and_gradients(x.double(), weight.double(), bias.double(), _OneDNN())
    for a, b in zip(ours, exact, strict=True):
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
def test_views_of_any_strides(view):
    x, weight = view(torch.randn(12, 12)), None
    weight = torch.randn(24, x.shape[-1])[4:9]
    with _OneDNN():
        out, back = F.linear(x, weight), F.linear(torch.randn(4, 5), weight.T)
    torch.testing.assert_close(out, x @ weight.T)
    assert back.shape == (4, x.shape[-1])


def test_gradient_that_is_an_expanded_scalar():
    weight = torch.randn(3, 4, requires_grad=True)
    with _OneDNN():
        F.linear(torch.ones(2, 4), weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3, 4), 2.0))


def test_only_what_needs_a_gradient_gets_one_and_frozen_weights_keep_no_input():
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4)
    saved = []
    with _OneDNN(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        F.linear(x, weight)
    assert [t.data_ptr() for t in saved if t is not None] == [weight.data_ptr()]


def test_module_and_keyword_arguments():
    linear, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    expected = linear(x)
    with _OneDNN(), torch.inference_mode():
        torch.testing.assert_close(linear(x), expected)
        torch.testing.assert_close(
            F.linear(input=x, weight=linear.weight, bias=linear.bias), expected
        )


@pytest.mark.parametrize("case", ["float64", "bfloat16", "autocast", "vector", "meta"])
def test_what_it_does_not_serve_is_left_to_pytorch(case, monkeypatch):
    monkeypatch.setattr(products, "_Linear", None)
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    device = "meta" if case == "meta" else "cpu"
    x = torch.ones((4,) if case == "vector" else (2, 4), dtype=dtype, device=device)
    weight = torch.ones(3, 4, dtype=dtype, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), _OneDNN():
        out = F.linear(x, weight)
    assert out.shape == (*x.shape[:-1], 3)
    assert out.dtype == (torch.bfloat16 if case == "autocast" else dtype)


def test_same_bits_every_time():
    x, weight, bias = torch.randn(50, 40), torch.randn(30, 40), torch.randn(30)
    first, second = (value_and_gradients(x, weight, bias, _OneDNN()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("held_back", [True, False])
def test_context_follows_the_processor(held_back, monkeypatch):
    monkeypatch.setattr(products, "_mkl_holds_back", lambda: held_back)
    assert isinstance(fast_products(), _OneDNN) is held_back
