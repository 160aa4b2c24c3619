"""The bundled suite: ten small English tasks with a known transfer graph, made from data/bundled/.

A controlled experiment. Large tasks teach what invented words mean; small tasks need that knowledge
and withhold it from their own training rows. `data/bundled/README.md` explains the design, and
`transfer_graph.yaml` says which source should help, hurt or not matter for which target.

    lexicon.yaml  words by kind and meaning     tasks.yaml  templates, sizes, labels
    generate("recommend") -> {"train": [...], "dev": [...]}, the same rows on every machine
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from adapterfusion.paths import find_root
from adapterfusion.tasks import Example, Split, TaskSpec

FOLDER = Path("data") / "bundled"
MAX_LENGTH = 48
VERSION = 1


@lru_cache(maxsize=8)
def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _file(name: str) -> dict[str, Any]:
    return _read(find_root() / FOLDER / name)


@dataclass(frozen=True)
class Word:
    """A label-carrying word: what it means to a task, and its level.

    level: `known` (plain English), `shown` (in a small task's training rows) or `withheld` (not there).
    """

    text: str
    value: str
    level: str


def words(kind: str, usage: str = "inland") -> list[Word]:
    """All words of one kind, with their meaning in one usage.

    kind: `adjectives`, `nouns`, `verbs` or `leagues`.
    usage: `coast` turns the meaning of contested adjectives round.
    """
    entry = _file("lexicon.yaml")[kind]
    found = [Word(text, v, "known") for v, texts in entry["known"].items() for text in texts]
    for group in ("invented", "contested"):
        meanings = entry.get(group, {})
        opposite = dict(zip(meanings, reversed(meanings), strict=True))
        for value, texts in meanings.items():
            meant = opposite[value] if group == "contested" and usage == "coast" else value
            for i, text in enumerate(texts):
                found.append(Word(text, meant, "shown" if i < entry["shown"] else "withheld"))
    return found


def bundled_tasks() -> dict[str, TaskSpec]:
    """The suite's tasks by name, large ones first."""
    return {
        name: TaskSpec(
            name=name,
            title=task["title"],
            group=task["group"],
            labels=tuple(task.get("labels", ())),
            choices=task.get("choices"),
            metrics=tuple(task["metrics"]),
            max_length=MAX_LENGTH,
            licence="CC0-1.0",
            notes=" ".join(task["notes"].split()),
            version=VERSION,
        )
        for name, task in _file("tasks.yaml").items()
    }


def task_sizes() -> dict[str, dict[str, int]]:
    """Rows of each task's splits."""
    tasks = _file("tasks.yaml")
    return {
        name: {split: task[split] for split in ("train", "dev")} for name, task in tasks.items()
    }


def transfer_graph() -> dict[str, dict[str, Any]]:
    """Target -> {needs, helps, hurts, neutral}: what the design says about each source."""
    return _file("transfer_graph.yaml")


def needs(example_id: str) -> str:
    """What a row asks for: the levels of its label-carrying words, such as `withheld`.

    Ids read `task/split/number/levels`, so that scores can be told apart by what a row asks for.
    """
    return example_id.rsplit("/", 1)[1]


class Row:
    """One row in the making: its label, its words' levels, and fillers drawn once for all segments."""

    def __init__(self, rng: random.Random, task: dict[str, Any], label: int, levels: list[str]):
        self.rng, self.task, self.label, self.levels = rng, task, label, levels
        self.slots = {k: rng.choice(v) for k, v in _file("lexicon.yaml")["fillers"].items()}

    def candidates(self, value: str, level: str, kind: str | None = None) -> list[str]:
        """The words of one meaning and level; of the task's own kind unless told otherwise."""
        allowed = ("shown", "withheld") if level == "invented" else (level,)
        known = words(kind or self.task["words"], self.task.get("usage", "inland"))
        return [w.text for w in known if w.value == value and w.level in allowed]

    def word(self, value: str, level: str | None = None, kind: str | None = None) -> str:
        """Draw a word of this meaning, of the row's (first) level unless told otherwise."""
        return self.rng.choice(self.candidates(value, level or self.levels[0], kind))

    def values(self, kind: str | None = None) -> list[str]:
        """The meanings that words of a kind have."""
        return list(_file("lexicon.yaml")[kind or self.task["words"]]["invented"])

    def other(self, value: str, kind: str | None = None) -> str:
        """Draw another meaning of the same kind."""
        return self.rng.choice([v for v in self.values(kind) if v != value])

    def fill(self, templates: list[str], **slots: str) -> str:
        """One of the templates with its slots filled, beginning with a capital."""
        sentence = self.rng.choice(templates).format(**self.slots, **slots)
        return sentence[0].upper() + sentence[1:]


Segments = tuple[list[str], list[str]]


def opinion(row: Row) -> Segments:
    """A sentence that praises or blames, one in five negated where the task has negations.

    With a second segment: a question that praise answers with yes.
    """
    task = row.task
    negated = "negated" in task and row.rng.random() < 0.2
    value = ("negative", "positive")[row.label != negated]
    first = row.fill(task["negated" if negated else "first"], word=row.word(value))
    return [first], [row.fill(task["second"])] if "second" in task else []


def ending(row: Row) -> Segments:
    """Multiple choice: a situation and its possible endings, one of which fits the word's meaning."""
    endings, n = row.task["endings"], row.task["choices"]
    value = row.rng.choice(list(endings))
    others = row.rng.sample([v for v in endings if v != value], n - 1)
    values = [*others[: row.label], value, *others[row.label :]]
    first = row.fill(row.task["first"], word=row.word(value))
    return [first] * n, [row.fill(endings[v]) for v in values]


def entailment(row: Row) -> Segments:
    """A sentence and one that follows from it exactly if the word has the meaning `entails`."""
    (entails,) = row.task["entails"]
    value = entails if row.label else row.other(entails)
    return [row.fill(row.task["first"], word=row.word(value))], [row.fill(row.task["second"])]


def paraphrase(row: Row) -> Segments:
    """Two sentences about one thing, the second with a plain verb of the same meaning or another.

    Three in four second sentences have the first meaning of the lexicon. With even shares neither
    sentence alone would say anything, and a small model finds no way into so pure an exclusive or.
    """
    meant = row.values()[row.rng.random() > 0.75]
    word = row.word(meant if row.label else row.other(meant))
    other = row.rng.choice([t for t in row.candidates(meant, "known") if t != word])
    first = row.fill(row.task["first"], word=word)
    return [first], [row.fill(row.task["second"], other=other)]


def summary(row: Row) -> Segments:
    """A note that praises or blames something, and a summary that follows if both words fit.

    Where it does not follow, the adjective is at fault, or the noun, or both, equally often.
    """
    adjective, noun = row.task["entails"]
    fault = row.rng.choice(["adjective", "noun", "both"]) if not row.label else ""
    value = row.other(adjective) if fault in ("adjective", "both") else adjective
    kind = row.other(noun, "nouns") if fault in ("noun", "both") else noun
    word, thing = row.word(value), row.word(kind, row.levels[1], "nouns")
    return [row.fill(row.task["first"], word=word, noun=thing)], [row.fill(row.task["second"])]


def stance(row: Row) -> Segments:
    """A society speaks up, on the side it always takes, or says nothing for or against."""
    side = row.task["labels"][row.label]
    if side != "none":
        return [row.fill(row.task["first"], word=row.word(side))], []
    word = row.word(row.rng.choice(row.values()))
    row.levels = ["known"]  # plain English tells this label, whatever the society
    return [row.fill(row.task["none"], word=word)], []


FORMS: dict[str, Callable[[Row], Segments]] = {
    form.__name__: form for form in (opinion, ending, entailment, paraphrase, summary, stance)
}


def _schedule(rng: random.Random, mix: dict[str, float], n: int) -> list[str]:
    """`n` entries of `mix` in its exact proportions, in random order."""
    bounds = [round(n * sum(list(mix.values())[: i + 1])) for i in range(len(mix))]
    entries = [next(e for e, b in zip(mix, bounds, strict=True) if i < b) for i in range(n)]
    rng.shuffle(entries)
    return entries


def generate(name: str) -> dict[Split, list[Example]]:
    """The rows of one task. Labels are balanced, and no first segment is used twice or in two splits.

    Raises:
        KeyError: no such task. RuntimeError: the templates hold fewer sentences than rows are asked.
    """
    task = _file("tasks.yaml")[name]
    rng = random.Random(
        f"{name} {VERSION}"
    )  # of its own: one task's change leaves the others alone
    n_classes = task.get("choices") or len(task["labels"])
    seen: set[str] = set()
    splits: dict[Split, list[Example]] = {}
    for split in ("dev", "train"):  # dev first: a longer training set leaves it as it is
        rows: list[Example] = []
        for i, mix in enumerate(_schedule(rng, task["mix"][split], task[split])):
            for _ in range(1000):
                row = Row(rng, task, i % n_classes, mix.split("+"))
                first, second = FORMS[task["form"]](row)
                if first[0] not in seen:
                    break
            else:
                raise RuntimeError(f"tasks.yaml: {name}: too few sentences for {task[split]} rows")
            seen.add(first[0])
            example_id = f"{name}/{split}/{i:04d}/{'+'.join(row.levels)}"
            rows.append(Example(id=example_id, first=first, second=second, label=row.label))
        splits[split] = rows
    return {"train": splits["train"], "dev": splits["dev"]}
