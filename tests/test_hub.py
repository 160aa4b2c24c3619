"""The hub for real, over HTTP on loopback: first download, then without a network, and all that goes
wrong in between. Each case gives the right rows or one clear error, and loses nothing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_rows import SCHEMAS, table
from hub_server import HubServer
from tiny import params, project, tiny_backbone

from adapterfusion import claims, download, findings, runs, tables
from adapterfusion.backbone import BackboneError, file_sha256, resolve_backbone
from adapterfusion.catalogue import PAPER
from adapterfusion.config import BackboneConfig, parse_config
from adapterfusion.data import prepare
from adapterfusion.launch import train_all
from adapterfusion.methods import METHODS
from adapterfusion.paths import find_root
from adapterfusion.sources import locate, read, task_spec
from adapterfusion.tasks import TaskError

ROWS = {"train": 40, "dev": 20}
PLAIN = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, a client that talks to it alone, a client's cache of its own, and an empty project."""
    from huggingface_hub import constants

    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client-cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # waiting is not what is tested
    monkeypatch.chdir(project(tmp_path / "project", {}))
    with HubServer(tmp_path / "hub") as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def file_of(hub: HubServer, task: str, split: str, commit: str | None = None) -> Path:
    """Where the served folder keeps a split of a task."""
    source = PAPER[task].hub
    named = source.file.format(split=dict(source.splits)[split])
    folder = hub.folder / "datasets" / source.id
    return (
        folder / (commit or hub.refs.get((source.id, source.revision)) or source.revision) / named
    )


def publish(hub: HubServer, task: str, monkeypatch, commit: str | None = None, **rows: int) -> None:
    """Put a task's invented rows on the hub, and make their number the official one."""
    spec = PAPER[task]
    if not spec.hub.revision.isalnum():  # a named ref
        hub.refs[(spec.hub.id, spec.hub.revision)] = commit or "c" * 40
    rows = ROWS | rows
    small = dataclasses.replace(spec, hub=dataclasses.replace(spec.hub, rows=rows))
    monkeypatch.setitem(PAPER, task, small)
    for split, n in rows.items():
        path = file_of(hub, task, split, commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(task, n), path, compression="none")


def config(task: str, backbone: Path | str = "none", own: dict | None = None):
    tasks = {task: {"own": own} if own else {}}
    return parse_config(params(str(backbone), tasks, source="hub"))


def get(task: str) -> dict:
    """Locate and read a task: all of the way but the tokenizer."""
    spec = task_spec(task, config(task))
    return read(spec, locate(spec, config(task)))


def fails_with(task: str, *words: str) -> str:
    with pytest.raises(TaskError) as caught:
        get(task)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


@pytest.mark.parametrize("task", SCHEMAS)
def test_every_task_is_fetched_read_and_then_needs_no_network(hub, task, monkeypatch):
    publish(hub, task, monkeypatch)
    first = get(task)
    spec, asked = PAPER[task], len(hub.requests)
    assert {split: len(rows) for split, rows in first.items()} == ROWS
    assert [e["label"] for e in first["train"]] == [i % spec.n_classes for i in range(40)]
    for example in first["train"]:
        assert len(example["first"]) == (spec.choices or 1)
        assert len(example["second"]) in (0, len(example["first"]))
    hub.stop()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    assert get(task) == first
    assert len(hub.requests) == asked


def test_the_encodings_follow_the_notes(hub, monkeypatch):
    def row(task: str) -> tuple[list[str], list[str]]:
        publish(hub, task, monkeypatch)
        example = get(task)["train"][1]
        return example["first"], example["second"]

    assert row("winogrande") == (
        [
            "Bob thanked Bob ran home (option1 1) in row 1",
            "Bob thanked Bob ran home (option2 1) in row 1",
        ],
        [],
    )
    first, second = row("hellaswag")
    assert first == ["Bob ran home (ctx_a 1)"] * 4
    assert second[3] == "Bob ran home (ctx_b 1) Bob ran home (ending 3 1)"
    first, second = row("csqa")
    assert first == ["Bob ran home (question 1)"] * 5
    assert second[4] == "Bob ran home (choice 4 1)"
    first, second = row("socialiqa")
    assert second[2] == "Bob ran home (question 1) Bob ran home (answerC 1)"
    assert row("boolq") == (["Bob ran home (passage 1)"], ["Bob ran home (question 1)"])


