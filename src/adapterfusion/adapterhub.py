"""Adapters, fusions and heads that others published, used here; and ours, used there.

    backbone = load_backbone(folder)
    names = ["mnli", "qqp", "rte"]
    adapters = [load_adapter(f"published/{name}", backbone) for name in names]
    size = backbone.config
    fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, FusionConfig())
    model = TaskModel(backbone, n_outputs=2).with_fusion(fusion, adapters)
    ...                                                    # train it, then hand it on:
    save_fusion("mine", names, fusion, backbone)
    save_head("mine", "mnli,qqp,rte", model.head, backbone, labels=["no", "yes"])

The folders are those of the public library, adapters 1.3.0 (`hubfiles` knows them); what it would
compute with them is computed here too, or the folder is refused. What a folder holds:

    python -m adapterfusion.adapterhub show FOLDER
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.fusion import TaskFusion
from adapterfusion.hubfiles import (
    ADAPTER,
    FUSION,
    HEAD,
    Part,
    check_backbone,
    fill,
    read_config,
    read_tensors,
    without_namesakes,
    write,
)
from adapterfusion.huboptions import (
    ADAPTER_FIXED,
    ADAPTER_INERT,
    FUSION_FIXED,
    HEAD_FIXED,
    AdapterHubError,
    adapter_config,
    fused_names,
    fusion_config,
    head_config,
    refuse,
)
from adapterfusion.model import Head


@dataclass(frozen=True)
class LoadedFusion:
    """adapters: their names, in the order they were fused, which is that of the attention."""

    fusion: TaskFusion
    adapters: tuple[str, ...]


@dataclass(frozen=True)
class LoadedHead:
    """labels: class names by id, where known; choices: set for multiple choice."""

    head: Head
    labels: tuple[str, ...]
    choices: int | None


def adapter_names(name: str, adapter: TaskAdapter) -> dict[str, str]:
    """Our tensor names -> the library's, in its order."""
    places = {"attention": "attention.output", "output": "output"}
    parts = {"down": "adapter_down.0", "up": "adapter_up"}
    names = {}
    for layer in range(len(adapter.output)):
        for ours, place in places.items():
            if not len(getattr(adapter, ours)):
                continue
            for part, their_part in parts.items():
                for kind in ("weight", "bias"):
                    theirs = f"encoder.layer.{layer}.{place}.adapters.{name}.{their_part}.{kind}"
                    names[f"{ours}.{layer}.{part}.{kind}"] = theirs
    return names


def fusion_names(name: str, fusion: TaskFusion) -> dict[str, str]:
    """Our tensor names -> the library's."""
    names = {}
    for key in fusion.state_dict():
        _, layer, tensor = key.split(".", 2)  # layers.3.query.weight
        names[key] = f"encoder.layer.{layer}.output.adapter_fusion_layer.{name}.{tensor}"
    return names


def head_names(name: str, head: Head) -> dict[str, str]:
    return {key: f"heads.{name}.{key}" for key in head.state_dict()}


def _renamed(module: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {theirs: state[ours] for ours, theirs in names.items()}


def _head_dropout(backbone: nn.Module) -> float:
    """The rate a head has whose config names none."""
    rate = getattr(backbone.config, "classifier_dropout", None)
    return backbone.config.hidden_dropout_prob if rate is None else rate


# Modules are built on the meta device, so that loading draws no random number.


def load_adapter(
    folder: Path | str, backbone: nn.Module, backbone_name: str | None = None
) -> TaskAdapter:
    """A published adapter, ready for `TaskModel.with_adapter` or, with others, `with_fusion`.

    backbone_name: the backbone's id, where it was loaded from a folder that does not tell.

    Raises:
        AdapterHubError: made for another backbone, with options that have no counterpart here, or
            damaged.
    """
    where, values = read_config(Path(folder), ADAPTER)
    config = adapter_config(where, values)
    check_backbone(where, values, backbone, backbone_name)
    path, tensors = read_tensors(Path(folder), ADAPTER)
    size = backbone.config
    if config.reduction > size.hidden_size:
        problem = f"{config.reduction} leaves no bottleneck in {size.hidden_size}"
        refuse(where, "config.reduction_factor", problem, "Use a wider adapter.")
    with torch.device("meta"):
        adapter = TaskAdapter(size.hidden_size, size.num_hidden_layers, config)
    fill(adapter, adapter_names(values["name"], adapter), path, tensors, backbone)
    return adapter


def load_fusion(
    folder: Path | str, backbone: nn.Module, backbone_name: str | None = None
) -> LoadedFusion:
    """A fusion and the names of the adapters it was trained with. Raises as `load_adapter`."""
    where, values = read_config(Path(folder), FUSION)
    config = fusion_config(where, values, backbone.config.attention_probs_dropout_prob)
    check_backbone(where, values, backbone, backbone_name)
    path, tensors = read_tensors(Path(folder), FUSION)
    with torch.device("meta"):
        size = backbone.config
        fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, config)
    tensors = without_namesakes(tensors, "adapter_fusion_layer", values["name"])
    fill(fusion, fusion_names(values["name"], fusion), path, tensors, backbone)
    return LoadedFusion(fusion, fused_names(values))


