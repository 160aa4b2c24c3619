"""How much of each dev set stands, nearly word for word, in the training sets it is measured after.

A fusion mixes adapters from many tasks, so the training text of every source matters for every
target. Two texts are near-duplicates where their sets of word trigrams have a Jaccard similarity of
at least THRESHOLD. MinHash finds the candidates, and each is then counted exactly, so no finding is
an estimate; texts of fewer than MIN_WORDS words say too little to count.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH

from adapterfusion.catalogue import unknown_task
from adapterfusion.config import Config
from adapterfusion.sources import known_tasks, locate, read
from adapterfusion.tasks import Example, Split, TaskError

THRESHOLD = 0.8
CANDIDATES = 0.7  # MinHash looks a little further, so that few are missed
PERMUTATIONS = 64
MIN_WORDS = 5
_WORD = re.compile(r"\w+")

Rows = dict[Split, list[Example]]
Place = tuple[str, int]  # a target and a row of its dev set


def trigrams(text: str) -> np.ndarray:
    """Sorted hashes of a text's word trigrams, each once; empty for a short text."""
    words = _WORD.findall(text.lower())
    if len(words) < MIN_WORDS:
        return np.empty(0, dtype=np.uint32)
    grams = zip(words, words[1:], words[2:], strict=False)
    return np.unique(np.array([zlib.crc32(" ".join(g).encode()) for g in grams], dtype=np.uint32))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets of trigrams."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def segments(example: Example) -> set[str]:
    """The texts of a row, each once."""
    return {*example["first"], *example["second"]}


def whole(example: Example) -> set[str]:
    """All of a row as one text."""
    return {" ".join(dict.fromkeys([*example["first"], *example["second"]]))}


def _identity(value: int) -> int:
    return int(value)


class NearDuplicates:
    """Texts to look for, each with the places where it stands."""

    def __init__(self, texts: Iterable[tuple[str, Place]]):
        places: dict[str, set[Place]] = defaultdict(set)
        for text, place in texts:
            places[text].add(place)
        self._empty = MinHash(PERMUTATIONS, seed=1, hashfunc=_identity)
        self._lsh = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
        self._known: list[tuple[np.ndarray, set[Place]]] = []
        for text, where in places.items():
            grams = trigrams(text)
            if len(grams):
                self._lsh.insert(len(self._known), self._signature(grams))
                self._known.append((grams, where))

    def _signature(self, grams: np.ndarray) -> MinHash:
        signature = self._empty.copy()
        signature.update_batch(grams)
        return signature

    def find(self, texts: set[str]) -> Iterator[Place]:
        """The places that hold a near-duplicate of one of `texts`; a place may come several times."""
        for text in texts:
            grams = trigrams(text)
            if len(grams):
                for key in self._lsh.query(self._signature(grams)):
                    known, places = self._known[key]
                    if similarity(known, grams) >= THRESHOLD:
                        yield from places


def compare(sources: dict[str, Rows], targets: dict[str, Rows]) -> pd.DataFrame:
    """Near-duplicates between each source's train and each target's dev.

    Returns:
        one row per (target, source), in the given order: dev_rows; `text_rows`, the dev rows of
        which some segment stands in the source's training set; `whole_rows`, those that stand
        there as a whole; and both as shares. Last, for each target, the source `any`.
    """
    found: dict[str, dict[str, set[Place]]] = {}
    for measure, texts_of in (("text_rows", segments), ("whole_rows", whole)):
        wanted = NearDuplicates(
            (text, (target, i))
            for target, rows in targets.items()
            for i, example in enumerate(rows["dev"])
            for text in texts_of(example)
        )
        found[measure] = {
            source: set(wanted.find(set().union(*map(texts_of, rows["train"]))))
            for source, rows in sources.items()
        }
        found[measure]["any"] = set().union(*found[measure].values())
    records = []
    for target, rows in targets.items():
        for source in [*sources, "any"]:
            record = {"target": target, "source": source, "dev_rows": len(rows["dev"])}
            for measure, places in found.items():
                n = sum(place[0] == target for place in places[source])
                record[measure] = n
                record[measure.replace("rows", "share")] = n / len(rows["dev"])
            records.append(record)
    return pd.DataFrame(records)


def clean_share(overlap: pd.DataFrame) -> pd.DataFrame:
    """For each target, the share of its dev rows that stand in no training set.

    Returns:
        by target: clean_text (no segment of the row does) and clean_whole (the row as a whole
        does not; it may share a premise, a passage or a picture's caption).
    """
    rows = overlap[overlap["source"] == "any"].set_index("target")
    shares = {"clean_text": 1 - rows["text_share"], "clean_whole": 1 - rows["whole_share"]}
    return pd.DataFrame(shares)


def between_tasks(overlap: pd.DataFrame) -> str:
    """Whether a gain of one task from another may be text that both have: a sentence."""
    other = overlap.query("source != 'any' and source != target and text_rows > 0")
    pairs = [f"{r.text_rows} of {r.target} in {r.source}" for r in other.itertuples()]
    if not pairs:
        return "No dev row shares a text with the training set of another task."
    return f"Dev rows that share a text with another task's training set: {', '.join(pairs)}."


def audit(
    config: Config, tasks: Iterable[str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """`compare` on all rows of the tasks, whatever the caps of params.yaml.

    tasks: each as source and as target; by default the configured sources and targets.

    Returns:
        the table, and for each task whose data is absent the reason.
    """
    sources, targets = (tasks, tasks) if tasks is not None else (config.sources, config.targets)
    known, rows, absent = known_tasks(config), {}, {}
    for name in dict.fromkeys([*sources, *targets]):
        try:
            if name not in known:
                raise unknown_task(name, known)
            rows[name] = read(known[name], locate(known[name], config))
        except TaskError as error:
            absent[name] = str(error)
    return compare(
        {name: rows[name] for name in sources if name in rows},
        {name: rows[name] for name in targets if "dev" in rows.get(name, {})},
    ), absent
