"""Read a file of rows, whatever its format, as examples; or name the first thing that is wrong.

Parquet, CSV, TSV and JSONL all become the same row dictionaries, which a task's templates turn into
examples. Every complaint names the file, the row (counted from 0) and what to do.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adapterfusion.paths import find_root
from adapterfusion.tasks import Example, HubSource, TaskError, TaskSpec

MOST_CHARACTERS = 1_000_000  # of one row: a thousand times what a model reads; more is a mistake
Row = dict[str, Any]


def shown(path: Path) -> str:
    """A path as messages name it: from the project's root, unless it lies far from there."""
    relative = os.path.relpath(path, find_root())
    return str(path) if relative.startswith("../..") else relative


def content_sha256(examples: Iterable[Example]) -> str:
    """sha256 over what the examples say, whatever file and format they come from."""
    digest = hashlib.sha256()
    for e in examples:
        row = [e["id"], e["first"], e["second"], e["label"]]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise TaskError(f"{shown(path)}: not found. Put it there, or choose another source.")
    except (pa.ArrowException, OSError) as error:
        with path.open("rb") as file:
            begins = file.read(64).lstrip().lower()
        what = "a web page" if begins.startswith(b"<") else "cut short or damaged"
        raise TaskError(
            f"{shown(path)}: {what}, not a parquet file ({str(error).splitlines()[0]}). Fetch it again."
        )


def count_parquet(path: Path) -> int:
    """Rows of a parquet file. Raises TaskError where it is not a whole one."""
    with _open_parquet(path) as file:
        return file.metadata.num_rows


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def check_schema(path: Path, spec: TaskSpec, hub: HubSource) -> None:
    """A parquet file has the task's columns, and where it names its labels, ours in our order.

    Raises:
        TaskError: naming the file and the column.
    """
    with _open_parquet(path) as file:
        schema = file.schema_arrow
    for column in hub.columns:
        if column not in schema.names:
            raise TaskError(
                f"{shown(path)}: no column {column!r} (it has {', '.join(schema.names)}). "
                f"Task {spec.name} needs {', '.join(hub.columns)}."
            )
    label, integers = schema.field(hub.label).type, isinstance(hub.values[0], int)
    if not hub.loose and not (pa.types.is_integer if integers else _is_string)(label):
        raise TaskError(
            f"{shown(path)}: column {hub.label!r} is {label}; task {spec.name} needs "
            f"{'integers' if integers else 'strings'} such as {hub.values[0]!r}."
        )
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = tuple(described["info"]["features"][hub.label]["names"])
    except (ValueError, KeyError, TypeError):
        return  # the file does not say what its ids mean
    if spec.labels and names != spec.labels and not hub.loose:
        raise TaskError(
            f"{shown(path)}: its label ids mean {', '.join(names)}; task {spec.name} expects "
            f"{', '.join(spec.labels)}, in this order. This is another version of the data."
        )


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    with _open_parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=4096, columns=list(columns)):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise TaskError(
                f"{shown(path)}: damaged ({str(error).splitlines()[0]}). Fetch it again."
            )
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{shown(path)}: text that is not UTF-8 ({error}). Write the file as UTF-8."
            )


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, or an error that names the byte where it is no UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except FileNotFoundError:
        raise TaskError(
            f"{shown(path)}: not found. Put it there, or correct the path in params.yaml."
        )
    except UnicodeDecodeError as error:
        raise TaskError(f"{shown(path)}: not UTF-8 ({error}). Save the file as UTF-8.")


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**30)  # the limit on a row's text is ours, with a better message
    reader = csv.reader(_text_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise TaskError(f"{shown(path)}: empty. The first line names the columns.")
        if len(set(header)) < len(header):
            raise TaskError(
                f"{shown(path)}: a column is named twice ({', '.join(header)}). Rename one."
            )
        for i, cells in enumerate(reader):
            if len(cells) != len(header):
                raise TaskError(
                    f"{shown(path)}, row {i}: {len(cells)} cells under {len(header)} columns. "
                    "Quote cells that hold the delimiter."
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise TaskError(f"{shown(path)}, line {reader.line_num}: {error}. Correct the line.")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for i, line in enumerate(_text_lines(path)):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(
                f"{shown(path)}, row {i}: not JSON ({error}). One object per line is needed."
            )
        if not isinstance(row, dict):
            raise TaskError(f"{shown(path)}, row {i}: not an object. Write each row as {{...}}.")
        yield row


FORMATS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".csv": lambda path: _csv_rows(path, ","),
    ".tsv": lambda path: _csv_rows(path, "\t"),
    ".jsonl": _jsonl_rows,
}


def _check_columns(row: Row, spec: TaskSpec, hub: HubSource) -> None:
    """Raises ValueError saying which column of a row cannot be used."""
    for column in hub.columns:
        if column not in row:
            raise ValueError(f"no column {column!r} (it has {', '.join(map(str, row))})")
        value = row[column]
        if value is None:
            raise ValueError(f"column {column!r} is empty (null)")
        lists = value.values() if isinstance(value, dict) else [value]
        for choices in lists:
            if isinstance(choices, list) and len(choices) != spec.choices:
                raise ValueError(
                    f"column {column!r} holds {len(choices)} choices, the task has {spec.choices}"
                )


def _example(row: Row, spec: TaskSpec, hub: HubSource, row_id: str) -> Example:
    """One row as an example. Raises ValueError saying what is wrong with it."""
    _check_columns(row, spec, hub)
    value = row[hub.label]
    if hub.loose:
        value = str(value)
    if isinstance(value, bool) or value not in hub.values:
        known = ", ".join(map(repr, hub.values))
        raise ValueError(f"label {row[hub.label]!r} in column {hub.label!r} is none of {known}")
    try:
        first, second = hub.encode(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"it does not fit the task's template ({error})")
    text = "".join(first + second)
    if "\0" in text:
        raise ValueError("its text holds NUL bytes; remove them")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters of text; cut it, or drop the row")
    if not all(first):
        raise ValueError("its text is empty; drop the row, or fill it")
    return Example(id=row_id, first=first, second=second, label=hub.values.index(value))


def read_examples(path: Path, name: str, spec: TaskSpec, hub: HubSource) -> list[Example]:
    """All rows of one file as examples, in the file's order.

    name: begins the ids of rows that have none of their own.

    Raises:
        TaskError: naming the file and the first row that is wrong.
    """
    if path.suffix == ".parquet":
        check_schema(path, spec, hub)
        rows: Iterable[Row] = _parquet_rows(path, hub.columns)
    elif path.suffix in FORMATS:
        rows = FORMATS[path.suffix](path)
    else:
        known = ", ".join([".parquet", *FORMATS])
        raise TaskError(
            f"{shown(path)}: {path.suffix or 'no suffix'} is not a known format ({known})."
        )
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        row_id = str(row.get(hub.row_id)) if hub.row_id else f"{name}/{i}"
        try:
            if row_id in seen:
                raise ValueError(f"id {row_id!r} was that of row {seen[row_id]} already")
            examples.append(_example(row, spec, hub, row_id))
        except ValueError as error:
            raise TaskError(f"{shown(path)}, row {i}: {error}.")
        seen[row_id] = i
    if not examples:
        raise TaskError(f"{shown(path)}: no rows. Task {spec.name} needs some in every split.")
    return examples
