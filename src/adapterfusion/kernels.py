"""What PyTorch computes slowly on a CPU, computed faster: products, dropout, attention with dropout.

Inside `cpu_kernels()` three functions of PyTorch take another way to the same result, whoever calls
them, so that the backbone's code stays as it is:

- `F.linear` in float32, on processors whose maker is not that of PyTorch's BLAS. MKL runs its kernels
  without AVX-512 there; the oneDNN library that PyTorch carries as well (torch.compile calls it)
  makes no such difference: 230 against 105 GFLOP/s on one core of a Zen 5.
- `F.dropout`: a mask from 16 random bits an element, four elements a draw, kept as booleans.
- `F.scaled_dot_product_attention` with dropout, for which PyTorch has no fused kernel on a CPU and
  keeps all that it computes: here the probabilities are made again in the backward pass.

Results are the same from run to run. Sums differ from PyTorch's own by the order of their terms, and
p is rounded to a multiple of 2^-16, by which the kept values are scaled as well.
"""

import ctypes
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


def _rows(x: Tensor) -> Tensor:
    """[..., m] -> [rows, m], copied only where it is neither row- nor column-major."""
    rows = x.reshape(-1, x.shape[-1])
    down, right = rows.stride()
    by_row, by_column = right == 1 and down >= rows.shape[1], down == 1 and right >= rows.shape[0]
    return rows if by_row or by_column else rows.contiguous()


class _Linear(torch.autograd.Function):
    """F.linear with its three products (output, and gradients of x and W) done by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = _rows(x)
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        ctx.shape = x.shape
        return _product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = _rows(grad)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T).view(ctx.shape) if needs_x else None,
            _product(grad.T, x.T) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _draw(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Which elements stay, each with probability 1 - p, and by how much to scale them."""
    dropped = round(p * 2**16)
    numbers = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: shape.numel()].view(shape) >= dropped - 2**15
    return kept, 2**16 / (2**16 - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, ctx.scale = _draw(x.shape, p)
        ctx.save_for_backward(kept)
        return x * kept.to(x.dtype).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept.to(grad.dtype).mul_(ctx.scale), None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return torch.softmax(scores, -1)


class _Attention(torch.autograd.Function):
    """dropout(softmax(q k' scale)) v for [batch, heads, tokens, d]; mask: True where k may be seen."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, scale: float
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # once, not at each product
        a = _probabilities(q, k, mask, scale)
        kept, ctx.kept_scale = _draw(a.shape, p)
        ctx.save_for_backward(q, k, v, mask, kept)
        ctx.scale = scale
        return a.mul_(kept.to(a.dtype).mul_(ctx.kept_scale)) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, kept = ctx.saved_tensors
        grad = grad.contiguous()
        a = _probabilities(q, k, mask, ctx.scale)
        keep = kept.to(a.dtype).mul_(ctx.kept_scale)
        grad_a = (grad @ v.transpose(-1, -2)).mul_(keep)
        grad_v = keep.mul_(a).transpose(-1, -2) @ grad
        grad_scores = torch._softmax_backward_data(grad_a, a, -1, a.dtype).mul_(ctx.scale)
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, grad_v, None, None, None


def _is_plain(*tensors: Tensor | None) -> bool:
    """All float32 on the CPU, outside autocast."""
    return not torch.is_autocast_enabled("cpu") and all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if mkl_holds_back() and input.dim() > 1 and _is_plain(input, weight, bias):
        return _Linear.apply(input, weight, bias)
    return F.linear(input, weight, bias)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    is_served = training and 0 < p < 1 and not inplace
    if is_served and input.device.type == "cpu" and input.is_floating_point():
        return _Dropout.apply(input, p)
    return F.dropout(input, p, training, inplace)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Tensor:
    is_served = 0 < dropout_p < 1 and not is_causal and not any(others.values())
    of_booleans = attn_mask is None or attn_mask.dtype == torch.bool
    if is_served and of_booleans and _is_plain(query, key, value):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return _Attention.apply(query, key, value, attn_mask, dropout_p, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others
    )


OURS = {F.linear: _linear, F.dropout: _dropout, F.scaled_dot_product_attention: _attention}


class _CpuKernels(TorchFunctionMode):
    """While it is active, the three functions above are called in place of PyTorch's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return OURS.get(func, func)(*args, **(kwargs or {}))


@cache
def mkl_holds_back() -> bool:
    """A processor with AVX-512 that MKL does not take for its own."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.is_file()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def keep_freed_memory() -> None:
    """Let glibc keep what one step frees for the next, but give back what earlier runs left.

    By default it hands large blocks back and gets them anew, page by page: 100 000 page faults a
    step at the size of BERT-base, a tenth of its time. Elsewhere than in glibc this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.malloc_trim(0)


def same_from_run_to_run() -> None:
    """Let PyTorch choose algorithms that give the same bits again, for the rest of this process."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a debugging aid of that mode, which touches all memory once more: nothing reads it unwritten
    torch.utils.deterministic.fill_uninitialized_memory = False


def cpu_kernels(device: torch.device) -> AbstractContextManager:
    """A context for a forward pass on this device; the backward pass that follows needs none."""
    return _CpuKernels() if device.type == "cpu" else nullcontext()
