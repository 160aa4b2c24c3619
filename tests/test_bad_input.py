"""What goes wrong with data, case by case: one line that names place and remedy, before any training
starts, and nothing already prepared is lost."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_rows import table
from tiny import params, project, tiny_backbone

from adapterfusion import data
from adapterfusion.catalogue import PAPER

CSV = ["id,text,mood", *(f"{i},row {i},{'good' if i % 2 else 'bad'}" for i in range(20))]
OWN = {
    "train": "mine.csv",
    "text": ["text"],
    "label": "mood",
    "labels": ["bad", "good"],
    "id": "id",
}
CB = Path("mirror/aps/super_glue/cb")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A project whose tasks `cb` (from a mirror) and `mine` (a CSV file) are prepared."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("healthy") / "project"
    backbone = tiny_backbone(folder / "backbone")
    project(folder, params(str(backbone), {"cb": {}, "mine": {"own": OWN}}))
    (folder / CB).mkdir(parents=True)
    manifest = []
    for split, rows in (("train", 40), ("validation", 20)):
        pq.write_table(table("cb", rows), folder / CB / f"{split}.parquet")
        manifest.append({"path": f"aps/super_glue/cb/{split}.parquet", "rows": rows})
    (folder / "mirror" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "mine.csv").write_text("\n".join(CSV) + "\n")
    patch.chdir(folder)
    patch.delenv("DVC_ROOT", raising=False)
    patch.delenv("ADAPTERFUSION_MIRROR", raising=False)
    assert data.main(["prepare", "cb", "mine"]) == 0
    patch.undo()
    return folder


@pytest.fixture
def here(healthy, tmp_path, monkeypatch) -> Path:
    """A copy of it that may be broken, as the working folder."""
    shutil.copytree(healthy, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("ADAPTERFUSION_MIRROR", raising=False)
    return tmp_path / "project"


def prepared() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path("data/prepared").rglob("*") if p.is_file()}


def column(name: str, cells: Callable[[list], list], kind: pa.DataType | None = None) -> Callable:
    """Break the mirror's training part of cb: `name` gets other cells."""

    def change() -> None:
        rows = pq.read_table(CB / "train.parquet")
        new = pa.array(cells(rows[name].to_pylist()), kind or rows.schema.field(name).type)
        pq.write_table(
            rows.set_column(rows.schema.names.index(name), name, new), CB / "train.parquet"
        )

    return change


def row(name: str, cell: object) -> Callable:
    """Row 3 of that column says something else."""
    return column(name, lambda cells: [*cells[:3], cell, *cells[4:]])


def drop_column() -> None:
    rows = pq.read_table(CB / "train.parquet")
    pq.write_table(rows.drop_columns(["hypothesis"]), CB / "train.parquet")


def other_names() -> None:
    rows = pq.read_table(CB / "train.parquet")
    told = rows.schema.metadata[b"huggingface"].replace(b'"entailment", ', b"", 1)
    told = told.replace(b'"neutral"]', b'"neutral", "entailment"]')
    pq.write_table(rows.replace_schema_metadata({"huggingface": told}), CB / "train.parquet")


def other_rows(n: int) -> Callable:
    def change() -> None:
        pq.write_table(table("cb", n), CB / "train.parquet")
        Path("mirror/MANIFEST.json").unlink()

    return change


def not_utf8() -> None:
    rows = pq.read_table(CB / "train.parquet")
    cells = [c.encode() for c in rows["premise"].to_pylist()]
    cells[3] = b"caf\xe9"
    raw = pa.array(cells, pa.binary()).view(pa.string())
    pq.write_table(rows.set_column(0, "premise", raw), CB / "train.parquet")


def cut_short() -> None:
    path = CB / "train.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_inside() -> None:
    path = CB / "train.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * 200 + content[400:])


def web_page() -> None:
    (CB / "train.parquet").write_text("<!DOCTYPE html><title>502 Bad Gateway</title>")


def manifest(text: str | None = None, **entry: object) -> Callable:
    def change() -> None:
        said = [{"path": "aps/super_glue/cb/train.parquet"} | entry]
        Path("mirror/MANIFEST.json").write_text(text or json.dumps(said))

    return change


def csv(*lines: str, encoding: str = "utf-8") -> Callable:
    def change() -> None:
        Path("mine.csv").write_bytes("\n".join([*lines, ""]).encode(encoding))

    return change


def csv_line(number: int, line: str, encoding: str = "utf-8") -> Callable:
    return csv(*CSV[:number], line, *CSV[number + 1 :], encoding=encoding)


