"""Let the public implementation (adapters 1.3.0) say what the right numbers are, and store them.

Runs in an environment of its own, because that package pins another major version of transformers:

    python3 -m venv build/oracle-venv
    build/oracle-venv/bin/pip install torch==2.13.0 adapters==1.3.0
    build/oracle-venv/bin/python tests/golden/make_golden.py [--out DIR]

It writes, for tiny random backbones and for each of CASES:

    backbones/<name>/             config.json, model.safetensors without a pooler
    <case>/case.json              what the case is, for the tests to read
    <case>/expected.safetensors   inputs, logits, last hidden state, attention, gradients, penalty
    <case>/adapters/<name>/       what save_adapter writes (with its head where no fusion follows)
    <case>/fusion/                what save_adapter_fusion writes, with its head

No weight is left near its initial value: at the identity or at zero a wrong formula could pass.
Every number follows from the names alone, so a second run gives the same files.
"""

import argparse
import copy
import json
import logging
import shutil
import zlib
from pathlib import Path

import torch
from adapters import BertAdapterModel, DoubleSeqBnConfig, RobertaAdapterModel, SeqBnConfig
from adapters.composition import Fuse
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, RobertaConfig

# When adapters are activated the peer warns that none are active yet.
logging.getLogger("adapters").setLevel(logging.ERROR)

SHAPE = dict(
    vocab_size=60,
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
)
BACKBONES = {
    "tiny-bert": (BertAdapterModel, BertConfig(**SHAPE, num_hidden_layers=2, pad_token_id=0)),
    "tiny-roberta": (
        RobertaAdapterModel,
        RobertaConfig(**SHAPE, num_hidden_layers=3, pad_token_id=1, type_vocab_size=1),
    ),
}
ARCHITECTURES = {"pfeiffer": SeqBnConfig, "houlsby": DoubleSeqBnConfig}


def case(
    backbone: str,
    reductions: list[int],
    activation: str,
    *,
    architecture: str = "pfeiffer",
    fusion: str | None = None,
    fusion_name: str | None = None,
    labels: int | None = None,
    choices: int | None = None,
) -> dict:
    """One case: an adapter per reduction factor, maybe a fusion of them, and one kind of head."""
    return dict(
        backbone=backbone,
        adapters={f"task{n}": reduction for n, reduction in enumerate(reductions)},
        activation=activation,
        architecture=architecture,
        fusion=fusion,
        fusion_name=fusion_name,
        labels=[f"label{n}" for n in range(labels)] if labels else [],
        choices=choices,
    )


CASES = {
    "pfeiffer-relu": case("tiny-bert", [2], "relu", labels=3),
    "pfeiffer-gelu": case("tiny-roberta", [4], "gelu", labels=2),
    "pfeiffer-swish": case("tiny-bert", [16], "swish", choices=3),
    "houlsby-swish": case("tiny-bert", [4], "swish", architecture="houlsby", labels=3),
    "houlsby-relu": case("tiny-roberta", [16], "relu", architecture="houlsby", choices=2),
    "fusion-one": case("tiny-bert", [4], "relu", fusion="dynamic", labels=3),
    "fusion-two": case(
        "tiny-bert", [2, 16], "gelu", fusion="dynamic", fusion_name="pair", labels=2
    ),
    "fusion-five": case("tiny-roberta", [4] * 5, "relu", fusion="dynamic", choices=3),
    "fusion-static": case("tiny-roberta", [4, 8], "swish", fusion="static", labels=3),
}


def random(name: str, shape: torch.Size, std: float) -> Tensor:
    """N(0, std), seeded by `name`: adding a tensor elsewhere changes no other."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * std


def randomise(module: torch.nn.Module, seed: str) -> None:
    """Give every parameter a value from which neither a bias nor a norm's scale can hide."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            std = 0.2
            if "adapter_down" in name or "adapter_up" in name or "heads." in name:
                std = 0.3
            elif "adapter_fusion_layer" in name and p.ndim == 2 and ".value." not in name:
                std = 0.08  # scores are unscaled: more would leave no softmax, only a maximum
            elif "embeddings.weight" in name:
                std = 0.5
            p.copy_(random(f"{seed}/{name}", p.shape, std))
            if name.endswith("LayerNorm.weight"):
                p.add_(1.0)
            if ".value.weight" in name and "adapter_fusion_layer" in name:
                p.add_(torch.eye(len(p)))


def build_backbone(name: str) -> torch.nn.Module:
    model_class, config = BACKBONES[name]
    config = copy.deepcopy(config)  # the peer notes adapters and heads in it
    config.name_or_path = f"golden/{name}"
    model = model_class(config)
    randomise(model.base_model, name)
    return model


