"""Prepare tasks: from any source to tokenised parquet files that the training core reads.

    python -m adapterfusion.data                     what there is, and in which state
    python -m adapterfusion.data prepare rte cb      write data/prepared/<profile>/<task>/
    python -m adapterfusion.data import-argument FOLDER   the Argument task, from UKP's archive

A prepared task is a folder with train, validation (where a share is held out) and dev as parquet
and an info.json that says all a run needs to know about its data. The folder takes its place only
when it is complete; whatever fails before leaves the old one as it was.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from adapterfusion.argument import import_argument
from adapterfusion.backbone import BackboneError, file_sha256, resolve_backbone
from adapterfusion.config import Config, ConfigError, load_config
from adapterfusion.paths import Paths, find_root
from adapterfusion.rows import content_sha256, shown
from adapterfusion.sources import MANUAL, Located, known_tasks, locate, read, task_spec
from adapterfusion.splits import divide
from adapterfusion.tasks import AbsentError, Example, TaskError, TaskSpec

FORMAT = 1  # of the prepared files; a change re-prepares everything
BATCH = 1024  # rows tokenised and written at once
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


def available(name: str, config: Config) -> str | None:
    """None where the task's data is at hand, else the reason why not. From the hub it is fetched."""
    try:
        locate(task_spec(name, config), config)
    except TaskError as error:
        return str(error)
    return None


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The backbone's tokenizer, cutting the longer segment first and padding nothing.

    Its own library reads it; transformers, which takes seconds to import, is asked only where the
    folder has a vocabulary but no tokenizer.json. A test holds both to the same output.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def _tokenise(batch: list[Example], tokenizer: Tokenizer) -> tuple[pa.Table, int]:
    """A batch as a table in SCHEMA, and how many of its rows were truncated."""
    first = [segment for e in batch for segment in e["first"]]
    second = [segment for e in batch for segment in e["second"]]
    encoded = tokenizer.encode_batch(list(zip(first, second, strict=True)) if second else first)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    truncated = start = 0
    for example in batch:
        sequences = encoded[start : start + len(example["first"])]
        for key in ("id", "first", "second", "label"):
            columns[key].append(example[key])
        columns["input_ids"].append([sequence.ids for sequence in sequences])
        columns["token_type_ids"].append([sequence.type_ids for sequence in sequences])
        truncated += any(sequence.overflowing for sequence in sequences)
        start += len(sequences)
    return pa.table(columns, schema=SCHEMA), truncated


