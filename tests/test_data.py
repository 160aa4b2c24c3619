"""Preparing tasks: what is written, that it is always the same, and what is cut from what."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_rows import SCHEMAS, table
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import params, project, tiny_backbone

from adapterfusion import argument, data, rows
from adapterfusion.batches import load_split
from adapterfusion.catalogue import PAPER
from adapterfusion.config import ConfigError, parse_config
from adapterfusion.splits import divide, stratified_order
from adapterfusion.tasks import TaskError

ROWS = {"train": 200, "dev": 50}
OWN = {"train": "mine.tsv", "text": ["text"], "label": "mood", "labels": ["bad", "good"]}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty project as the working folder, with a mirror of two tasks and a file of one's own."""
    monkeypatch.chdir(project(tmp_path / "project", {}))
    for variable in ("DVC_ROOT", "ADAPTERFUSION_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    for task in ("cb", "csqa"):
        source = dataclasses.replace(PAPER[task].hub, rows=ROWS)
        monkeypatch.setitem(PAPER, task, dataclasses.replace(PAPER[task], hub=source))
        folder = Path("mirror") / source.id / source.config
        folder.mkdir(parents=True)
        for split, name in source.splits:
            pq.write_table(table(task, ROWS[split]), folder / f"{name}.parquet")
    lines = ["text\tmood", *(f'a "b {i}\t{"good" if i % 4 else "bad"}' for i in range(100))]
    Path("mine.tsv").write_text("\n".join(lines).replace('"b', "b") + "\n")
    return tmp_path / "project"


def config(backbone: Path, tasks: dict, **settings):
    return parse_config(params(str(backbone), tasks, **settings))


def read(task: str, split: str) -> list[dict]:
    return pq.read_table(f"data/prepared/tiny/{task}/{split}.parquet").to_pylist()


def info(task: str) -> dict:
    return json.loads(Path(f"data/prepared/tiny/{task}/info.json").read_text())


def test_what_is_written(here, backbone):
    data.prepare("cb", config(backbone, {"cb": {"max_length": 24}}, validation=0.1))
    told = info("cb")
    assert told["rows"] == {"train": 180, "validation": 20, "dev": 50}
    assert (told["n_outputs"], told["choices"], told["labels"][1]) == (3, None, "contradiction")
    assert told["capped"] == {"train": False, "dev": False}
    assert set(told["official_split"].values()) == {True}
    assert told["truncated"]["dev"] == 1.0
    rows = read("cb", "dev")
    assert rows[4]["id"] == "validation/4"
    assert rows[4]["first"] == ["Eve sang a song (premise 4)"]
    assert rows[4]["label"] == 1
    [ids], [types] = rows[4]["input_ids"], rows[4]["token_type_ids"]
    assert len(ids) == len(types) == 24
    assert ids[0] == 2 and ids[-1] == 3 and ids.count(3) == 2  # [CLS] first [SEP] second [SEP]
    assert types == [0] * (ids.index(3) + 1) + [1] * (23 - ids.index(3))


def test_longest_first_cuts_the_longer_segment(here, backbone):
    data.prepare("csqa", config(backbone, {"csqa": {"max_length": 40}}))
    row = read("csqa", "dev")[0]
    assert len(row["input_ids"]) == len(row["token_type_ids"]) == 5
    first = {ids.index(3) for ids in row["input_ids"]}
    assert len(first) == 1 and next(iter(first)) in range(18, 22)


@pytest.mark.parametrize("whole", [True, False], ids=["tokenizer.json", "vocabulary alone"])
@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "single"])
def test_tokens_are_those_of_transformers(backbone, tmp_path, whole, pairs):
    from transformers import AutoTokenizer

    folder = tmp_path / "backbone"
    folder.mkdir()
    for path in backbone.iterdir():
        if whole or path.name != "tokenizer.json":
            (folder / path.name).write_bytes(path.read_bytes())
    first = ["Some Words, and more", "a", "caf\u00e9 99%", "[SEP] in text"]
    second = ["the second part is the longer one", "b c", "", "x"] if pairs else None
    expected = AutoTokenizer.from_pretrained(backbone)(
        first, second, truncation=True, max_length=20, return_token_type_ids=True
    )
    tokenizer = data.load_tokenizer(folder, 20)
    found = tokenizer.encode_batch(list(zip(first, second, strict=True)) if pairs else first)
    assert [e.ids for e in found] == expected["input_ids"]
    assert [e.type_ids for e in found] == expected["token_type_ids"]


