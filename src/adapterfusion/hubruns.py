"""From our runs to the public library's folders, and from a published adapter to a run's weights.

    python -m adapterfusion.hubruns export RUN OUT --backbone FOLDER --backbone-name ID
    python -m adapterfusion.hubruns import FOLDER OUT --backbone FOLDER [--backbone-name ID]

RUN is a folder of the run store, or one of results/<profile>/runs that holds a run.json. OUT of an
import is a model.safetensors that can stand where an adapter run's weights are read: as a fusion's
source.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.adapterhub import load_adapter, save_adapter, save_fusion, save_head
from adapterfusion.backbone import file_sha256
from adapterfusion.config import AdapterConfig, FusionConfig, build
from adapterfusion.fusion import TaskFusion
from adapterfusion.hubfiles import ADAPTER, read_config
from adapterfusion.huboptions import refuse
from adapterfusion.model import Head, load_backbone
from adapterfusion.paths import atomic_write

VARIANTS = ("dynamic", "static")


def _weights(run: Path) -> Path:
    """The run's weights: beside its record in the run store, under weights/ in the results."""
    beside = run / "model.safetensors"
    if beside.is_file() or "runs" not in run.parts:
        return beside
    at = max(i for i, part in enumerate(run.parts) if part == "runs")
    return Path(*run.parts[:at], "weights", *run.parts[at + 1 :], beside.name)


def export_run(run: Path, out: Path, backbone_folder: Path, backbone_name: str) -> None:
    """Write what a finished run trained, with its head, as a folder of the library.

    A fusion's source adapters are runs of their own, to be exported one by one.

    Raises:
        AdapterHubError: another backbone, or a run the library has no form for.
    """
    where = run / "run.json"
    record = json.loads(where.read_text())
    identity = record["config"]
    if identity["trains"] not in ("adapter", "fusion"):
        problem = f"{identity['trains']!r} is not a part the library keeps by itself"
        refuse(where, "config.trains", problem, "Export the run of an adapter or a fusion.")
    if identity["trains"] == "fusion" and identity.get("start"):
        problem = "its backbone is not the published one but was trained by another run"
        refuse(where, "config.start", problem, "Export a fusion of single-task adapters.")
    weights, data = load_file(_weights(run)), record["data"]
    if identity["backbone"]["sha256"] != file_sha256(backbone_folder / "model.safetensors"):
        refuse(where, "config.backbone.sha256", "another backbone", "Name the folder of its own.")
    backbone = load_backbone(backbone_folder)
    size = backbone.config

    def trained(module: nn.Module, prefix: str) -> nn.Module:
        state = {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}
        module.load_state_dict(state)
        return module

    if identity["trains"] == "adapter":
        config = build(AdapterConfig, identity["adapter"], "config.adapter", str(where))
        adapter = TaskAdapter(size.hidden_size, size.num_hidden_layers, config)
        name = record["task"]
        save_adapter(out, name, trained(adapter, "adapter."), backbone, backbone_name)
    else:
        config = build(FusionConfig, identity["fusion"], "config.fusion", str(where))
        if config.variant not in VARIANTS or config.drop_last or config.random_others:
            problem = "a control of the study, which the library has no form for"
            refuse(where, "config.fusion", problem, f"Export one that is {' or '.join(VARIANTS)}.")
        fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, config)
        adapters = record["attention"]["adapters"]
        name = ",".join(adapters)
        save_fusion(out, adapters, trained(fusion, "fusion."), backbone, name, backbone_name)
    head = trained(Head(size.hidden_size, data["n_outputs"]), "head.")
    labels = () if data["choices"] else data.get("labels", ())
    save_head(out, name, head, backbone, labels, data["choices"], backbone_name)


def import_adapter(
    folder: Path, out: Path, backbone_folder: Path, backbone_name: str | None = None
) -> None:
    """Write a published adapter as the weights of a run. Raises as `load_adapter`."""
    adapter = load_adapter(folder, load_backbone(backbone_folder), backbone_name)
    _, values = read_config(folder, ADAPTER)
    identity = {
        "method": "published",
        "task": values["name"],
        "backbone": {"sha256": file_sha256(backbone_folder / "model.safetensors")},
        "adapter": dataclasses.asdict(adapter.config),
    }
    tensors = {f"adapter.{key}": tensor for key, tensor in adapter.state_dict().items()}
    with atomic_write(out) as temporary:
        save_file(tensors, temporary, {"identity": json.dumps(identity, sort_keys=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a finished run -> a folder the library loads")
    export.add_argument("folder", type=Path, help="holds run.json and model.safetensors")
    bring = commands.add_parser("import", help="a published adapter -> a source of a fusion")
    bring.add_argument("folder", type=Path, help="holds adapter_config.json and its weights")
    for command, work in ((export, export_run), (bring, import_adapter)):
        command.add_argument("out", type=Path)
        command.add_argument("--backbone", type=Path, required=True, help="the backbone's folder")
        command.add_argument("--backbone-name", required=command is export, help="its hub id")
        command.set_defaults(work=work)
    args = parser.parse_args()
    try:
        args.work(args.folder, args.out, args.backbone, args.backbone_name)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
