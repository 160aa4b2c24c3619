"""Prepare tasks: from any source to tokenised parquet files that the training core reads.

    python -m adapterfusion.data                     what there is, and in which state
    python -m adapterfusion.data prepare rte cb      write data/prepared/<profile>/<task>/

A prepared task is a folder with train, validation (where a share is held out) and dev as parquet
and an info.json that says all a run needs to know about its data. The folder takes its place only
when it is complete; whatever fails before leaves the old one as it was.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adapterfusion.backbone import BackboneError, file_sha256, resolve_backbone
from adapterfusion.config import Config, ConfigError, load_config
from adapterfusion.paths import Paths
from adapterfusion.sources import Located, content_sha256, locate, read
from adapterfusion.tasks import PAPER, Example, TaskError, TaskSpec, unknown_task

FORMAT = 1  # of the prepared files; a change re-prepares everything
BATCH = 1024  # rows tokenised and written at once
VALIDATION_ROWS = 1000  # most rows of the validation part where `tasks.<t>.dev` names no cap
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "first": pa.list_(pa.string()),
        "second": pa.list_(pa.string()),
        "label": pa.int64(),
        "input_ids": pa.list_(pa.list_(pa.int32())),
        "token_type_ids": pa.list_(pa.list_(pa.int8())),
    }
)


def known_tasks(config: Config) -> dict[str, TaskSpec]:
    """The tasks that the configured source offers, by name."""
    if config.data.source == "bundled":
        from adapterfusion.bundled import bundled_tasks

        return bundled_tasks()
    return PAPER


def task_spec(name: str, config: Config) -> TaskSpec:
    """The task of that name.

    Raises:
        TaskError: params.yaml does not name it, or the source has none of that name.
    """
    if name not in config.tasks:
        raise TaskError(f"tasks.{name}: not in params.yaml. Add it under tasks.")
    known = known_tasks(config)
    if name not in known:
        raise unknown_task(name, known)
    return known[name]


def available(name: str, config: Config) -> str | None:
    """None where the task's data is at hand, else the reason why not. Reads no rows."""
    try:
        locate(task_spec(name, config), config)
    except TaskError as error:
        return str(error)
    return None


