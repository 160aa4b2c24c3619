"""Batches: each row once, an order that seed and epoch alone decide, little padding, and shapes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterfusion.batches import (
    Split,
    collate,
    evaluation_batches,
    load_split,
    padding_share,
    training_batches,
)

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=400).map(np.array)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Padding of one task's batches."""
    return padding_share({"one": lengths}, [("one", rows) for rows in batches])


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@quick
@given(lengths_of, st.integers(1, 40), st.integers(0, 10**6), st.integers(0, 50))
def test_training_batches_hold_every_row_once(lengths, batch_size, seed, epoch):
    batches = training_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == -(-len(lengths) // batch_size)


@quick
@given(lengths_of, st.integers(1, 40))
def test_evaluation_batches_hold_every_row_once_shortest_first(lengths, batch_size):
    batches = list(evaluation_batches(lengths, batch_size))
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert np.all(np.diff(lengths[rows]) >= 0)


@quick
@given(lengths_of, st.integers(1, 8), st.integers(0, 1000), st.integers(0, 50))
def test_order_is_a_function_of_seed_and_epoch(lengths, batch_size, seed, epoch):
    first = training_batches(lengths, batch_size, seed, epoch)
    np.random.seed(epoch)  # noqa: NPY002 - the global state must not matter
    np.random.permutation(7)  # noqa: NPY002
    assert same(first, training_batches(lengths, batch_size, seed, epoch))


def test_order_changes_with_seed_and_with_epoch():
    lengths = np.random.default_rng(0).integers(5, 60, 3000)
    base = training_batches(lengths, 16, 1, 0)
    others = [training_batches(lengths, 16, *pair) for pair in ((2, 0), (1, 1), (0, 1))]
    assert not any(same(base, other) for other in others)
    assert not same(others[1], others[2])
    neighbours = [{frozenset(batch.tolist()) for batch in b} for b in (base, others[1])]
    assert not neighbours[0] & neighbours[1]  # other rows together, not only another order


def test_batches_do_not_come_by_length():
    lengths = np.random.default_rng(0).integers(1, 100, 512)
    widths = [lengths[batch].max() for batch in training_batches(lengths, 16, 0, 0)]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.5


@quick
@given(st.integers(0, 1000), st.integers(4, 32), st.integers(200, 2000))
def test_bucketing_pads_much_less_than_chance(seed, batch_size, rows):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 100, rows)
    order = rng.permutation(rows)
    shuffled = [order[i : i + batch_size] for i in range(0, rows, batch_size)]
    bucketed = share(lengths, training_batches(lengths, batch_size, seed, 0))
    assert 0 <= bucketed < 0.6 * share(lengths, shuffled)


def test_padding_share_of_a_case_by_hand():
    lengths = np.array([2, 4, 3, 3])
    assert share(lengths, [np.array([0, 1]), np.array([2, 3])]) == pytest.approx(2 / 14)
    assert share(lengths, [np.array([i]) for i in range(4)]) == 0
    both = [("a", np.array([0, 1])), ("b", np.array([0]))]  # 6 of 8 used, and 5 of 5
    assert padding_share({"a": lengths, "b": np.array([5])}, both) == pytest.approx(2 / 13)


def make_split(rows: int, choices: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    ids = [[rng.integers(5, 90, rng.integers(1, 9)) for _ in range(choices)] for _ in range(rows)]
    kinds = [[rng.integers(0, 2, len(s)) for s in row] for row in ids]
    longest = np.array([max(map(len, row)) for row in ids])
    return Split([str(i) for i in range(rows)], rng.integers(0, 3, rows), ids, kinds, longest)


@quick
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_collate_pads_each_sequence_and_nothing_else(rows, choices, seed):
    split = make_split(rows, choices, seed)
    chosen = np.random.default_rng(seed).permutation(rows)[: max(1, rows // 2)]
    batch = collate(split, chosen, pad_id=99)
    sequences = [(r, c) for r in chosen for c in range(choices)]
    width = max(len(split.input_ids[r][c]) for r, c in sequences)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[name].shape == (len(chosen) * choices, width)
        assert batch[name].dtype == torch.int64
    for i, (r, c) in enumerate(sequences):
        n = len(split.input_ids[r][c])
        assert batch["input_ids"][i, :n].tolist() == split.input_ids[r][c].tolist()
        assert batch["token_type_ids"][i, :n].tolist() == split.token_type_ids[r][c].tolist()
        assert batch["input_ids"][i, n:].tolist() == [99] * (width - n)
        assert batch["token_type_ids"][i, n:].tolist() == [0] * (width - n)
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (width - n)
    assert batch["labels"].tolist() == split.labels[chosen].tolist()


@quick
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000))
def test_a_sample_holds_so_many_whole_rows_in_their_order(rows, n, seed):
    split = make_split(rows, 2)
    cut = split.sample(n, seed)
    places = [int(i) for i in cut.ids]
    assert len(cut) == min(n, rows) and places == sorted(set(places))
    assert cut.labels.tolist() == split.labels[places].tolist()
    assert cut.lengths.tolist() == split.lengths[places].tolist()
    for name in ("input_ids", "token_type_ids"):
        assert all(getattr(cut, name)[i] is getattr(split, name)[p] for i, p in enumerate(places))
    assert split.sample(n, seed).ids == cut.ids


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
@pytest.mark.parametrize("choices", [1, 3])
def test_a_split_is_read_as_it_was_written(tmp_path, choices, row_group_size):
    split = make_split(7, choices)
    columns = {
        "id": split.ids,
        "label": split.labels,
        "input_ids": [[s.tolist() for s in row] for row in split.input_ids],
        "token_type_ids": [[s.tolist() for s in row] for row in split.token_type_ids],
        "another": ["x"] * 7,
    }
    path = tmp_path / "dev.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    read = load_split(path)
    assert len(read) == 7
    assert read.ids == split.ids
    assert read.labels.tolist() == split.labels.tolist()
    assert read.lengths.tolist() == split.lengths.tolist()
    for name in ("input_ids", "token_type_ids"):
        ours, theirs = getattr(read, name), getattr(split, name)
        assert [[s.tolist() for s in row] for row in ours] == [
            [s.tolist() for s in row] for row in theirs
        ]


@pytest.mark.parametrize("content", [None, "text", "other columns"])
def test_a_file_that_is_no_split_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "dev.parquet"
    if content == "text":
        path.write_text("not parquet")
    elif content:
        pq.write_table(pa.table({"id": ["a"], "label": [0]}), path)
    with pytest.raises(ValueError, match=r"(?s)dev\.parquet: not a prepared split.*Prepare"):
        load_split(path)