def test_the_training_core_reads_it(here, backbone):
    data.prepare("csqa", config(backbone, {"csqa": {}}))
    split = load_split(Path("data/prepared/tiny/csqa/train.parquet"))
    assert len(split) == 200 and len(split.input_ids[0]) == 5
    assert Counter(split.labels.tolist()) == dict.fromkeys(range(5), 40)


def test_the_same_bytes_every_time_and_no_work_twice(here, backbone):
    settings = config(backbone, {"cb": {"train": 50, "dev": 20}}, validation=0.2)
    data.prepare("cb", settings)
    folder = Path("data/prepared/tiny/cb")
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "cb: unchanged" in data.prepare("cb", settings)
    (folder / "dev.parquet").write_bytes(b"")  # damaged afterwards
    assert "cb: prepared" in data.prepare("cb", settings)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    assert info("cb")["capped"] == {"train": True, "dev": True}


def test_only_what_changed_is_prepared_again(here, backbone):
    tasks = {"cb": {}, "csqa": {}}
    for task in tasks:
        data.prepare(task, config(backbone, tasks))
    changed = config(backbone, tasks | {"cb": {"train": 90, "seeds": [5]}})
    assert [data.prepare(task, changed) for task in tasks] == [
        "cb: prepared, train 90, dev 50 rows, source mirror",
        "csqa: unchanged, train 200, dev 50 rows, source mirror",
    ]
    # seeds of training are not a matter of data
    changed = config(backbone, tasks | {"cb": {"train": 90, "seeds": [6]}})
    assert all("unchanged" in data.prepare(task, changed) for task in tasks)


def test_a_smaller_cap_takes_part_of_the_same_rows(here, backbone):
    kept = {}
    for cap in (40, 80, None):
        data.prepare("cb", config(backbone, {"cb": {"train": cap}}, validation=0.1))
        kept[cap] = {row["id"] for row in read("cb", "train")}
        validation = {row["id"] for row in read("cb", "validation")}
        assert not kept[cap] & validation and len(validation) == 20
    assert kept[40] < kept[80] < kept[None]
    assert len(kept[None] | validation) == 200


def test_no_validation_where_none_is_asked_for(here, backbone):
    settings = config(backbone, {"cb": {}}, validation=0.2)
    data.prepare("cb", settings)
    assert Path("data/prepared/tiny/cb/validation.parquet").is_file()
    data.prepare("cb", config(backbone, {"cb": {}}))
    assert not Path("data/prepared/tiny/cb/validation.parquet").exists()


