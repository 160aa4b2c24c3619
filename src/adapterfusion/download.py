"""Fetch a task's files from the hub once, verify them, and keep them as a mirror of our own.

The hub's clients check no checksum over HTTP and, offline, may serve the rows of another commit. So
files are fetched one by one at a pinned revision, held against the checksum the hub announces, the
official row counts and the task's labels, and only then frozen under `data.cache`. From there on no
network is needed, and the folder serves as a mirror on a machine that has none.
"""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from adapterfusion.backbone import file_sha256
from adapterfusion.paths import atomic_write
from adapterfusion.rows import check_schema, count_parquet, read_examples, shown
from adapterfusion.tasks import HubSource, Split, TaskError, TaskSpec

RECORD = "SOURCE.json"
PAUSES = (1.0, 4.0)  # seconds before the second and the third try of a failed download


def _download(repo: str, file: str, revision: str, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo, file, repo_type="dataset", revision=revision, local_files_only=local_only
        )
    )


def _explain(repo: str, file: str, revision: str, error: Exception) -> TaskError:
    """The client's many errors as one sentence with a remedy."""
    from huggingface_hub import errors

    where = f"hub data set {repo}, {file} at {revision}"
    if isinstance(error, errors.RevisionNotFoundError):
        return TaskError(f"{where}: there is no such revision any more. Pin another one.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return TaskError(f"{where}: there is no such file at this revision. Correct the entry.")
    if isinstance(error, errors.GatedRepoError):
        return TaskError(f"{where}: access must be granted first. Ask for it on the hub, log in.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return TaskError(f"{where}: there is no such repository, or it is private. Log in.")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return TaskError(
            f"{where}: not here yet, and the hub cannot be reached. Go online once, or use "
            "data.source: mirror."
        )
    first_line = (str(error).strip().splitlines() or [repr(error)])[0]
    return TaskError(f"{where}: the download failed ({first_line}). Try again later.")


def _lasting(error: Exception) -> bool:
    """Whether trying again is of no use: the hub answered, or its client has waited long already."""
    from huggingface_hub import errors

    if isinstance(error, errors.EntryNotFoundError | errors.RepositoryNotFoundError):
        return True
    response = getattr(error, "response", None)
    return response is not None and response.status_code < 500


def fetch(repo: str, file: str, revision: str) -> Path:
    """A file of a data-set repository, from the client's cache or the hub, whole.

    Raises:
        TaskError: it cannot be had, or its content has not the checksum that the hub announced.
    """
    try:
        path = _download(repo, file, revision, local_only=True)
    except Exception:  # not in the cache
        path = _from_network(repo, file, revision)
    announced, digest = path.resolve().name, file_sha256(path)
    if re.fullmatch("[0-9a-f]{64}", announced) and digest != announced:
        path.resolve().unlink()  # else the cache would serve it for ever
        raise TaskError(
            f"hub data set {repo}, {file} at {revision}: sha256 is {digest}, the hub announced "
            f"{announced}. The damaged file was removed; run it again."
        )
    return path


def _from_network(repo: str, file: str, revision: str) -> Path:
    for pause in (*PAUSES, None):
        try:
            return _download(repo, file, revision, local_only=False)
        except Exception as error:
            if pause is None or _lasting(error):
                raise _explain(repo, file, revision, error)
            print(f"{repo}: {type(error).__name__}, next try in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _verify(path: Path, split: Split, spec: TaskSpec, hub: HubSource) -> int:
    """The number of rows, if columns, labels and row count are those of the task's entry."""
    check_schema(path, spec, hub)
    rows, expected = count_parquet(path), hub.rows[split]
    if rows != expected:
        raise TaskError(
            f"hub data set {hub.id} at {hub.revision}: {rows:,} {split} rows, the official split "
            f"has {expected:,}. This is other data than task {spec.name} names; pin its revision."
        )
    read_examples(path, split, spec, hub)  # every label known, every row whole
    return rows


def _frozen(folder: Path, hub: HubSource) -> bool:
    """Whether the files of this revision are in `folder`, unharmed."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record["revision"] == hub.revision and all(
            file_sha256(folder / name) == file["sha256"] for name, file in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def freeze(spec: TaskSpec, hub: HubSource, cache: Path) -> None:
    """Have `cache/<org>/<name>/<config>/<split>.parquet`, verified, for both splits of a task.

    Downloads only what is not there yet.

    Raises:
        TaskError: the files cannot be had or are not the task's; what was frozen before stays.
    """
    folder = cache / hub.id / hub.config
    if _frozen(folder, hub):
        return
    fetched: dict[str, Path] = {}
    record: dict[str, Any] = {"repository": hub.id, "revision": hub.revision, "files": {}}
    for split, hub_split in hub.splits:
        path = fetch(hub.id, hub.file.format(split=hub_split), hub.revision)
        name = f"{hub_split}.parquet"
        rows = _verify(path, split, spec, hub)
        record["files"][name] = {"rows": rows, "sha256": file_sha256(path)}
        record["commit"] = path.parts[path.parts.index("snapshots") + 1]
        fetched[name] = path
    try:
        for name, path in fetched.items():
            with atomic_write(folder / name) as temporary:
                shutil.copyfile(path, temporary)
        with atomic_write(folder / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise TaskError(f"{shown(folder)}: cannot write ({error}). Free space, or move data.cache.")
