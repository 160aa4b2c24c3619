"""Bottleneck adapters: the knowledge-extraction stage (paper sections 2.2 and 4.1, appendix A.2).

Symbols: d hidden size, r bottleneck width (d / reduction), N adapters, `...` batch and token axes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapterfusion.config import AdapterConfig

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu, "leakyrelu": F.leaky_relu}


class Adapter(nn.Module):
    """up(x) = U act(D x + b) + c, the bottleneck without its residual.

    The residual is added where the adapter sits (`inject.AdaptedOutput`): fusion needs the bare
    up-projection as key and value. Weights start at N(0, 0.02) and biases at zero, so that a new
    adapter changes the backbone only slightly.
    """

    def __init__(self, hidden_size: int, bottleneck: int, activation: str):
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck)
        self.up = nn.Linear(bottleneck, hidden_size)
        self.activation = activation
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]"""
        return self.up(ACTIVATIONS[self.activation](self.down(x)))


class TaskAdapter(nn.Module):
    """One task's adapters for a whole backbone: what stage 1 trains, saves and hands to fusion.

    Pfeiffer: one adapter per layer, after the feed-forward sub-layer (`output`).
    Houlsby: a second one after the attention sub-layer (`attention`).
    """

    def __init__(self, hidden_size: int, n_layers: int, config: AdapterConfig):
        super().__init__()
        if config.reduction > hidden_size:
            raise ValueError(
                f"adapter.reduction: {config.reduction} leaves no bottleneck for a hidden size of "
                f"{hidden_size}. Use a smaller reduction factor."
            )
        self.config = config
        bottleneck = hidden_size // config.reduction

        def per_layer(n: int) -> nn.ModuleList:
            return nn.ModuleList(
                Adapter(hidden_size, bottleneck, config.activation) for _ in range(n)
            )

        self.output = per_layer(n_layers)
        self.attention = per_layer(n_layers if config.architecture == "houlsby" else 0)


class AdapterBank(nn.Module):
    """The adapters of N tasks at one layer, stacked so that one product serves all of them.

    Adapters of different width are padded with zero rows to the widest: act(0) may differ from
    zero, but it meets zero columns of U, so the result is exact. The bank is a frozen copy.
    """

    def __init__(self, adapters: list[Adapter]):
        super().__init__()
        activations = {adapter.activation for adapter in adapters}
        if len(activations) != 1:
            raise ValueError(f"fused adapters must share one activation, found {activations}")
        self.activation = activations.pop()
        self.size = len(adapters)
        r = max(adapter.down.out_features for adapter in adapters)

        def stack(tensors: list[Tensor], axis: int) -> nn.Parameter:
            padded = []
            for t in tensors:
                shape = list(t.shape)
                shape[axis] = r - shape[axis]
                padded.append(torch.cat([t.detach(), t.new_zeros(shape)], axis))
            return nn.Parameter(torch.cat(padded, axis), requires_grad=False)

        self.down_weight = stack([a.down.weight for a in adapters], 0)  # [N*r, d]
        self.down_bias = stack([a.down.bias for a in adapters], 0)  # [N*r]
        self.up_weight = stack([a.up.weight for a in adapters], 1)  # [d, N*r]
        self.up_bias = nn.Parameter(  # [N, d]
            torch.stack([a.up.bias.detach() for a in adapters]), requires_grad=False
        )

    def bottlenecks(self, y: Tensor) -> Tensor:
        """g_n = act(D_n y + b_n) for all n: [..., d] -> [..., N, r]"""
        g = ACTIVATIONS[self.activation](F.linear(y, self.down_weight, self.down_bias))
        return g.unflatten(-1, (self.size, -1))

    def outputs(self, g: Tensor) -> Tensor:
        """up_n = U_n g_n + c_n, every adapter's output in full: [..., N, r] -> [..., N, d]"""
        up = self.up_weight.unflatten(1, (self.size, -1))  # [d, N, r]
        return torch.einsum("...nr,dnr->...nd", g, up) + self.up_bias