def test_another_seed_draws_other_rows(here, backbone):
    drawn = []
    for seed in (0, 1):
        data.prepare("cb", config(backbone, {"cb": {"train": 50}}, seed=seed))
        drawn.append([row["id"] for row in read("cb", "train")])
    assert drawn[0] != drawn[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_every_beginning_of_the_order_is_stratified(labels, seed):
    order = stratified_order(labels, seed, "task")
    assert sorted(order) == list(range(len(labels)))
    counts = Counter(labels)
    for n in range(len(labels) + 1):
        taken = Counter(labels[i] for i in order[:n])
        for label, count in counts.items():
            assert abs(taken[label] - n * count / len(labels)) <= len(counts) / 2 + 0.5


def test_a_mirror_that_is_not_the_official_split_says_so(here, backbone):
    manifest = [{"path": "aps/super_glue/cb/train.parquet", "rows": 200, "official_split": False}]
    Path("mirror/MANIFEST.json").write_text(json.dumps(manifest))
    data.prepare("cb", config(backbone, {"cb": {}}, validation=0.1))
    assert info("cb")["official_split"] == {"train": False, "validation": False, "dev": True}
    Path("mirror/MANIFEST.json").unlink()
    pq.write_table(table("cb", 30), "mirror/aps/super_glue/cb/train.parquet")
    data.prepare("cb", config(backbone, {"cb": {}}))  # without a manifest, row counts decide
    assert info("cb")["official_split"] == {"train": False, "dev": True}


def test_the_environment_names_another_mirror(here, backbone, monkeypatch):
    Path("mirror").rename("moved")
    assert "not found" in data.available("cb", config(backbone, {"cb": {}}))
    monkeypatch.setenv("ADAPTERFUSION_MIRROR", str(here / "moved"))
    assert data.available("cb", config(backbone, {"cb": {}})) is None


def test_a_task_of_ones_own_with_dev_cut_from_train(here, backbone):
    data.prepare("mine", config(backbone, {"mine": {"own": OWN}}))
    told = info("mine")
    assert told["rows"] == {"train": 80, "dev": 20}
    assert told["official_split"] == {"train": True, "dev": False}
    assert Counter(row["label"] for row in read("mine", "dev")) == {1: 15, 0: 5}
    assert not {r["id"] for r in read("mine", "dev")} & {r["id"] for r in read("mine", "train")}
    assert str(here) not in json.dumps(told)


def test_a_task_of_ones_own_with_choices(here, backbone):
    lines = [
        {"q": f"question {i}", "why": "because", "a": f"A{i}", "b": f"B{i}", "right": "ab"[i % 2]}
        for i in range(20)
    ]
    for name in ("t.jsonl", "d.jsonl"):
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"train": "t.jsonl", "dev": "d.jsonl", "text": ["q", "why"], "choices": ["a", "b"]}
    own |= {"label": "right", "labels": ["a", "b"]}
    data.prepare("mine", config(backbone, {"mine": {"own": own}}))
    row = read("mine", "dev")[3]
    assert row["first"] == ["question 3"] * 2 and row["second"] == ["because A3", "because B3"]
    assert row["label"] == 1 and info("mine")["n_outputs"] == 1 and info("mine")["choices"] == 2


def test_a_task_of_ones_own_is_prepared_again_when_its_file_changes(here, backbone):
    settings = config(backbone, {"mine": {"own": OWN}})
    data.prepare("mine", settings)
    with Path("mine.tsv").open("a") as file:
        file.write("one more\tgood\n")
    assert "mine: prepared" in data.prepare("mine", settings)
    assert "mine: unchanged" in data.prepare("mine", settings)


def test_the_overview_lists_all_sixteen(here, backbone, capsys, monkeypatch):
    tasks = {"cb": {}, "argument": {}, "rte": {}}
    data.prepare("cb", config(backbone, tasks))
    pq.write_table(table("csqa", 30), "mirror/tau/commonsense_qa/default/train.parquet")
    lines = {line.split()[0]: line for line in data.overview(config(backbone, tasks)).split("\n")}
    assert set(lines) == {"task", "*", *PAPER} and len(PAPER) == 16
    assert "prepared: train 200, dev 50 rows" in lines["cb"]
    assert "at hand: train 30 rows*, dev 50 rows" in lines["csqa"]
    assert "392,702 / 9,815" in lines["mnli"] and "task mnli is absent" in lines["mnli"]
    assert "import-argument" in lines["argument"] and "absent" in lines["rte"]


def corpus(folder: Path) -> None:
    """UKP's files in small: two topics, tab-separated, quotes that never close."""
    folder.mkdir()
    head = "topic\tretrievedUrl\tarchivedUrl\tsentenceHash\tsentence\tannotation\tset"
    for topic in ("school", "energy"):
        lines = [head]
        for i, part in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3):
            stance = ("NoArgument", "Argument_against", "Argument_for")[i % 3]
            lines.append(f'{topic}\tu\ta\th{i}\t"Point {i} said\t{stance}\t{part}')
        (folder / f"{topic}.tsv").write_text("\n".join(lines) + "\n")


