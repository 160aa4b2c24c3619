"""The golden files, read for tests: what the public implementation computed, and our model of it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterfusion.adapterhub import load_adapter, load_fusion, load_head
from adapterfusion.model import TaskModel, load_backbone

# Another folder than the committed one: files that were made just now (see golden/compare_live.py).
GOLDEN = Path(os.environ.get("ADAPTERFUSION_GOLDEN", Path(__file__).parent / "golden"))
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
FUSIONS = [name for name in CASES if (GOLDEN / name / "fusion").is_dir()]


@dataclass(frozen=True)
class Case:
    """One case: its description, the peer's numbers, and where the peer's folders lie."""

    name: str
    backbone: str
    adapters: dict[str, Path]
    fusion: Path | None
    head: Path
    expected: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {k: self.expected[k] for k in ("input_ids", "attention_mask", "token_type_ids")}


def read_case(name: str) -> Case:
    folder = GOLDEN / name
    values = json.loads((folder / "case.json").read_text())
    adapters = {adapter: folder / "adapters" / adapter for adapter in values["adapters"]}
    fusion = folder / "fusion" if values["fusion"] else None
    return Case(
        name=name,
        backbone=values["backbone"],
        adapters=adapters,
        fusion=fusion,
        head=fusion or next(iter(adapters.values())),
        expected=load_file(folder / "expected.safetensors"),
    )


def backbone(name: str) -> nn.Module:
    return load_backbone(GOLDEN / "backbones" / name)


def build(case: Case, implementation: str = "folded") -> TaskModel:
    """Our model with the weights of the peer's folders, in evaluation mode."""
    encoder = backbone(case.backbone)
    adapters = {name: load_adapter(folder, encoder) for name, folder in case.adapters.items()}
    head = load_head(case.head, encoder)
    model = TaskModel(encoder, head.head[-1].out_features, head.choices)
    model.head = head.head
    if case.fusion is None:
        return model.with_adapter(next(iter(adapters.values()))).eval()
    loaded = load_fusion(case.fusion, encoder)
    for layer in loaded.fusion.layers:
        layer.implementation = implementation
    return model.with_fusion(loaded.fusion, [adapters[name] for name in loaded.adapters]).eval()


def logits(model: TaskModel, case: Case) -> Tensor:
    with torch.no_grad():
        return model(case.inputs)