def stratified_order(labels: list[int], seed: int, name: str) -> np.ndarray:
    """Row numbers in a random order of which every beginning holds the classes in proportion.

    Taking the first n rows is a stratified sample; a larger n adds rows and drops none. Depends on
    the labels, the seed and `name` alone.
    """
    words = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(words, dtype=np.uint32))
    values = np.asarray(labels)
    position = np.empty(len(values))
    for value in np.unique(values):
        rows = rng.permutation(np.flatnonzero(values == value))
        position[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def divide(
    train: list[Example], dev: list[Example], spec: TaskSpec, config: Config
) -> dict[str, list[Example]]:
    """Cut validation from train, then cap: {train, dev} or {train, validation, dev}.

    The validation part is taken before the cap, so that a smaller `train` trains on a part of the
    same rows and chooses its epoch on the very same ones.
    """
    caps, seed = config.tasks[spec.name], config.data.seed
    order = stratified_order([e["label"] for e in train], seed, f"{spec.name} train")
    held_out = round(config.data.validation * len(train))
    parts = {"train": order[held_out:][: caps.train]}
    if held_out:
        parts["validation"] = order[:held_out][: caps.dev or VALIDATION_ROWS]
    splits = {name: [train[i] for i in np.sort(rows)] for name, rows in parts.items()}
    dev_order = stratified_order([e["label"] for e in dev], seed, f"{spec.name} dev")
    splits["dev"] = [dev[i] for i in np.sort(dev_order[: caps.dev])]
    for name, examples in splits.items():
        if len({e["label"] for e in examples}) < 2:
            raise TaskError(
                f"tasks.{spec.name}: {name} has {len(examples)} rows of fewer than two classes. "
                "Raise the cap, or check the data's labels."
            )
    return splits


def _batches(examples: list[Example]) -> Iterator[list[Example]]:
    for start in range(0, len(examples), BATCH):
        yield examples[start : start + BATCH]


def _tokenise(batch: list[Example], tokenizer: Any, max_length: int) -> tuple[pa.Table, int]:
    """A batch as a table in SCHEMA, and how many of its rows were truncated."""
    first = [segment for e in batch for segment in e["first"]]
    second = [segment for e in batch for segment in e["second"]] or None
    encoded = tokenizer(
        first,
        second,
        truncation="longest_first" if second else True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    truncated = start = 0
    for example in batch:
        end = start + len(example["first"])
        for key in ("id", "first", "second", "label"):
            columns[key].append(example[key])
        for key in ("input_ids", "token_type_ids"):
            columns[key].append(encoded[key][start:end])
        truncated += any(cut[start:end])
        start = end
    return pa.table(columns, schema=SCHEMA), truncated


def _write(examples: list[Example], path: Path, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Write one split, and describe it: rows, checksums, share of rows that were truncated."""
    truncated = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for batch in _batches(examples):
            table, cut = _tokenise(batch, tokenizer, max_length)
            writer.write_table(table)
            truncated += cut
    return {
        "rows": len(examples),
        "truncated": round(truncated / len(examples), 4),
        "content_sha256": content_sha256(examples),
        "sha256": file_sha256(path),
    }


def _fingerprint(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


def read_info(folder: Path) -> dict[str, Any] | None:
    """info.json of a prepared task, or None where it is missing or one of its files is not whole."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        whole = all(
            file_sha256(folder / f"{name}.parquet") == split["sha256"]
            for name, split in info["splits"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return info if whole else None


def _describe(
    spec: TaskSpec, located: Located, official_rows: dict[str, int], config: Config
) -> dict[str, Any]:
    """What info.json says before anything is written. Names, never absolute paths."""
    return {
        "task": spec.name,
        "title": spec.title,
        "group": spec.group,
        "labels": list(spec.labels),
        "choices": spec.choices,
        "n_outputs": spec.n_outputs,
        "metrics": list(spec.metrics),
        "licence": spec.licence,
        "notes": spec.notes,
        "version": spec.version,
        "source": located.source,
        "revision": located.revision,
        "official_rows": official_rows,
        "raw": {
            split: {"file": file.name, "rows": file.rows, "sha256": file.sha256}
            for split, file in located.files.items()
        },
        "validation_share": config.data.validation,
        "seed": config.data.seed,
    }


def prepare(task: str, config: Config) -> None:
    """Write the prepared form of one task, unless it is there already and nothing has changed.

    Raises:
        TaskError, BackboneError: before anything is written; what was prepared stays.
    """
    spec = task_spec(task, config)
    located = locate(spec, config)
    folder, digest = resolve_backbone(config.backbone)
    max_length = config.tasks[task].max_length or spec.max_length
    caps = config.tasks[task]
    tokenizer_files = sorted([*folder.glob("tokenizer*"), *folder.glob("vocab.*")])
    info = _describe(spec, located, dict(spec.hub.rows) if spec.hub else {}, config)
    info |= {
        "max_length": max_length,
        "backbone": config.backbone.name,
        "backbone_sha256": digest,
        "tokenizer_sha256": {path.name: file_sha256(path) for path in tokenizer_files},
    }
    info["fingerprint"] = _fingerprint(FORMAT, spec, info, caps.train, caps.dev)
    target = Paths(config.profile).prepared / task
    present = read_info(target)
    if present and present["fingerprint"] == info["fingerprint"]:
        print(f"{task}: unchanged, {_summary(present)}")
        return

    rows = read(spec, located)
    splits = divide(rows["train"], rows["dev"], spec, config)
    held_out = round(config.data.validation * len(rows["train"]))
    whole = {"train": len(rows["train"]) - held_out, "dev": len(rows["dev"])}
    official = {split: file.official for split, file in located.files.items()}
    from transformers import AutoTokenizer  # slow to import, and needed only here

    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{task}."))
    except OSError as error:
        raise TaskError(
            f"{target.parent}: cannot write there ({error.strerror}). Make it writable."
        )
    try:
        info["splits"] = {
            name: _write(examples, scratch / f"{name}.parquet", tokenizer, max_length)
            for name, examples in splits.items()
        }
        info["rows"] = {name: split["rows"] for name, split in info["splits"].items()}
        info["truncated"] = {name: split["truncated"] for name, split in info["splits"].items()}
        info["official_split"] = {
            name: official["train" if name == "validation" else name] for name in splits
        }
        info["capped"] = {name: len(splits[name]) < n for name, n in whole.items()}
        (scratch / "info.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
        scratch.chmod(0o755)
        _replace(scratch, target)
    except OSError as error:
        raise TaskError(
            f"{target}: could not be written ({error.strerror or error}). Free some space and run "
            "it again; what was prepared before is untouched."
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{task}: prepared, {_summary(info)}")


def _replace(folder: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one, which goes only when the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _summary(info: dict[str, Any]) -> str:
    rows = ", ".join(f"{name} {n}" for name, n in info["rows"].items())
    return f"{rows} rows from {info['source']}"


def overview(config: Config) -> str:
    """A table of all tasks of the source: revision, official rows, and what is prepared of them."""
    rows = []
    for name, spec in known_tasks(config).items():
        info = read_info(Paths(config.profile).prepared / name)
        if name not in config.tasks:
            state = "not in params.yaml"
        elif info:
            state = "prepared: " + _summary(info)
        else:
            state = available(name, config) or "there, not prepared"
        place = spec.hub.id if spec.hub else config.data.source
        revision = spec.hub.revision[:20] if spec.hub else f"version {spec.version}"
        sizes = " / ".join(f"{n:,}" for n in spec.hub.rows.values()) if spec.hub else ""
        rows.append((name, spec.group, place, revision, sizes, state))
    head = ("task", "group", "source", "revision", "train / dev", "state")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=True)), row[-1]])
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m adapterfusion.data")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("prepare", help="tokenise tasks for training")
    command.add_argument("tasks", nargs="+", metavar="TASK")
    options = parser.parse_args(arguments)
    try:
        config = load_config()
        if options.command == "prepare":
            for task in options.tasks:
                prepare(task, config)
        else:
            print(f"profile {config.profile}, data.source {config.data.source}")
            print(overview(config))
    except (TaskError, ConfigError, BackboneError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
