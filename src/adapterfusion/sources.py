"""Find a task's files, check them, and read them as examples.

Whatever the source, the end is the same: `Located` says which files, with which checksums, hold
which split, and `read_split` turns one of them into examples or names the first row that is wrong.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adapterfusion.backbone import file_sha256
from adapterfusion.config import Config
from adapterfusion.paths import find_root
from adapterfusion.tasks import Example, HubSource, Split, TaskError, TaskSpec

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class SplitFile:
    """One split in one file. official: these rows are the official split, all of it."""

    path: Path
    name: str
    sha256: str
    rows: int
    official: bool


@dataclass(frozen=True)
class Located:
    """Where a task's rows lie. source: `mirror`, `hub`, `bundled`, `own` or `manual`."""

    source: str
    revision: str
    files: dict[Split, SplitFile]


def content_sha256(examples: Iterable[Example]) -> str:
    """sha256 over what the examples say, whatever file and format they come from."""
    digest = hashlib.sha256()
    for e in examples:
        row = [e["id"], e["first"], e["second"], e["label"]]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file, or an error that says what is wrong with it."""
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise TaskError(f"{path}: not found. Put the file there, or choose another data.source.")
    except (pa.ArrowException, OSError) as error:
        raise TaskError(
            f"{path}: not a whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
        )


def mirror_folder(config: Config) -> Path:
    """The mirror: ADAPTERFUSION_MIRROR, else `data.mirror`, relative to the project's root."""
    named = os.environ.get("ADAPTERFUSION_MIRROR") or config.data.mirror
    if not named:
        raise TaskError("data.mirror: missing. Name the folder, or set ADAPTERFUSION_MIRROR.")
    return find_root() / Path(named).expanduser()


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Path within the mirror -> its entry; empty where there is no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        return {entry["path"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError) as error:
        raise TaskError(f"{path}: not a readable manifest ({error!r}). Restore it, or remove it.")


def _check_schema(path: Path, spec: TaskSpec, hub: HubSource, schema: pa.Schema) -> None:
    """Columns are there, and where the file names its labels, they are ours in our order."""
    for column in hub.columns:
        if column not in schema.names:
            raise TaskError(
                f"{path}: no column {column!r} (it has {', '.join(schema.names)}). "
                f"Task {spec.name} needs {', '.join(hub.columns)}."
            )
    label = schema.field(hub.label).type
    wanted = pa.types.is_integer if isinstance(hub.values[0], int) else _is_string
    if not wanted(label):
        raise TaskError(
            f"{path}: column {hub.label!r} is {label}, task {spec.name} needs "
            f"{'integers' if wanted is pa.types.is_integer else 'strings'} such as {hub.values[0]!r}."
        )
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(hub.label, {})
    names = tuple(feature.get("names", ())) if isinstance(feature, dict) else ()
    if names and spec.labels and names != spec.labels:
        raise TaskError(
            f"{path}: its label ids mean {', '.join(names)}; task {spec.name} expects "
            f"{', '.join(spec.labels)}, in this order. This is another version of the data."
        )


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def locate_mirror(spec: TaskSpec, folder: Path, source: str = "mirror") -> Located:
    """The files of a task in a mirror `<org>/<name>/<config>/<split>.parquet`, checked.

    Raises:
        TaskError: a file is missing, damaged, or not the one the manifest describes.
    """
    hub = spec.hub
    manifest = _manifest(folder)
    files: dict[Split, SplitFile] = {}
    for split, hub_split in hub.splits:
        name = f"{hub.id}/{hub.config}/{hub_split}.parquet"
        path = folder / name
        if not path.is_file():
            raise TaskError(
                f"{path}: not found, so task {spec.name} is absent from the mirror. "
                + (spec.manual or "Add the file, or drop the task from params.yaml.")
            )
        try:
            rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise TaskError(
                f"{path}: not a whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
            )
        digest, entry = file_sha256(path), manifest.get(name, {})
        if entry.get("sha256", digest) != digest:
            raise TaskError(
                f"{path}: its sha256 is {digest}, {MANIFEST} says {entry['sha256']}. Copy it again."
            )
        if entry.get("rows", rows) != rows:
            raise TaskError(f"{path}: {rows} rows, {MANIFEST} says {entry['rows']}. Copy it again.")
        official = rows == hub.rows[split] and entry.get("official_split", True)
        files[split] = SplitFile(path, name, digest, rows, official)
    return Located(source, hub.revision, files)


def _example(spec: TaskSpec, hub: HubSource, row: dict[str, Any], row_id: str) -> Example:
    """One row as an example. Raises ValueError saying what is wrong with it."""
    value = row[hub.label]
    if value not in hub.values:
        raise ValueError(f"label {value!r} is none of {', '.join(map(repr, hub.values))}")
    for column in hub.columns:
        if row[column] is None:
            raise ValueError(f"column {column!r} is empty (null)")
    try:
        first, second = hub.encode(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"it does not fit the task's template ({error!r})")
    if "\0" in "".join(first + second):
        raise ValueError("its text holds NUL bytes")
    if not any(first):
        raise ValueError("its text is empty")
    return Example(id=row_id, first=first, second=second, label=hub.values.index(value))


def _read_split(spec: TaskSpec, file: SplitFile) -> list[Example]:
    """All rows of one file as examples, in the file's order.

    Raises:
        TaskError: naming the file and the first row (counted from 0) that is wrong.
    """
    hub = spec.hub
    _check_schema(file.path, spec, hub, pq.read_schema(file.path))
    table = _read_table(file.path, list(hub.columns))
    stem = Path(file.name).stem
    examples: list[Example] = []
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            i = len(examples)
            try:
                examples.append(_example(spec, hub, row, f"{stem}/{i}"))
            except ValueError as error:
                raise TaskError(f"{file.path}, row {i}: {error}.")
    if not examples:
        raise TaskError(f"{file.path}: no rows. Task {spec.name} needs some in every split.")
    return examples


def _locate_bundled(spec: TaskSpec) -> Located:
    from adapterfusion.bundled import FOLDER, VERSION, generate

    files = {
        split: SplitFile(
            path=find_root() / FOLDER,
            name=f"{FOLDER.as_posix()} {spec.name} {split}",
            sha256=content_sha256(examples),
            rows=len(examples),
            official=True,
        )
        for split, examples in generate(spec.name).items()
    }
    return Located("bundled", str(VERSION), files)


def locate(spec: TaskSpec, config: Config) -> Located:
    """The files behind a task, checked as files.

    Raises:
        TaskError: they are absent, damaged, or not what a checksum or a row count says.
    """
    if config.data.source == "bundled":
        return _locate_bundled(spec)
    return locate_mirror(spec, mirror_folder(config))


def read(spec: TaskSpec, located: Located) -> dict[Split, list[Example]]:
    """All rows of a task, checked one by one.

    Raises:
        TaskError: naming the file and the first row (counted from 0) that is wrong.
    """
    if located.source == "bundled":
        from adapterfusion.bundled import generate

        return generate(spec.name)
    return {split: _read_split(spec, file) for split, file in located.files.items()}
