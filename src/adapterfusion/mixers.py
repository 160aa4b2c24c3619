"""Other ways to mix the outputs of N adapters: what the study holds against attention.

Each has the place of `fusion.Fusion` in a layer: it takes the token y and the bank of adapters, and
returns what is added to the residual stream. Symbols as in `fusion`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapterfusion.adapter import Adapter, AdapterBank, TaskAdapter


class Mixer(nn.Module):
    """A mixer without a penalty; all start as the uniform average."""

    def penalty(self) -> Tensor:
        return torch.zeros(())


class Average(Mixer):
    """1/N sum_n up_n: nothing to learn."""

    def forward(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """[..., d] -> [..., d]"""
        g = bank.bottlenecks(y).flatten(-2)
        return F.linear(g, bank.up_weight, bank.up_bias.sum(0)) / bank.size


class Scalars(Mixer):
    """sum_n softmax(s)_n up_n: one learned weight per adapter and layer, the same for all tokens."""

    def __init__(self, n_adapters: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(n_adapters))

    def forward(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """[..., d] -> [..., d]"""
        a = self.scores.softmax(-1)
        g = (bank.bottlenecks(y) * a.unsqueeze(-1)).flatten(-2)
        return F.linear(g, bank.up_weight, a @ bank.up_bias)


class Concatenation(Mixer):
    """W [up_1; ...; up_N] with W of size d x N d, which starts as the average."""

    def __init__(self, hidden_size: int, n_adapters: int):
        super().__init__()
        eye = torch.eye(hidden_size) / n_adapters
        self.weight = nn.Parameter(eye.repeat(1, n_adapters))

    def forward(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """[..., d] -> [..., d]"""
        return F.linear(bank.outputs(bank.bottlenecks(y)).flatten(-2), self.weight)


def mixer(variant: str, hidden_size: int, n_adapters: int | None) -> Mixer:
    """The mixer of that name. An average of parameters is an average over the one adapter it leaves.

    Raises:
        ValueError: the number of adapters decides its size and was not given.
    """
    if variant in ("average", "average_parameters"):
        return Average()
    if n_adapters is None:
        raise ValueError(f"fusion.variant: {variant} needs the number of adapters beforehand")
    return Scalars(n_adapters) if variant == "scalars" else Concatenation(hidden_size, n_adapters)


@torch.no_grad()
def average_parameters(adapters: list[TaskAdapter]) -> TaskAdapter:
    """One adapter whose every parameter is the mean over `adapters`.

    Raises:
        ValueError: they differ in width, so that there is no mean.
    """
    first = adapters[0]
    if any(a.config != first.config for a in adapters):
        raise ValueError("parameters can be averaged over adapters of one configuration only")
    d, layers = first.output[0].up.out_features, len(first.output)
    mean = TaskAdapter(d, layers, first.config)
    for name, parameter in mean.named_parameters():
        parameter.copy_(torch.stack([a.get_parameter(name) for a in adapters]).mean(0))
    return mean


def untrained(adapter: TaskAdapter) -> TaskAdapter:
    """A new adapter of the same size, as training would start from it."""
    layer: Adapter = adapter.output[0]
    return TaskAdapter(layer.up.out_features, len(adapter.output), adapter.config)