def _write(examples: list[Example], path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write one split, and describe it: rows, checksums, share of rows that were truncated."""
    truncated = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(examples), BATCH):
            table, cut = _tokenise(examples[start : start + BATCH], tokenizer)
            writer.write_table(table)
            truncated += cut
    return {
        "rows": len(examples),
        "truncated": round(truncated / len(examples), 4),
        "content_sha256": content_sha256(examples),
        "sha256": file_sha256(path),
    }


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


def _describe(spec: TaskSpec, located: Located, config: Config) -> dict[str, Any]:
    """All of info.json that is known before any row is read: names, never absolute paths."""
    folder, backbone_sha256 = resolve_backbone(config.backbone)
    caps, name = config.tasks[spec.name], config.backbone.name
    tokenizer_files = sorted([*folder.glob("tokenizer*"), *folder.glob("vocab.*")])
    info = {
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
        "commit": located.commit,
        "raw": {
            split: {"file": f.name, "rows": f.rows, "sha256": f.sha256, "note": f.note}
            for split, f in located.files.items()
        },
        "official_rows": dict(spec.hub.rows) if spec.hub else {},
        "validation_share": config.data.validation,
        "seed": config.data.seed,
        "max_length": caps.max_length or spec.max_length,
        "backbone": Path(name).name if Path(name).expanduser().is_dir() else name,
        "backbone_sha256": backbone_sha256,
        "tokenizer_sha256": {path.name: file_sha256(path) for path in tokenizer_files},
    }
    everything = [FORMAT, info, dataclasses.asdict(spec), {**dataclasses.asdict(caps), "seeds": ()}]
    text = json.dumps(everything, sort_keys=True)
    return info | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _write_json(info: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `target` when the block ends well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            yield folder
            if target.exists():
                target.rename(Path(scratch) / "replaced")
            folder.rename(target)
    except OSError as error:
        raise TaskError(
            f"{shown(target)}: could not be written ({error.strerror or error}). Make room, or make "
            "the folder writable, and run it again; nothing prepared before is lost."
        )


def _note_absence(spec: TaskSpec, target: Path) -> str:
    """An info.json that says `absent` and why, for stages that go on without the task."""
    if read_info(target) is None:
        about = {"task": spec.name, "title": spec.title, "group": spec.group}
        with _replacing(target) as folder:
            _write_json(about | {"absent": spec.manual}, folder / "info.json")
    return f"{spec.name}: absent. {spec.manual}"


def prepare(task: str, config: Config) -> str:
    """Write the prepared form of one task, unless it is there already and nothing has changed.

    A task that only a person may fetch, and nobody has, gets an info.json with the key `absent`.

    Returns:
        what there was to do, in a line.

    Raises:
        TaskError, ConfigError, BackboneError: naming what is wrong; what was prepared stays.
    """
    spec = task_spec(task, config)
    target = Paths(config.profile).prepared / task
    try:
        located = locate(spec, config)
    except AbsentError:
        if not spec.manual:
            raise
        return _note_absence(spec, target)
    info = _describe(spec, located, config)
    present = read_info(target)
    if present and present["fingerprint"] == info["fingerprint"]:
        return f"{task}: unchanged, {_summary(present)}"
    splits, capped = divide(read(spec, located), task, config)
    official = {split: file.official for split, file in located.files.items()}
    info["official_split"] = {
        name: official.get("train" if name == "validation" else name, False) for name in splits
    }
    info["capped"] = capped
    tokenizer = load_tokenizer(resolve_backbone(config.backbone)[0], info["max_length"])
    with _replacing(target) as folder:
        info["splits"] = {
            name: _write(rows, folder / f"{name}.parquet", tokenizer)
            for name, rows in splits.items()
        }
        for key in ("rows", "truncated"):
            info[key] = {name: split[key] for name, split in info["splits"].items()}
        _write_json(info, folder / "info.json")
    return f"{task}: prepared, {_summary(info)}"


def _summary(info: dict[str, Any]) -> str:
    rows = ", ".join(f"{name} {n:,}" for name, n in info["rows"].items())
    return f"{rows} rows, source {info['source']}"


def _state(spec: TaskSpec, config: Config) -> str:
    """What there is of a task: prepared rows, rows at hand, or the reason why there are none."""
    info = read_info(Paths(config.profile).prepared / spec.name)
    if info and spec.name in config.tasks:
        return f"prepared: {_summary(info)}"
    if config.data.source == "hub" and not spec.manual:
        return "not prepared"
    try:
        files = locate(spec, config).files
    except TaskError as error:
        return str(error)
    rows = (
        f"{split} {f'{f.rows:,} rows' if f.rows else f.name}{'' if f.official else '*'}"
        for split, f in files.items()
    )
    return f"at hand: {', '.join(rows)}"


def overview(config: Config) -> str:
    """A table of all tasks there are: source, revision, official rows, and what there is of them."""
    rows = [("task", "group", "source", "revision", "train / dev", "state")]
    for name, spec in known_tasks(config).items():
        hub = spec.hub
        sizes = " / ".join(f"{n:,}" for n in hub.rows.values()) if hub else ""
        place = hub.id if hub else config.data.source
        revision = hub.revision[:20] if hub else f"version {spec.version}"
        rows.append((name, spec.group, place, revision, sizes, _state(spec, config)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)] + [0]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([*lines, "* not the official split"])


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m adapterfusion.data")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("prepare", help="tokenise tasks for training")
    command.add_argument("tasks", nargs="+", metavar="TASK")
    command = commands.add_parser("import-argument", help="read UKP's corpus from its files")
    command.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "import-argument":
            print("argument:", import_argument(options.folder, find_root() / MANUAL))
            for noted in find_root().glob("data/prepared/*/argument/info.json"):
                noted.unlink()  # so that `dvc repro` sees that there is something to prepare
            return 0
        config = load_config()
        if options.command == "prepare":
            for task in options.tasks:
                print(prepare(task, config))
        else:
            print(f"profile {config.profile}, data.source {config.data.source}")
            print(overview(config))
    except (TaskError, ConfigError, BackboneError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