def load_head(
    folder: Path | str, backbone: nn.Module, backbone_name: str | None = None
) -> LoadedHead:
    """A classification or multiple-choice head of two layers. Raises as `load_adapter`."""
    where, values = read_config(Path(folder), HEAD)
    labels, choices, n_outputs = head_config(where, values)
    check_backbone(where, values, backbone, backbone_name)
    path, tensors = read_tensors(Path(folder), HEAD)
    dropout = values["config"].get("dropout_prob")
    with torch.device("meta"):
        rate = _head_dropout(backbone) if dropout is None else dropout
        head = Head(backbone.config.hidden_size, n_outputs, rate)
    tensors = without_namesakes(tensors, "heads", values["name"])
    fill(head, head_names(values["name"], head), path, tensors, backbone)
    return LoadedHead(head, labels, choices)


def save_adapter(
    folder: Path | str,
    name: str,
    adapter: TaskAdapter,
    backbone: nn.Module,
    backbone_name: str | None = None,
) -> None:
    """Write `adapter` as the library's `save_adapter` does. backbone_name: as in `load_adapter`."""
    houlsby = adapter.config.architecture == "houlsby"
    config = {
        **ADAPTER_FIXED,
        **ADAPTER_INERT,
        "mh_adapter": houlsby,
        "original_ln_before": not houlsby,
        "reduction_factor": adapter.config.reduction,
        "non_linearity": adapter.config.activation,
    }
    tensors = _renamed(adapter, adapter_names(name, adapter))
    write(Path(folder), ADAPTER, name, {"config": config}, tensors, backbone, backbone_name)


def save_fusion(
    folder: Path | str,
    adapters: Sequence[str],
    fusion: TaskFusion,
    backbone: nn.Module,
    name: str | None = None,
    backbone_name: str | None = None,
) -> None:
    """Write `fusion` as the library's `save_adapter_fusion` does.

    adapters: names in the order they were fused. name: the fusion's, by default these names joined.
    The format cannot say two things: a penalty's weight other than 0.01, and dropout switched off
    (it reads 0 as the backbone's own rate). Neither changes what the fusion computes in evaluation.
    """
    dynamic, dropout = fusion.config.variant == "dynamic", fusion.config.dropout
    usual = dropout == backbone.config.attention_probs_dropout_prob
    config = {
        **FUSION_FIXED,
        "value": dynamic,
        "value_before_softmax": True,
        "value_initialized": dynamic,
        "regularization": dynamic and fusion.config.penalty > 0,
        "dropout_prob": None if usual else dropout,
    }
    name = name or ",".join(adapters)
    values = {"adapter_names": list(adapters), "config": config}
    tensors = _renamed(fusion, fusion_names(name, fusion))
    write(Path(folder), FUSION, name, values, tensors, backbone, backbone_name)


def save_head(
    folder: Path | str,
    name: str,
    head: Head,
    backbone: nn.Module,
    labels: Sequence[str] = (),
    choices: int | None = None,
    backbone_name: str | None = None,
) -> None:
    """Write `head` as the library's `save_head` does; the folder may hold an adapter or a fusion.

    labels: class names by id. choices: set for multiple choice.
    """
    count = choices or head[-1].out_features
    if choices:
        kind = {"head_type": "multiple_choice", "num_choices": count}
    else:
        kind = {"head_type": "classification", "num_labels": count, "bias": True}
    names = labels or [f"LABEL_{i}" for i in range(count)]
    if len(set(names)) != count:
        raise ValueError(f"labels: {count} different names are needed, not {list(names)}")
    config = {
        **HEAD_FIXED,
        **kind,
        "label2id": {label: i for i, label in enumerate(names)},
        "dropout_prob": None if head[0].p == _head_dropout(backbone) else head[0].p,
    }
    tensors = _renamed(head, head_names(name, head))
    write(Path(folder), HEAD, name, {"config": config}, tensors, backbone, backbone_name)


def _summary(part: Part, where: Path, values: dict[str, Any]) -> str:
    if part is ADAPTER:
        config = adapter_config(where, values)
        return f"{config.architecture}, reduction {config.reduction}, {config.activation}"
    if part is FUSION:
        return f"{fusion_config(where, values, 0.0).variant}, of {', '.join(fused_names(values))}"
    labels, choices, n_outputs = head_config(where, values)
    return f"{choices} choices" if choices else f"labels {', '.join(labels) or n_outputs}"


def describe(folder: Path) -> list[str]:
    """What a folder holds, and whether it would be refused whatever the backbone."""
    lines = []
    for part in (ADAPTER, FUSION, HEAD):
        if not (folder / part.config).is_file():
            continue
        where, values = read_config(folder, part)
        path, tensors = read_tensors(folder, part)
        numbers = sum(tensor.numel() for tensor in tensors.values())
        lines.append(f"{part.title} {values['name']!r}, made for {values.get('model_name')!r}")
        lines.append(f"  {path.name}: {len(tensors)} tensors, {numbers:,} numbers")
        try:
            lines.append(f"  {_summary(part, where, values)}")
        except AdapterHubError as error:
            lines.append(f"  not usable here: {error}")
    return lines or [f"{folder}: no adapter, fusion or head in it"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Folders of the public library, adapters 1.3.0.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="say what a folder holds")
    show.add_argument("folder", type=Path)
    try:
        print("\n".join(describe(parser.parse_args().folder)))
    except AdapterHubError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