def own(file: str = "mine.csv", content: str | None = None, **keys: object) -> Callable:
    """Another entry for the own task, and perhaps another file."""

    def change() -> None:
        values = yaml.safe_load(Path("params.yaml").read_text())
        values["tasks"]["mine"]["own"] = OWN | {"train": file} | keys
        Path("params.yaml").write_text(yaml.safe_dump(values))
        if content is not None:
            Path(file).write_text(content)

    return change


def setting(path: str, value: object) -> Callable:
    """params.yaml says `value` at `path`; a task that is renamed goes by its new name everywhere."""

    def change() -> None:
        values = yaml.safe_load(Path("params.yaml").read_text())
        *parents, last = path.split(".")
        place = values
        for key in parents:
            place = place[key]
        place[last] = value
        Path("params.yaml").write_text(yaml.safe_dump(values))

    return change


def named_twice() -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("tasks:\n", "tasks:\n  cb: {seeds: [2]}\n"))


def file_in_place_of_the_folder() -> None:
    shutil.rmtree("data/prepared")
    Path("data/prepared").write_text("")


def choices(*rows: list[str]) -> Callable:
    lines = [json.dumps({"id": i, "text": "so", "ends": r, "mood": 0}) for i, r in enumerate(rows)]
    return own(
        "mine.jsonl",
        "\n".join(lines),
        choices=["ends[0]", "ends[1]"],
        labels=[],
    )


