"""The overlap audit against cases one can count by hand, and against plain pairwise comparison."""

import random

import pytest
from tiny import params, project

from adapterfusion.config import parse_config
from adapterfusion.overlap import (
    THRESHOLD,
    NearDuplicates,
    audit,
    between_tasks,
    clean_share,
    compare,
    similarity,
    trigrams,
)

LONG = "the old boat by the harbour was painted blue again in early spring"


def row(*segments: str, label: int = 0) -> dict:
    return {"id": "x", "first": [segments[0]], "second": list(segments[1:]), "label": label}


def cell(table, target: str, source: str, column: str):
    found = table[(table["target"] == target) & (table["source"] == source)]
    return found[column].item()


def test_counts_by_hand():
    one = {
        "train": [row(LONG), row("nobody expected the tall baker to sing so well")],
        "dev": [row("a quiet morning with tea and a long letter to write")],
    }
    two = {
        "train": [row("what is it made of really then", "the answer nobody has given us so far")],
        "dev": [
            row(
                LONG.upper() + "!", "the answer nobody has given us so far"
            ),  # both, from two tasks
            row("Is it true?", "the answer nobody has given us so far"),  # a segment, not the whole
            row("what is it made of really then", "the answer nobody has given us so far"),
            row("some other matter that no one wrote about before today", "yes"),
        ],
    }
    table = compare({"one": one, "two": two}, {"one": one, "two": two})
    assert list(zip(table["target"], table["source"], strict=True)) == [
        *(("one", source) for source in ("one", "two", "any")),
        *(("two", source) for source in ("one", "two", "any")),
    ]
    assert cell(table, "two", "one", "text_rows") == 1
    assert cell(table, "two", "two", "text_rows") == 3
    assert cell(table, "two", "two", "whole_rows") == 1
    assert cell(table, "two", "any", "text_share") == 0.75
    assert cell(table, "one", "any", "text_rows") == 0
    assert between_tasks(table).endswith("another task's training set: 1 of two in one.")
    assert between_tasks(table[table["target"] == "one"]).startswith("No dev row shares a text")
    assert clean_share(table).loc["two"].to_dict() == {"clean_text": 0.25, "clean_whole": 0.75}


def test_choices_count_as_one_row():
    train = {"train": [{"id": "x", "first": [LONG] * 3, "second": ["a", "b", "c"], "label": 0}]}
    dev = {"dev": [{"id": "y", "first": [LONG] * 3, "second": ["d", "e", "f"], "label": 0}]}
    table = compare({"s": train}, {"t": dev})
    assert cell(table, "t", "s", "text_rows") == 1 and cell(table, "t", "s", "dev_rows") == 1


def test_short_texts_say_too_little():
    assert len(trigrams("no one said that")) == 0
    assert len(trigrams("No one, said that... then")) == 3


def test_finds_what_pairwise_comparison_finds():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(60)]
    changed = []
    for text in texts:  # from untouched to a third of the words replaced
        parts = text.split()
        for i in rng.sample(range(40), rng.randrange(14)):
            parts[i] = rng.choice(words)
        changed.append(" ".join(parts))
    index = NearDuplicates((text, ("t", i)) for i, text in enumerate(texts))
    grams = [trigrams(text) for text in texts]
    found = expected = 0
    for i, text in enumerate(changed):
        near = {("t", k) for k, g in enumerate(grams) if similarity(g, trigrams(text)) >= THRESHOLD}
        assert set(index.find({text})) <= near <= {("t", i)}
        found += len(set(index.find({text})))
        expected += len(near)
    assert 10 < expected < 50
    assert found == expected


def test_absent_tasks_are_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project", {}))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("ADAPTERFUSION_MIRROR", raising=False)
    lines = [f"{LONG} number {i} of all\t{'ab'[i % 2]}" for i in range(10)]
    (tmp_path / "project" / "t.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    own = {"train": "t.tsv", "dev": "t.tsv", "text": ["text"], "label": "label"}
    tasks = {"mine": {"own": own | {"labels": ["a", "b"]}}, "argument": {}}
    table, absent = audit(parse_config(params("none", tasks)))
    assert list(absent) == ["argument"] and "import-argument" in absent["argument"]
    assert cell(table, "mine", "mine", "whole_share") == pytest.approx(1.0)
