"""Import the Argument task from the files of UKP's Sentential Argument Mining Corpus.

The corpus may not be redistributed, so a person asks UKP Lab for it and unpacks the archive. Its
tab-separated files, one per topic, hold the columns topic, sentence, annotation and set (train, val
or test). They are counted, written as parquet under data/manual/, and recorded with their checksums.
"""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adapterfusion.backbone import file_sha256
from adapterfusion.catalogue import PAPER
from adapterfusion.paths import atomic_write
from adapterfusion.rows import shown
from adapterfusion.sources import MANIFEST
from adapterfusion.tasks import TaskError

COLUMNS = ("topic", "sentence", "annotation", "set")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
ROWS = {"train": 18341, "validation": 2042, "test": 5109}
LABELS = {"NoArgument": 14353, "Argument_against": 6195, "Argument_for": 4944}


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of one topic's file. Quotes are part of the text there, and never close a cell."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{shown(path)}: not one of the corpus's files ({error}). Unpack it again.")
    for i, row in enumerate(rows):
        if any(not row.get(column) for column in COLUMNS) or row["set"] not in SPLITS:
            raise TaskError(
                f"{shown(path)}, row {i}: lacks one of {', '.join(COLUMNS)}. Unpack it again."
            )
    return rows


def import_argument(folder: Path, target: Path) -> dict[str, int]:
    """Write the corpus in `folder` into `target`, a folder in the layout of a mirror.

    Returns:
        the rows of each split.

    Raises:
        TaskError: files are missing, or rows and labels are not as many as the corpus has.
    """
    files = sorted(folder.rglob("*.tsv"))
    if not files:
        raise TaskError(f"{shown(folder)}: no .tsv files. Name the folder of the unpacked archive.")
    splits: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS.values()}
    for path in files:
        for row in _rows(path):
            splits[SPLITS[row["set"]]].append({c: row[c] for c in COLUMNS[:3]})
    found = {name: len(rows) for name, rows in splits.items()}
    labels = Counter(row["annotation"] for rows in splits.values() for row in rows)
    for what, is_now, should_be in (("rows", found, ROWS), ("labels", dict(labels), LABELS)):
        if is_now != should_be:
            raise TaskError(
                f"{shown(folder)}: {what} are {is_now}, the corpus has {should_be}. Unpack the archive "
                "into an empty folder, with one .tsv file per topic and nothing else."
            )
    hub = PAPER["argument"].hub
    raw = {path.name: file_sha256(path) for path in files}
    manifest = []
    for name, rows in splits.items():
        path = f"{hub.id}/{hub.config}/{name}.parquet"
        with atomic_write(target / path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
        manifest.append(
            {
                "path": path,
                "rows": len(rows),
                "sha256": file_sha256(target / path),
                "official_split": True,
                "note": "imported by hand; sha256 of the corpus's files: " + json.dumps(raw),
            }
        )
    with atomic_write(target / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    return found