def test_a_pinned_commit_does_not_move_with_its_branch(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    publish(hub, "cb", monkeypatch, commit="f" * 40, train=7)
    hub.refs[("aps/super_glue", "main")] = "f" * 40
    monkeypatch.setitem(
        PAPER,
        "cb",
        dataclasses.replace(PAPER["cb"], hub=dataclasses.replace(PAPER["cb"].hub, rows=ROWS)),
    )
    assert len(get("cb")["train"]) == 40


def test_a_named_ref_that_moved_is_noticed_or_does_not_matter(hub, monkeypatch):
    publish(hub, "sick", monkeypatch)
    before = get("sick")
    hub.refs[("RobZamp/sick", "refs/convert/parquet")] = "d" * 40
    swapped = table("sick", 40)
    text = swapped.schema.metadata[b"huggingface"].replace(
        b'"entailment", "neutral"', b'"neutral", "entailment"'
    )
    for split in ROWS:
        path = file_of(hub, "sick", split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            swapped.slice(0, ROWS[split]).replace_schema_metadata({"huggingface": text}), path
        )
    assert get("sick") == before  # frozen: it stays what it was
    for path in sorted((find_root() / "data" / "hub").rglob("*.*")):
        path.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(find_root() / "other-cache"))
    fails_with("sick", "neutral, entailment, contradiction", "another version")


