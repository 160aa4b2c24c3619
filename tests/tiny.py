"""A BERT of a few thousand weights with its tokenizer, and a project folder to prepare tasks in."""

import string
from pathlib import Path

import yaml

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


def tiny_backbone(folder: Path) -> Path:
    """Write config, tokenizer and random weights of a tiny BERT; every ASCII word can be read."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), **CONFIG)).save_pretrained(folder)
    return folder


def params(backbone: str, tasks: dict, **data) -> dict:
    """What params.yaml holds, for these tasks."""
    recipe = {"learning_rate": 1.0e-3, "epochs": 1, "patience": 1}
    return {
        "profile": "tiny",
        "backbone": {"name": backbone},
        "data": {"source": "mirror", "mirror": "mirror", "validation": 0.0} | data,
        "tasks": {name: {"seeds": [1]} | task for name, task in tasks.items()},
        "sources": list(tasks),
        "targets": list(tasks),
        "methods": ["head", "st_adapter"],
        "recipes": {m: recipe for m in ("head", "full", "st_adapter", "fusion", "joint")},
    }


def project(folder: Path, values: dict) -> Path:
    """A folder that counts as a clone of the project, with this params.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return folder
