"""Find the files behind a task, whatever its source, and read them.

`locate` says which files, with which checksums, hold which split; nothing of it reads rows, unless
something must be fetched first. `read` turns them into examples. In a mirror, as in the cache of
what came from the hub, they lie at `<org>/<name>/<config>/<split>.parquet`.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from adapterfusion.backbone import file_sha256
from adapterfusion.catalogue import PAPER, unknown_task
from adapterfusion.config import Config
from adapterfusion.download import RECORD, freeze
from adapterfusion.own import own_files, own_spec
from adapterfusion.paths import find_root
from adapterfusion.rows import content_sha256, count_parquet, read_examples, shown
from adapterfusion.tasks import AbsentError, Example, Split, TaskError, TaskSpec

MANIFEST = "MANIFEST.json"
MANUAL = Path("data") / "manual"  # what only a person may fetch, in the layout of a mirror


@dataclass(frozen=True)
class SplitFile:
    """One split in one file (`path` is None where rows are generated).

    official: these rows are the official split, all of it. note: what a manifest says about it.
    """

    path: Path | None
    name: str
    sha256: str
    rows: int | None
    official: bool
    note: str = ""


@dataclass(frozen=True)
class Located:
    """Where a task's rows lie. source: `bundled`, `mirror`, `hub`, `manual` or `own`.

    commit: what a named revision of the hub meant when it was fetched.
    """

    source: str
    revision: str
    files: dict[Split, SplitFile]
    commit: str | None = None


def _bundled() -> ModuleType:
    """The suite's module; other sources do without it."""
    from adapterfusion import bundled

    return bundled


def known_tasks(config: Config) -> dict[str, TaskSpec]:
    """All tasks there are for this configuration, by name: the source's, and one's own."""
    known = _bundled().bundled_tasks() if config.data.source == "bundled" else dict(PAPER)
    for name, task in config.tasks.items():
        if task.own and name in known:
            raise TaskError(
                f"tasks.{name}: there is a task of this name already. Name your own differently."
            )
        if task.own:
            known[name] = own_spec(name, task.own)
    return known


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
        raise TaskError(
            f"{shown(path)}: not a readable manifest ({error!r}). Restore it, or remove it."
        )


def _mirrored(spec: TaskSpec, folder: Path, source: str) -> Located:
    """The files of a task in a mirror, held against its manifest if it has one."""
    hub, manifest = spec.hub, _manifest(folder)
    files: dict[Split, SplitFile] = {}
    for split, hub_split in hub.splits:
        name = f"{hub.id}/{hub.config}/{hub_split}.parquet"
        path = folder / name
        if not path.is_file():
            remedy = spec.manual or "Add the file, or drop the task from params.yaml."
            raise AbsentError(f"{shown(path)}: not found, so task {spec.name} is absent. {remedy}")
        rows, digest, entry = count_parquet(path), file_sha256(path), manifest.get(name, {})
        for key, found in (("sha256", digest), ("rows", rows)):
            if entry.get(key, found) != found:
                raise TaskError(
                    f"{shown(path)}: {key} is {found}, {MANIFEST} says {entry[key]}. Copy the file again."
                )
        official = rows == hub.rows[split] and bool(entry.get("official_split", True))
        note = str(entry.get("note", ""))
        files[split] = SplitFile(path, name, digest, rows, official, note)
    return Located(source, hub.revision, files)


def _from_hub(spec: TaskSpec, config: Config) -> Located:
    cache = find_root() / Path(config.data.cache).expanduser()
    freeze(spec, spec.hub, cache)
    record = json.loads((cache / spec.hub.id / spec.hub.config / RECORD).read_text())
    return replace(_mirrored(spec, cache, "hub"), commit=record["commit"])


def _generated(spec: TaskSpec) -> Located:
    files = {
        split: SplitFile(None, f"{spec.name}/{split}", content_sha256(rows), len(rows), True)
        for split, rows in _bundled().generate(spec.name).items()
    }
    return Located("bundled", f"version {spec.version}", files)


def _own(spec: TaskSpec, config: Config) -> Located:
    files: dict[Split, SplitFile] = {}
    for split, (path, name) in own_files(config.tasks[spec.name].own, find_root()).items():
        if not path.is_file():
            raise TaskError(f"{shown(path)}: not found. Correct tasks.{spec.name}.own.{split}.")
        files[split] = SplitFile(path, name, file_sha256(path), None, True)
    return Located("own", spec.hub.revision, files)


def locate(spec: TaskSpec, config: Config) -> Located:
    """The files behind a task, checked as files; from the hub they are fetched first.

    Raises:
        TaskError: they are absent, damaged, or not what a checksum or a row count says.
    """
    if spec.name in config.tasks and config.tasks[spec.name].own:
        return _own(spec, config)
    if config.data.source == "bundled":
        return _generated(spec)
    if spec.manual:
        return _mirrored(spec, find_root() / MANUAL, "manual")
    if config.data.source == "hub":
        return _from_hub(spec, config)
    return _mirrored(spec, mirror_folder(config), "mirror")


def read(spec: TaskSpec, located: Located) -> dict[Split, list[Example]]:
    """All rows of a task, checked one by one. An own task may have no `dev` yet.

    Raises:
        TaskError: naming the file and the first row that is wrong.
    """
    if located.source == "bundled":
        return _bundled().generate(spec.name)
    return {
        split: read_examples(file.path, Path(file.name).stem, spec, spec.hub)
        for split, file in located.files.items()
    }