def write_backbone(name: str, folder: Path) -> None:
    base = build_backbone(name).base_model
    folder.mkdir(parents=True)
    parts = ("embeddings.", "encoder.")  # not the pooler, nor what the peer adds to every model
    state = {k: v for k, v in base.state_dict().items() if k.startswith(parts)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    keys = ("model_type", "pad_token_id", "type_vocab_size", "num_hidden_layers", *SHAPE)
    values = {key: getattr(base.config, key) for key in keys}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def build_case(name: str) -> tuple[torch.nn.Module, str]:
    """The case's model in evaluation mode, and the name of its active head."""
    spec = CASES[name]
    model = build_backbone(spec["backbone"])
    architecture = ARCHITECTURES[spec["architecture"]]
    for adapter, reduction in spec["adapters"].items():
        config = architecture(reduction_factor=reduction, non_linearity=spec["activation"])
        model.add_adapter(adapter, config=config)
    adapters = list(spec["adapters"])
    if spec["fusion"]:
        setup = Fuse(*adapters, name=spec["fusion_name"])
        model.add_adapter_fusion(setup, spec["fusion"])
        head = setup.name
    else:
        setup = head = adapters[0]
    if spec["choices"]:
        model.add_multiple_choice_head(head, num_choices=spec["choices"])
    else:
        id2label = dict(enumerate(spec["labels"]))
        model.add_classification_head(head, num_labels=len(id2label), id2label=id2label)
    (model.train_adapter_fusion if spec["fusion"] else model.train_adapter)(setup)
    backbone = {k: v.clone() for k, v in model.base_model.state_dict().items()}
    randomise(model, name)
    for key, value in model.base_model.state_dict().items():
        if "adapter" not in key:  # the backbone is the one all cases share
            value.copy_(backbone[key])
    model.active_head = head
    return model.eval(), head


def inputs(name: str, pad: int, types: int) -> dict[str, Tensor]:
    """Sequences of unequal length, so that padding is part of every case."""
    spec = CASES[name]
    rows, tokens = 3 * (spec["choices"] or 1), 7
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1)
    ids = torch.randint(3, SHAPE["vocab_size"], (rows, tokens), generator=generator)
    lengths = torch.randint(3, tokens + 1, (rows,), generator=generator)
    lengths[0] = tokens
    lengths[-1] = 3  # whatever the draw, one row is full and one is padded
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    second = (torch.arange(tokens) >= 2).long().expand(rows, tokens)
    classes = spec["choices"] or len(spec["labels"])
    return {
        "input_ids": ids.masked_fill(mask == 0, pad),
        "attention_mask": mask,
        "token_type_ids": (second * mask) if types > 1 else torch.zeros_like(mask),
        "labels": torch.randint(0, classes, (3,), generator=generator),
    }


def expected(name: str) -> tuple[torch.nn.Module, str, dict[str, Tensor]]:
    """The case's model, its head's name, and all the numbers it is to be held against."""
    spec = CASES[name]
    model, head = build_case(name)
    batch = inputs(name, model.config.pad_token_id, model.config.type_vocab_size)
    out = model(
        **batch,
        return_dict=True,
        output_hidden_states=True,
        output_adapter_fusion_attentions=bool(spec["fusion"]),
    )
    out.loss.backward()
    numbers = batch | {
        "loss": out.loss,
        "logits": out.logits,
        "last_hidden_state": out.hidden_states[-1],
    }
    for key, parameter in model.base_model.named_parameters():
        if parameter.grad is not None:
            numbers[f"grad.{key}"] = parameter.grad
    if spec["fusion"]:
        for layer, places in out.adapter_fusion_attentions[head].items():
            numbers[f"attention.{layer}"] = torch.from_numpy(places["output_adapter"])
    if spec["fusion"] == "dynamic":
        numbers["penalty"] = model.get_fusion_regularization_loss()
        fresh = build_backbone(spec["backbone"])
        for adapter, reduction in spec["adapters"].items():
            fresh.add_adapter(adapter, config=SeqBnConfig(reduction_factor=reduction))
        fresh.add_adapter_fusion(Fuse(*spec["adapters"]), "dynamic")
        layer = fresh.base_model.encoder.layer[0].output.adapter_fusion_layer
        numbers["initial_value"] = layer[",".join(spec["adapters"])].value.weight
    return model, head, {k: v.detach().clone().contiguous() for k, v in numbers.items()}


def write_case(name: str, folder: Path) -> None:
    spec = CASES[name]
    model, head, numbers = expected(name)
    (folder / "adapters").mkdir(parents=True)
    save_file(numbers, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps(spec | {"head": head}, indent=2) + "\n")
    for adapter in spec["adapters"]:
        model.save_adapter(
            str(folder / "adapters" / adapter), adapter, with_head=not spec["fusion"]
        )
    if spec["fusion"]:
        model.save_adapter_fusion(str(folder / "fusion"), head, with_head=head)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for name in BACKBONES:
        shutil.rmtree(out / "backbones" / name, ignore_errors=True)
        write_backbone(name, out / "backbones" / name)
    for name in CASES:
        shutil.rmtree(out / name, ignore_errors=True)
        write_case(name, out / name)
    print(f"{len(CASES)} cases written to {out}")


if __name__ == "__main__":
    main()
