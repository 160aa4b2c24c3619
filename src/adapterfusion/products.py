"""Float32 matrix products on CPUs whose maker is not that of PyTorch's BLAS: twice as fast.

PyTorch hands float32 products on a CPU to MKL, which runs its kernels without AVX-512 on processors
of other makers. The oneDNN library that PyTorch carries as well (torch.compile calls it) makes no
such difference: 230 against 105 GFLOP/s on one core of a Zen 5. The sums are the same up to the
order of their terms, and the same from run to run.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b of matrices: [rows, m], [n, m], [n] -> [rows, n]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """F.linear with its three products (output, and gradients of x and W) done by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        ctx.shape = x.shape
        return _product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T).view(ctx.shape) if needs_x else None,
            _product(grad.T, x.T) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _OneDNN(TorchFunctionMode):
    """While it is active, F.linear (so nn.Linear too) takes `_Linear` where it applies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return self.linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        tensors = (input, weight) if bias is None else (input, weight, bias)
        plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        if not plain or input.dim() < 2 or torch.is_autocast_enabled("cpu"):
            return F.linear(input, weight, bias)
        return _Linear.apply(input, weight, bias)


@cache
def _mkl_holds_back() -> bool:
    """A processor with AVX-512 that MKL does not take for its own."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.is_file()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def fast_products() -> AbstractContextManager:
    """A context for a forward pass; the backward pass that follows it needs none."""
    return _OneDNN() if _mkl_holds_back() else nullcontext()
