"""A run's model at its start: loaded, injected, frozen where it must be."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.checkpoint import load_adapter, load_start
from adapterfusion.fusion import TaskFusion
from adapterfusion.mixers import untrained
from adapterfusion.model import JointModel, TaskModel, Trained, load_backbone, shared_copy
from adapterfusion.spec import RunSpec


def source_adapters(spec: RunSpec, backbone: nn.Module) -> list[TaskAdapter]:
    """The adapters that a run fuses, in the order of `sources`."""
    adapters = []
    for source, artifact in spec.sources.items():
        adapter = load_adapter(Path(artifact.path), backbone, spec, source)
        if spec.fusion.random_others and source != spec.task:
            adapter = untrained(adapter)
        adapters.append(adapter)
    return adapters


def _adapter(spec: RunSpec, backbone: nn.Module) -> TaskAdapter | None:
    size = backbone.config
    if spec.adapter is None:
        return None
    return TaskAdapter(size.hidden_size, size.num_hidden_layers, spec.adapter)


def build_model(spec: RunSpec, tasks: dict[str, dict[str, Any]]) -> Trained:
    """The model of a run on `tasks` (task -> what its info.json says): one task's, or a joint one.

    Raises:
        WeightsError: weights it starts from are damaged or were trained on another backbone.
    """
    backbone = load_backbone(Path(spec.backbone.path))
    size = backbone.config
    torch.manual_seed(spec.seed)
    if spec.task not in tasks:
        models = {}
        for task, info in tasks.items():
            model = TaskModel(shared_copy(backbone), info["n_outputs"], info["choices"])
            models[task] = model.with_trained_backbone(_adapter(spec, backbone))
        return JointModel(backbone, models)
    info = tasks[spec.task]
    model = TaskModel(backbone, info["n_outputs"], info["choices"])
    if spec.trains == "backbone":
        model.with_trained_backbone(_adapter(spec, backbone))
    elif spec.trains == "head":
        model.with_frozen_backbone()
    elif spec.trains == "adapter":
        model.with_adapter(_adapter(spec, backbone))
    else:
        n = len(spec.sources)
        fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, spec.fusion, n)
        model.with_fusion(fusion, source_adapters(spec, backbone))
    if spec.start is not None:
        load_start(model, spec)
    return model


def hold_frozen_in_bfloat16(model: nn.Module) -> None:
    """Keep frozen matrices as autocast would make them at every step: same results, no casting."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(torch.bfloat16)


def parameter_groups(model: Trained, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups. No decay for biases, LayerNorms, or V, which is drawn to I and not to zero."""
    decayed, exempt = [], []
    for name, parameter in model.trainable().items():
        is_v = name.startswith("fusion.") and ".value." in name
        is_exempt = name.endswith(".bias") or "LayerNorm" in name or is_v
        (exempt if is_exempt else decayed).append(parameter)
    groups = [(decayed, weight_decay), (exempt, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