def test_a_revision_that_is_gone(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    commit = hub.folder / "datasets" / PAPER["cb"].hub.id / PAPER["cb"].hub.revision
    commit.rename(commit.with_name("e" * 40))
    fails_with("cb", "aps/super_glue", PAPER["cb"].hub.revision, "no such revision", "Pin another")


def test_a_file_that_is_gone(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    file_of(hub, "cb", "dev").unlink()
    fails_with("cb", "cb/validation-00000-of-00001.parquet", "no such file", "Correct the entry")


def test_a_repository_that_is_gone(hub):
    fails_with("cb", "aps/super_glue", "no such repository")


def test_a_body_cut_short_is_fetched_again(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.faults[file_of(hub, "cb", "train").name] = ["cut"]
    assert len(get("cb")["train"]) == 40


def test_a_body_always_cut_short(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.faults[file_of(hub, "cb", "train").name] = ["cut"] * 100
    fails_with("cb", "aps/super_glue", "cb/train", "download failed", "Try again later")


def test_a_file_that_lies_truncated_on_the_hub(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    path = file_of(hub, "cb", "train")
    path.write_bytes(path.read_bytes()[:-50])
    fails_with("cb", "train-00000-of-00001.parquet", "cut short or damaged", "Fetch it again")


def test_a_changed_byte_is_found_by_its_checksum_and_can_be_mended(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.faults[file_of(hub, "cb", "dev").name] = ["flip"]
    fails_with("cb", "cb/validation", "sha256", "run it again")
    assert len(get("cb")["dev"]) == 20


def test_a_web_page_instead_of_the_file(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    file_of(hub, "cb", "train").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    fails_with("cb", "a web page")


def test_an_error_of_the_server_that_passes(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.faults[file_of(hub, "cb", "train").name] = [500]
    hub.head_faults[file_of(hub, "cb", "dev").name] = [503]
    assert {split: len(rows) for split, rows in get("cb").items()} == ROWS


def test_an_error_of_the_server_that_stays(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.faults[file_of(hub, "cb", "train").name] = [500] * 100
    fails_with("cb", "aps/super_glue", "cb/train", "download failed (", "500")
    assert not (find_root() / "data" / "hub").exists()


def test_a_hub_that_is_down(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    hub.stop()
    fails_with("cb", "aps/super_glue", "cannot be reached", "Go online once")


def test_a_changed_schema(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    path = file_of(hub, "cb", "train")
    pq.write_table(table("cb", 40).rename_columns(["text", "hypothesis", "idx", "label"]), path)
    fails_with("cb", "no column 'premise'", "text, hypothesis, idx, label")


def test_a_changed_type_of_the_label(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    rows = table("cb", 40)
    rows = rows.set_column(3, "label", rows["label"].cast(pa.float64()))
    pq.write_table(rows, file_of(hub, "cb", "train"))
    fails_with("cb", "'label' is double", "integers")


def test_another_number_of_rows_leaves_what_was_there(hub, monkeypatch, backbone):
    publish(hub, "cb", monkeypatch)
    prepare("cb", config("cb", backbone))
    prepared = find_root() / "data" / "prepared" / "tiny" / "cb" / "info.json"
    before = prepared.read_bytes()
    moved = dataclasses.replace(PAPER["cb"].hub, revision="a" * 40)
    monkeypatch.setitem(PAPER, "cb", dataclasses.replace(PAPER["cb"], hub=moved))
    publish(hub, "cb", monkeypatch)
    pq.write_table(table("cb", 41), file_of(hub, "cb", "train"))
    with pytest.raises(TaskError, match=r"41 train rows, the official split has 40"):
        prepare("cb", config("cb", backbone))
    assert prepared.read_bytes() == before
    record = json.loads((find_root() / "data/hub/aps/super_glue/cb/SOURCE.json").read_text())
    assert record["revision"] == "3de24cf8022e94f4ee4b9d55a6f539891524d646"


def test_info_says_which_data_it_was(hub, monkeypatch, backbone):
    publish(hub, "sick", monkeypatch)
    prepare("sick", config("sick", backbone))
    text = (find_root() / "data/prepared/tiny/sick/info.json").read_text()
    info = json.loads(text)
    assert (info["source"], info["revision"]) == ("hub", "refs/convert/parquet")
    assert info["commit"] == "c" * 40
    assert info["raw"]["dev"]["sha256"] == file_sha256(file_of(hub, "sick", "dev"))
    assert info["official_split"] == {"train": True, "dev": True}
    assert str(find_root()) not in text and str(backbone.parent) not in text


def test_what_was_frozen_serves_as_a_mirror(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    rows = get("cb")
    hub.stop()
    mirror = parse_config(params("none", {"cb": {}}, mirror="data/hub"))
    spec = task_spec("cb", mirror)
    assert read(spec, locate(spec, mirror)) == rows


def test_a_frozen_file_that_was_damaged_is_fetched_again(hub, monkeypatch):
    publish(hub, "cb", monkeypatch)
    rows = get("cb")
    frozen = find_root() / "data/hub/aps/super_glue/cb/train.parquet"
    frozen.write_bytes(b"<html>")
    assert get("cb") == rows


def test_a_task_of_ones_own_from_a_repository(hub):
    folder = hub.folder / "datasets" / "me" / "mine" / ("b" * 40)
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"text": f"row {i}", "mood": "good" if i % 2 else "bad"}) for i in range(20)
    ]
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    own = {"hub": "me/mine", "revision": "b" * 40, "train": "all.jsonl", "text": ["text"]}
    own |= {"label": "mood", "labels": ["bad", "good"]}
    settings = config("mine", own=own)
    spec = task_spec("mine", settings)
    rows = read(spec, locate(spec, settings))
    hub.stop()
    assert read(spec, locate(spec, settings)) == rows
    assert rows["train"][3] == {"id": "all/3", "first": ["row 3"], "second": [], "label": 1}


def test_a_download_that_stops_half_way_is_tried_thrice(hub, monkeypatch):
    tries = []

    def broken(*arguments: object, **options: object) -> Path:
        tries.append(options["local_only"])
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(download, "_download", broken)
    fails_with("cb", "connection reset")
    assert tries == [True, False, False, False]


def serve_backbone(hub: HubServer, backbone: Path) -> BackboneConfig:
    folder = hub.folder / "models" / "me" / "tiny" / ("a" * 40)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(backbone)
    return BackboneConfig("me/tiny", "a" * 40, file_sha256(backbone / "model.safetensors"))


def test_a_backbone_is_fetched_once_and_loads(hub, backbone):
    from transformers import AutoModel, AutoTokenizer

    named = serve_backbone(hub, backbone)
    folder, digest = resolve_backbone(named)
    assert digest == named.sha256
    asked = len(hub.requests)
    hub.stop()
    assert resolve_backbone(named) == (folder, digest)
    assert len(hub.requests) == asked
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
    assert AutoModel.from_pretrained(folder).config.hidden_size == 8


def test_a_backbone_of_another_checksum(hub, backbone):
    named = dataclasses.replace(serve_backbone(hub, backbone), sha256="0" * 64)
    with pytest.raises(BackboneError, match=r"backbone\.sha256"):
        resolve_backbone(named)


def test_the_command_in_a_process_of_its_own(hub, monkeypatch, backbone, tmp_path):
    """Nothing patched but where the hub is: first with it, then without it."""
    import yaml

    folder = hub.folder / "datasets" / "me" / "mine" / ("b" * 40)
    folder.mkdir(parents=True)
    pq.write_table(table("cb", 30), folder / "rows.parquet")
    serve_backbone(hub, backbone)
    own = {"hub": "me/mine", "revision": "b" * 40, "train": "rows.parquet"}
    own |= {"text": ["premise", "hypothesis"], "label": "label", "labels": ["0", "1", "2"]}
    values = params("me/tiny", {"mine": {"own": own}}, source="hub")
    values["backbone"]["revision"] = "a" * 40
    (find_root() / "params.yaml").write_text(yaml.safe_dump(values))
    environment = os.environ | dict.fromkeys(PLAIN, "1")
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    environment["PYTHONPATH"] = str(Path(download.__file__).parents[1])

    def command() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "adapterfusion.data", "prepare", "mine"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mine: prepared, train 24, dev 6 rows, source own" in command()
    hub.stop()
    assert "mine: unchanged" in command()


def test_the_papers_profile_runs_from_the_hub_to_its_claims(hub, monkeypatch, backbone):
    """profiles/paper.yaml, with a tiny backbone and few rows in place of the real ones."""
    for task in SCHEMAS:
        publish(hub, task, monkeypatch)
    named = serve_backbone(hub, backbone)
    root = Path(__file__).parents[1]
    values = yaml.safe_load((root / "profiles" / "paper.yaml").read_text())
    values["backbone"] = dataclasses.asdict(named)
    values["adapter"]["reduction"] = 4
    for task in values["tasks"].values():
        task |= {"seeds": [1], "max_length": 48}
    for recipe in values["recipes"].values():
        recipe |= {"epochs": 1, "patience": 1}
    study = parse_config(values)
    for task in study.tasks:
        prepare(task, study)
    hub.stop()  # from here on nothing is fetched

    train_all(study)
    records = [r for name in study.methods for r in runs.run(study, name)]
    for name in study.controls:
        assert {r["task"] for r in runs.run(study, name)} == set(study.control_targets)
    rows = findings.write(study, records)["rows"]
    assert {r["method"] for r in rows} == set(METHODS)
    assert {r["task"] for r in rows} == set(PAPER) - {"argument"}
    assert "Absent: argument" in tables.read_main_table(study)
    shutil.copytree(root / "data" / "reference", find_root() / "data" / "reference")
    verdicts = [c["verdict"] for c in claims.write(study, records)["claims"]]
    assert len(verdicts) >= 12 and set(verdicts) != {"not tested"}