# name: (task, what breaks, words the message must hold)
CASES: dict[str, tuple[str, Callable, tuple[str, ...]]] = {
    # rows of a data set
    "missing column": ("cb", drop_column, ("no column 'hypothesis'", "train.parquet")),
    "label of another type": (
        *("cb", column("label", lambda cells: list(map(str, cells)), pa.string())),
        ("'label' is string", "integers"),
    ),
    "text that is numbers": (
        *("cb", column("premise", lambda cells: list(range(40)), pa.int64())),
        ("train.parquet, row 0", "0 is not text"),
    ),
    "unknown label": ("cb", row("label", 7), ("row 3", "label 7", "0, 1, 2")),
    "unlabelled row": ("cb", row("label", -1), ("row 3", "label -1")),
    "label ids in another order": ("cb", other_names, ("contradiction, neutral, entailment",)),
    "empty text": ("cb", row("premise", "  "), ("row 3", "empty", "drop the row")),
    "no text at all": ("cb", row("premise", None), ("row 3", "'premise' is empty")),
    "NUL bytes": ("cb", row("premise", "a\0b"), ("row 3", "NUL")),
    "10 MB of text in a row": ("cb", row("premise", "ab " * 3_500_000), ("row 3", "10,500,")),
    "not UTF-8": ("cb", not_utf8, ("train.parquet", "not UTF-8")),
    "empty split": ("cb", other_rows(0), ("train.parquet: no rows",)),
    "one class only": (
        *("cb", column("label", lambda cells: [1] * len(cells))),
        ("tasks.cb", "fewer than two classes"),
    ),
    # files
    "parquet cut short": ("cb", cut_short, ("train.parquet: cut short", "Fetch it again")),
    "parquet damaged inside": ("cb", damaged_inside, ("train.parquet", "Fetch it again")),
    "web page saved as parquet": ("cb", web_page, ("train.parquet: a web page",)),
    "wrong checksum": ("cb", manifest(sha256="0" * 64), ("sha256 is", "MANIFEST.json says 0000")),
    "wrong number of rows": ("cb", manifest(rows=39), ("rows is 40", "says 39")),
    "manifest that is no JSON": ("cb", manifest("{"), ("MANIFEST.json: not a readable",)),
    "absent from the mirror": (
        *("cb", lambda: shutil.rmtree(CB)),
        ("cb/train.parquet: not found", "task cb is absent"),
    ),
    "no mirror there": ("cb", setting("data.mirror", "elsewhere"), ("elsewhere", "not found")),
    # a task of one's own
    "CSV without the column": ("mine", csv("id,words,mood", *CSV[1:]), ("row 0", "'text'")),
    "CSV not UTF-8": ("mine", csv_line(5, "4,café,bad", "latin-1"), ("mine.csv", "not UTF-8")),
    "CSV with a ragged row": ("mine", csv_line(5, "4,a,b,bad"), ("row 4", "4 cells under 3")),
    "CSV with an open quote": ("mine", csv_line(5, '4,"a,bad'), ("mine.csv, line",)),
    "CSV that is empty": ("mine", csv(), ("mine.csv: empty",)),
    "CSV with a header alone": ("mine", csv(CSV[0]), ("mine.csv: no rows",)),
    "CSV with a column twice": ("mine", csv("id,text,text,mood"), ("named twice",)),
    "duplicate ids": ("mine", csv_line(5, "2,row 4,bad"), ("row 4", "'2' was that of row 2")),
    "label not listed": ("mine", csv_line(5, "4,row 4,fine"), ("row 4", "'fine'", "'mood'")),
    "JSONL with a broken line": ("mine", own("a.jsonl", '{"id": 1,\n'), ("a.jsonl, row 0", "JSON")),
    "JSONL of lists": ("mine", own("a.jsonl", "[1]\n"), ("row 0", "not an object")),
    "fewer choices in a row": (
        *("mine", choices(["a", "b"], ["a"])),
        ("row 1", "'ends' holds 1 choices, the task has 2"),
    ),
    "more choices in a row": ("mine", choices(["a", "b"], ["a", "b", "c"]), ("row 1", "holds 3")),
    "file that is not there": ("mine", own("gone.csv"), ("gone.csv: not found", "own.train")),
    "format that is not known": ("mine", own("a.xlsx", ""), ("a.xlsx", ".csv, .tsv, .jsonl")),
    "one label": ("mine", own(labels=["bad"]), ("tasks.mine.own.labels", "two or more")),
    "label named twice": ("mine", own(labels=["bad", "bad"]), ("own.labels", "named twice")),
    "three text columns": ("mine", own(text=["a", "b", "c"]), ("own.text: 3 columns",)),
    "metric that is not known": ("mine", own(metrics=["bleu"]), ("own.metrics: bleu",)),
    "hub without revision": ("mine", own(hub="me/mine"), ("own.revision: missing", "Pin")),
    "key that is not known": ("mine", own(lable="mood"), ("tasks.mine.own.lable", "unknown key")),
    "name of another task": (
        *("cb", setting("tasks.cb.own", OWN)),
        ("tasks.cb", "a task of this name already"),
    ),
    # params.yaml
    "task named twice": ("cb", named_twice, ("params.yaml: 'cb' is named twice", "Name it once")),
    "source that is absent": ("cb", setting("sources", ["cb", "rte"]), ("sources", "'rte'")),
    "task that does not exist": ("sst", setting("tasks.sst", {"seeds": [1]}), ("mean sst2",)),
    "task not under tasks": ("rte", lambda: None, ("tasks.rte: not in params.yaml",)),
    "number in quotes": ("cb", setting("tasks.cb.train", "30"), ("tasks.cb.train", "quotes")),
    "source that is no source": ("cb", setting("data.source", "ftp"), ("data.source: 'ftp'",)),
    "mirror without a folder": ("cb", setting("data.mirror", None), ("data.mirror: missing",)),
    "cap that leaves one class": ("cb", setting("tasks.cb.train", 1), ("train would have 1 rows",)),
    "validation of no rows": (
        *("cb", setting("data.validation", 0.001)),
        ("validation would have 0 rows", "Raise its cap or share"),
    ),
    "backbone of another checksum": (
        *("cb", setting("backbone.sha256", "0" * 64)),
        ("backbone.sha256", "params.yaml says 0000"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error_and_nothing_is_lost(case, here, monkeypatch, capsys):
    small = dataclasses.replace(PAPER["cb"].hub, rows={"train": 40, "dev": 20})
    monkeypatch.setitem(PAPER, "cb", dataclasses.replace(PAPER["cb"], hub=small))
    task, damage, words = CASES[case]
    before = prepared()
    damage()
    assert data.main(["prepare", task]) == 1
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0 and message.endswith((".", "?")), message
    assert all(word in message for word in words), message
    assert prepared() == before and before


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full(here, monkeypatch, capsys):
    before = prepared()
    setting("tasks.mine.train", 10)()
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full_disk)
    assert data.main(["prepare", "mine"]) == 1
    assert "data/prepared/tiny/mine: could not be written (No space left" in capsys.readouterr().err
    assert prepared() == before
    assert [p.name for p in Path("data/prepared/tiny").iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written(here, capsys):
    file_in_place_of_the_folder()
    assert data.main(["prepare", "mine"]) == 1
    message = capsys.readouterr().err
    assert "data/prepared/tiny/mine: could not be written" in message and "writable" in message


def test_there_are_cases_enough():
    assert len(CASES) + 2 >= 25


def test_the_healthy_project_is_healthy(here, capsys):
    assert data.main(["prepare", "cb", "mine"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
