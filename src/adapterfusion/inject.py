"""The one seam: where adapters and fusion enter a transformer layer.

`layer.output` (and `layer.attention.output` for Houlsby) is a dense, dropout, LayerNorm block in
BERT and RoBERTa alike. It is replaced, after loading, by a module that adopts those three under the
same names, so that no key of the backbone's state dict changes and no forward code is copied.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.fusion import TaskFusion


class InjectionError(ValueError):
    """The backbone has no such seam, or something sits there already."""


class AdaptedOutput(nn.Module):
    """The block's own computation with `delta` added before its LayerNorm.

    Pfeiffer (`norm_first`): delta sees y = LN(h + x_in), and the output is LN(delta(y) + h + x_in)
    with the same frozen LayerNorm. Houlsby: delta sees h itself.
    """

    def __init__(self, block: nn.Module, delta: nn.Module, norm_first: bool):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = block.dense, block.dropout, block.LayerNorm
        self.delta = delta
        self.norm_first = norm_first
        self._block = (block,)  # in a tuple: kept for `eject`, but not registered as a child
        self.train(block.training)  # a new module starts in training mode, whatever it replaces

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[batch, tokens, width], [batch, tokens, d] -> [batch, tokens, d]"""
        h = self.dropout(self.dense(hidden_states))
        residual = h + input_tensor
        seen = self.LayerNorm(residual) if self.norm_first else h
        return self.LayerNorm(self.delta(seen) + residual)


def _layers(backbone: nn.Module) -> nn.ModuleList:
    """The transformer layers, once it is certain that each has the seam."""
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise InjectionError(
            f"{type(backbone).__name__} has no encoder.layer: BERT and RoBERTa backbones are supported"
        )
    for i, layer in enumerate(layers):
        for block in (layer.output, layer.attention.output):
            if isinstance(block, AdaptedOutput):
                raise InjectionError(f"layer {i} holds an adapter already: call eject() first")
            if not all(hasattr(block, name) for name in ("dense", "dropout", "LayerNorm")):
                raise InjectionError(f"layer {i}: no dense, dropout, LayerNorm block to adopt")
    return layers


def _match(n_modules: int, layers: nn.ModuleList) -> None:
    if n_modules != len(layers):
        raise InjectionError(f"made for {n_modules} layers, the backbone has {len(layers)}")


def inject_adapter(backbone: nn.Module, adapter: TaskAdapter) -> None:
    """Put one task's adapters into the backbone, in place.

    Raises:
        InjectionError: not a BERT-like backbone, adapters inside already, or another depth.
    """
    layers = _layers(backbone)
    _match(len(adapter.output), layers)
    houlsby = len(adapter.attention) > 0
    for i, layer in enumerate(layers):
        layer.output = AdaptedOutput(layer.output, adapter.output[i], norm_first=not houlsby)
        if houlsby:
            block = layer.attention.output
            layer.attention.output = AdaptedOutput(block, adapter.attention[i], norm_first=False)


def inject_fusion(backbone: nn.Module, fusion: TaskFusion, adapters: Sequence[TaskAdapter]) -> None:
    """Put a fusion over frozen copies of `adapters` into the backbone, in place.

    With `drop_last` the last layer stays as it is.

    Raises:
        InjectionError: as `inject_adapter`. ValueError: as `TaskFusion.over`.
    """
    layers = _layers(backbone)
    _match(len(fusion.layers) + fusion.config.drop_last, layers)
    for layer, fused in zip(layers, fusion.over(list(adapters)), strict=False):
        layer.output = AdaptedOutput(layer.output, fused, norm_first=True)


def eject(backbone: nn.Module) -> None:
    """Give the backbone its own blocks back; what was injected lives on in its owner."""
    for layer in backbone.encoder.layer:
        for owner in (layer, layer.attention):
            if isinstance(owner.output, AdaptedOutput):
                (block,) = owner.output._block
                owner.output = block.train(owner.output.training)
