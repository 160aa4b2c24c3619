"""The folders in which the public library (adapters 1.3.0) keeps its modules: reading and checking.

A folder is a JSON config beside a file of tensors, which is read as tensors and never as code.
Another backbone, a tensor too many or too few, another shape, a damaged file are refused with an
error that names file, key and remedy; `huboptions` does the same for the config's options.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterfusion.huboptions import refuse
from adapterfusion.paths import atomic_write

FORMAT = "adapters.1.3.0"  # a file without a version is read by the rules of the oldest ones
MODEL_CLASSES = {"bert": "BertAdapterModel", "roberta": "RobertaAdapterModel"}
OLD_MODULES = re.compile(r"(layer|attention)_text_(task|lang)_adapters")


@dataclass(frozen=True)
class Part:
    """How the library names the two files of one kind of module."""

    title: str
    config: str
    weights: str
    safetensors: str


ADAPTER = Part("adapter", "adapter_config.json", "pytorch_adapter.bin", "adapter.safetensors")
FUSION = Part(
    "adapter_fusion",
    "adapter_fusion_config.json",
    "pytorch_model_adapter_fusion.bin",
    "model_adapter_fusion.safetensors",
)
HEAD = Part("head", "head_config.json", "pytorch_model_head.bin", "model_head.safetensors")


# --- the config -----------------------------------------------------------------------------------


def read_config(folder: Path, part: Part) -> tuple[Path, dict[str, Any]]:
    """The JSON file of a folder, and where it stands."""
    path = Path(folder) / part.config
    remedy = f"Name a folder that the library's save_{part.title} wrote, or fetch it again."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        refuse(path, "the file", "not found", remedy)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        refuse(path, "the file", f"not valid JSON ({error})", remedy)
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        refuse(path, "config", "missing, or not a mapping", remedy)
    if not isinstance(values.get("name"), str) or not values["name"]:
        refuse(path, "name", "missing", remedy)
    return path, values


# --- the backbone ---------------------------------------------------------------------------------


def backbone_name(backbone: nn.Module) -> str:
    """The backbone's hub id, also out of the hub's cache; for another folder, the folder's name."""
    name = str(backbone.config.name_or_path)
    for part in Path(name).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return Path(name).name if Path(name).is_dir() else name


def _same_name(one: str, other: str) -> bool:
    """Equal; or equal but for the organisation, which the hub's oldest ids came without."""
    if "/" in one and "/" in other:
        return one == other
    return one.rsplit("/", 1)[-1] == other.rsplit("/", 1)[-1]


def check_backbone(
    where: Path, values: Mapping[str, Any], backbone: nn.Module, name: str | None
) -> None:
    """Refuse a folder that was made for another backbone. name: what the backbone is, if not known."""
    for key in ("model_type", "hidden_size"):
        if values.get(key) != getattr(backbone.config, key):
            problem = f"{values.get(key)!r}, but the backbone has {getattr(backbone.config, key)!r}"
            refuse(where, key, problem, "Load the backbone it was trained on.")
    theirs, ours = values.get("model_name"), name or backbone_name(backbone)
    if not theirs:
        remedy = "If you know the backbone it was trained on, write its id into the file."
        refuse(where, "model_name", "empty, so its backbone is unknown", remedy)
    if not _same_name(theirs, ours):
        remedy = f"Load that backbone; if this one is it, pass backbone_name={theirs!r}."
        refuse(where, "model_name", f"made for {theirs!r}, the backbone here is {ours!r}", remedy)


# --- the tensors ----------------------------------------------------------------------------------


def read_tensors(folder: Path, part: Part) -> tuple[Path, dict[str, Tensor]]:
    """The folder's tensors by the library's names, from a safetensors file where there is one."""
    path = Path(folder) / part.safetensors
    if not path.is_file():
        path = Path(folder) / part.weights
    if not path.is_file():
        refuse(path, "the file", "not found", "Fetch the folder again, weights included.")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each way to be damaged raises an error of its own
        problem = f"damaged, or more than plain tensors ({type(error).__name__})"
        refuse(path, "the file", problem, "Fetch or save it again.")
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        refuse(path, "the file", "not a mapping of names to tensors", "Fetch or save it again.")
    return path, tensors


def without_namesakes(tensors: Mapping[str, Tensor], module: str, name: str) -> dict[str, Tensor]:
    """The library saves what *begins* with the name: along with the head "rte" comes "rte2"."""
    other = re.compile(rf"(^|\.){module}\.{re.escape(name)}[^.]+\.")
    return {key: tensor for key, tensor in tensors.items() if not other.search(key)}


def fill(
    module: nn.Module,
    names: Mapping[str, str],
    where: Path,
    tensors: Mapping[str, Tensor],
    backbone: nn.Module,
) -> None:
    """Put `tensors` into `module`. names: our name -> the library's, for every tensor there is."""
    prefix = f"{backbone.config.model_type}."  # there when saved from a model with heads
    found = {
        OLD_MODULES.sub("adapters", key.removeprefix(prefix)): tensor
        for key, tensor in tensors.items()
    }
    layers = [int(n) for key in found for n in re.findall(r"^encoder\.layer\.(\d+)\.", key)]
    depth = backbone.config.num_hidden_layers
    if layers and max(layers) + 1 != depth:
        problem = f"made for {max(layers) + 1} layers, the backbone has {depth}"
        refuse(where, f"encoder.layer.{max(layers)}", problem, "Load the backbone it is for.")
    known, shapes, state = set(names.values()), module.state_dict(), {}
    for key in found:
        if key not in known:
            refuse(where, key, "unexpected tensor", "Use one that was trained without this part.")
    for ours, theirs in names.items():
        if theirs not in found:
            refuse(where, theirs, "missing", "Fetch or save the folder again.")
        if found[theirs].shape != shapes[ours].shape:
            problem = f"{list(found[theirs].shape)} instead of {list(shapes[ours].shape)}"
            refuse(where, theirs, problem, "It does not belong to its config; fetch both again.")
        state[ours] = found[theirs].to(torch.float32)
    module.load_state_dict(state, assign=True)


# --- writing --------------------------------------------------------------------------------------


def write(
    folder: Path,
    part: Part,
    name: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    backbone: nn.Module,
    known_as: str | None,
) -> None:
    """Write a folder that the library loads. known_as: the backbone's hub id, if not known."""
    kind = backbone.config.model_type
    where = Path(folder) / part.config
    if kind not in MODEL_CLASSES:
        remedy = f"Backbones that can be written: {', '.join(MODEL_CLASSES)}."
        refuse(where, "model_type", f"{kind!r} is not known", remedy)
    if not name or "." in name:
        refuse(where, "name", f"{name!r}: a module's name holds no dot", "Choose another name.")
    about = {
        "hidden_size": backbone.config.hidden_size,
        "model_class": MODEL_CLASSES[kind],
        "model_name": known_as or backbone_name(backbone),
        "model_type": kind,
        "name": name,
        "version": FORMAT,
    }
    prefix = "" if part is HEAD else f"{kind}."
    plain = {prefix + key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}
    with atomic_write(Path(folder) / part.weights) as temporary, temporary.open("wb") as file:
        torch.save(plain, file)
    with atomic_write(where) as temporary:
        temporary.write_text(json.dumps(about | dict(values), indent=2, sort_keys=True) + "\n")
