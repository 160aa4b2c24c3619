"""AdapterFusion: attention over adapters, the knowledge-composition stage (paper section 3.2).

Symbols: d hidden size, r bottleneck width, N adapters, `...` batch and token axes.

    q = Q y + b_q          y: the token after the feed-forward sub-layer and the frozen LayerNorm
    k_n = K up_n + b_k     up_n: the output of adapter n, without its residual
    a = softmax_n(dropout(q . k_n))      unscaled, dropout on the scores, as the public code does
    fused = sum_n a_n V up_n             V starts at the identity and is drawn back to it
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapterfusion.adapter import AdapterBank, TaskAdapter
from adapterfusion.config import FusionConfig
from adapterfusion.mixers import average_parameters, mixer

ATTENTION = ("dynamic", "static", "frozen_value")  # the variants that attend


class Fusion(nn.Module):
    """One layer's fusion parameters (the paper's Psi): Q, K and, unless static, V.

    Two forms of one formula: `reference` reads like the equations above; `folded` never builds the
    N vectors of width d, by one of two orders of its products. Tests hold them all equal, in value
    and in gradient.
    """

    def __init__(self, hidden_size: int, config: FusionConfig):
        super().__init__()
        self.implementation = config.implementation
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = None
        self.dropout = nn.Dropout(config.dropout)
        self.softmax = nn.Softmax(dim=-1)  # a module, so that attention can be read by a hook
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if config.variant != "static":
            self.value = nn.Linear(hidden_size, hidden_size, bias=False)
            nn.init.constant_(self.value.weight, 1e-6)
            with torch.no_grad():
                self.value.weight.fill_diagonal_(1.0)
            self.value.requires_grad_(config.variant == "dynamic")

    def forward(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """[..., d] -> [..., d], to be added to the residual stream."""
        return getattr(self, self.implementation)(y, bank)

    def reference(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """The formula as the paper states it: (1 + 2N) d^2 + 2 N r d multiplications a token."""
        up = bank.outputs(bank.bottlenecks(y))  # [..., N, d]
        q, k = self.query(y), self.key(up)
        a = self.softmax(self.dropout(torch.einsum("...d,...nd->...n", q, k)))
        v = self.value(up) if self.value is not None else up
        return torch.einsum("...n,...nd->...d", a, v)

    def folded(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """The same, exactly, by the side that costs fewer multiplications at this many tokens.

        With T tokens and R = N r a layer's score and mix cost, forward and backward, d (9 d T + 4 R T)
        on the token side and d (6 R T + 7 R d) on the weight side; forward alone 3 d (d T + R T)
        against 3 d (R T + R d).
        """
        tokens, d, width = y.shape[:-1].numel(), y.shape[-1], bank.up_weight.shape[1]
        if torch.is_grad_enabled():
            weights_pay = width * (2 * tokens + 7 * d) < 9 * d * tokens
        else:
            weights_pay = width < tokens
        return self.weight_side(y, bank) if weights_pay else self.token_side(y, bank)

    def token_side(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """Folded in 3 d^2 + 3 N r d multiplications a token, storing N r values, not N d.

        q . (K up_n) = (K' q) . up_n, so one product with K' replaces N with K; U_n is folded into
        score and mix, and V, being linear, is applied once to the mix. q . b_k is equal for all n
        but stays, because dropout sets single scores to zero.
        """
        g = bank.bottlenecks(y)  # [..., N, r]
        q = self.query(y)
        folded_q = F.linear(q, self.key.weight.T)  # K' q: [..., d]
        through_up = F.linear(folded_q, bank.up_weight.T).unflatten(-1, (bank.size, -1))
        scores = (through_up * g).sum(-1) + F.linear(folded_q, bank.up_bias)  # [..., N]
        scores = scores + F.linear(q, self.key.bias.unsqueeze(0))
        a = self.softmax(self.dropout(scores))
        mix = F.linear((a.unsqueeze(-1) * g).flatten(-2), bank.up_weight) + a @ bank.up_bias
        return self.value(mix) if self.value is not None else mix

    def weight_side(self, y: Tensor, bank: AdapterBank) -> Tensor:
        """Folded in 3 N r d multiplications a token, after 3 N r d^2 for the batch.

        Q, K and V meet the up-projections before they meet a token: scores are g_n . A_n y with
        A = U' K' Q, and the fused output is B applied to the a_n g_n with B = V U; the biases c_n go
        the same way.
        """
        g = bank.bottlenecks(y)  # [..., N, r]
        up, c, value = bank.up_weight, bank.up_bias, self.value or nn.Identity()
        keys = torch.cat([F.linear(up.T, self.key.weight), self.key(c)])  # of U and c: [N r + N, d]
        to_scores = F.linear(keys, self.query.weight.T)  # A
        through = F.linear(y, to_scores, keys @ self.query.bias)  # [..., N r + N]
        through_up, through_c = through.split([up.shape[1], bank.size], -1)
        scores = (through_up.unflatten(-1, (bank.size, -1)) * g).sum(-1) + through_c  # [..., N]
        a = self.softmax(self.dropout(scores))
        mixed = (a.unsqueeze(-1) * g).flatten(-2)
        return F.linear(mixed, value(up.T).T) + a @ value(c)

    def penalty(self) -> Tensor:
        """||V - I||^2 (Frobenius), which keeps V near the identity; zero for static fusion."""
        if self.value is None:
            return self.query.weight.new_zeros(())
        weight = self.value.weight
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return (weight - identity).square().sum()


class FusedAdapters(nn.Module):
    """What sits at one layer after stage 2: frozen adapters and the fusion that mixes them."""

    def __init__(self, bank: AdapterBank, fusion: Fusion):
        super().__init__()
        self.bank = bank
        self.fusion = fusion

    def forward(self, y: Tensor) -> Tensor:
        """[..., d] -> [..., d]"""
        return self.fusion(y, self.bank)


class TaskFusion(nn.Module):
    """A target task's fusion layers for a whole backbone: what stage 2 trains and saves.

    n_adapters: how many will be mixed; only some of the other variants need to know.

    Raises:
        ValueError: the backbone has one layer, and the last is to be left out.
    """

    def __init__(
        self,
        hidden_size: int,
        n_layers: int,
        config: FusionConfig,
        n_adapters: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.attends = config.variant in ATTENTION
        if n_layers <= config.drop_last:
            raise ValueError("no fusion is left where the last of one layer is left out")

        def layer() -> nn.Module:
            if self.attends:
                return Fusion(hidden_size, config)
            return mixer(config.variant, hidden_size, n_adapters)

        self.layers = nn.ModuleList(layer() for _ in range(n_layers - config.drop_last))

    @property
    def is_watched(self) -> bool:
        """Whether attention is being recorded, which is wanted of every token."""
        return self.attends and bool(self.layers[-1].softmax._forward_hooks)

    def over(self, adapters: list[TaskAdapter]) -> list[FusedAdapters]:
        """One module per layer that mixes these adapters. Their order carries no meaning.

        Raises:
            ValueError: no adapter, a Houlsby adapter, or another number of layers.
        """
        if not adapters:
            raise ValueError("fusion needs at least one adapter")
        depth = len(self.layers) + self.config.drop_last
        for adapter in adapters:
            if len(adapter.attention):
                raise ValueError("fusion mixes Pfeiffer adapters; this one is a Houlsby adapter")
            if len(adapter.output) != depth:
                raise ValueError(
                    f"the adapter has {len(adapter.output)} layers, the fusion {depth}"
                )
        if self.config.variant == "average_parameters":
            adapters = [average_parameters(adapters)]
        per_layer = list(zip(*(adapter.output for adapter in adapters), strict=True))
        return [
            FusedAdapters(AdapterBank(list(bank)), fusion)
            for bank, fusion in zip(per_layer[: len(self.layers)], self.layers, strict=True)
        ]

    def penalty(self) -> Tensor:
        """The term of the loss: weight times the sum of ||V - I||^2 over the layers."""
        return self.config.penalty * torch.stack([f.penalty() for f in self.layers]).sum()


@contextmanager
def record_attention(fusion: TaskFusion) -> Iterator[list[Tensor]]:
    """Yield a list that gets, at each forward pass, one attention [batch, tokens, N] per layer.

    Padding is not masked here: whoever averages knows the mask (`evaluate.mean_attention`).
    """
    recorded: list[Tensor] = []
    handles = [
        layer.softmax.register_forward_hook(lambda _m, _in, out: recorded.append(out.detach()))
        for layer in fusion.layers
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