def test_the_argument_corpus_is_imported_by_hand(here, backbone, monkeypatch, capsys):
    settings = config(backbone, {"argument": {}})
    assert "import-argument" in data.available("argument", settings)
    data.prepare("argument", settings)  # the pipeline goes on without it
    assert "import-argument" in info("argument")["absent"]
    corpus(here / "ukp")
    assert data.main(["import-argument", "ukp"]) == 1  # not as many rows as the corpus has
    assert "rows are {'train': 12" in capsys.readouterr().err
    monkeypatch.setattr(argument, "ROWS", {"train": 12, "validation": 6, "test": 6})
    monkeypatch.setattr(argument, "LABELS", dict.fromkeys(argument.LABELS, 8))
    assert data.main(["import-argument", "ukp"]) == 0
    assert data.available("argument", settings) is None
    assert not Path("data/prepared/tiny/argument/info.json").exists()
    data.prepare("argument", settings)
    assert info("argument")["source"] == "manual" and info("argument")["rows"]["dev"] == 6
    assert read("argument", "dev")[0]["first"] == ["energy"]
    assert read("argument", "dev")[1]["second"] == ['"Point 7 said']
    path = next(Path("data/manual").rglob("validation.parquet"))
    path.write_bytes(path.with_name("test.parquet").read_bytes())
    assert "sha256" in data.available("argument", settings)
    with pytest.raises(TaskError, match="sha256"):
        data.prepare("argument", settings)
    for path in Path("data/manual").rglob("*.parquet"):
        path.unlink()
    data.prepare("argument", settings)  # gone again, but what was prepared stays
    assert info("argument")["rows"]["dev"] == 6


def test_entries_are_complete():
    for spec in PAPER.values():
        assert spec.hub.rows["train"] > 0 and spec.licence and spec.max_length <= 384
        assert (spec.choices is None) == bool(spec.labels)
        assert len(spec.hub.values) == spec.n_classes
        assert spec.manual or "{split}" in spec.hub.file
        pinned = len(spec.hub.revision) == 40 and int(spec.hub.revision, 16)
        assert pinned or spec.name in ("sick", "argument")
        assert spec.metrics == (
            ("accuracy", "f1") if spec.name in ("mrpc", "qqp", "cb") else ("accuracy",)
        )
    assert set(SCHEMAS) == set(PAPER) - {"argument"}


def test_own_label_names_may_be_numbers_in_the_file(here):
    spec = data.task_spec(
        "mine", config(Path("x"), {"mine": {"own": OWN | {"labels": ["0", "1"]}}})
    )
    pq.write_table(table("sst2", 4).rename_columns(["text", "mood", "idx"]), "mine.parquet")
    found = rows.read_examples(Path("mine.parquet"), "mine", spec, spec.hub)
    assert [e["label"] for e in found] == [0, 1, 0, 1]


def test_numbers_in_params_are_checked_strictly(backbone):
    with pytest.raises(ConfigError, match=r"tasks\.mine\.own\.labels\[0\]: 0 is a int"):
        config(backbone, {"mine": {"own": OWN | {"labels": [0, 1]}}})


def test_division_refuses_parts_without_two_classes(backbone):
    one = [{"id": str(i), "first": ["a"], "second": [], "label": 0} for i in range(9)]
    with pytest.raises(TaskError, match=r"tasks\.cb: train would have 9 rows"):
        divide({"train": one, "dev": one}, "cb", config(backbone, {"cb": {}}))


MIRROR = Path(os.environ.get("ADAPTERFUSION_MIRROR") or Path(__file__).parents[2] / "shared/mirror")
WHOLE = """
import json, resource, sys, yaml
from adapterfusion.catalogue import PAPER
from adapterfusion.config import parse_config
from adapterfusion.sources import locate, read, task_spec
config = parse_config(yaml.safe_load(open("params.yaml")))
counts = {}
for name in config.tasks:
    spec = task_spec(name, config)
    counts[name] = {split: len(rows) for split, rows in read(spec, locate(spec, config)).items()}
print(json.dumps([counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.skipif(not (MIRROR / "MANIFEST.json").is_file(), reason="no mirror of the hub here")
def test_the_mirror_loads_whole(tmp_path, monkeypatch):
    """All tasks but SciTail and Argument, every row checked, in a process that is measured."""
    import yaml

    names = [name for name in PAPER if name not in ("scitail", "argument")]
    values = params("none", {name: {} for name in names}, mirror=str(MIRROR))
    monkeypatch.chdir(project(tmp_path / "project", {}))
    Path("params.yaml").write_text(yaml.safe_dump(values))
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", WHOLE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    counts, peak = json.loads(done.stdout)
    assert len(counts) == 14
    assert counts["sst2"] == {"train": 67349, "dev": 872}
    assert counts["imdb"] == {"train": 25000, "dev": 25000}
    assert peak < 2 * 1024**2  # KiB


def test_the_order_does_not_depend_on_the_machine():
    assert stratified_order([0, 1] * 4, 0, "cb train").tolist() == [5, 6, 7, 0, 3, 2, 1, 4]
