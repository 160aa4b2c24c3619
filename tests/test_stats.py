"""Bootstrap intervals against cases that can be worked by hand or have a formula."""

import numpy as np
import pytest

from adapterfusion.stats import Interval, bootstrap


def random_difference(seeds: int, rows: int, shares=(0.1, 0.7, 0.2), seed: int = 0) -> np.ndarray:
    """-1, 0 and 1 with these shares."""
    return np.random.default_rng(seed).choice([-1, 0, 1], p=shares, size=(seeds, rows))


def test_one_seed_and_many_rows_gives_the_normal_interval():
    difference = random_difference(1, 2000)
    error = 100 * difference.std() / np.sqrt(2000)
    interval = bootstrap([difference])
    assert interval.mean == pytest.approx(100 * difference.mean(), abs=1e-9)
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.15 * error)
    assert interval.verdict == "higher"


def test_one_row_and_many_seeds_gives_the_normal_interval():
    difference = random_difference(2000, 1)
    error = 100 * difference.std() / np.sqrt(2000)
    interval = bootstrap([difference])
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.15 * error)


def test_variances_of_seeds_and_rows_add_up():
    """Additive effects: the variance of the mean is the sum of both sources' variances."""
    rng = np.random.default_rng(0)
    of_seed, of_row = rng.normal(0, 0.3, (60, 1)), rng.normal(0, 2, (1, 900))
    difference = of_seed + of_row
    error = 100 * np.sqrt(of_seed.var() / 60 + of_row.var() / 900)
    interval = bootstrap([difference])
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(error, rel=0.08)
    rows_alone = 100 * np.sqrt(of_row.var() / 900)
    assert error > 1.1 * rows_alone  # leaving out either source would show


def test_two_seeds_by_hand():
    """Two seeds of +1 and 0 on one row: means of two draws are 0, 1/2 and 1 with 1:2:1."""
    interval = bootstrap([np.array([[1], [0]])])
    assert (interval.mean, interval.low, interval.high) == (50, 0, 100)
    assert interval.verdict == "not distinguishable"


def test_no_difference_at_all():
    interval = bootstrap([np.zeros((3, 50), dtype=int)])
    assert interval == Interval(0, 0, 0)
    assert interval.verdict == "not distinguishable"


@pytest.mark.parametrize(("value", "verdict"), [(1, "higher"), (-1, "lower")])
@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (5, 1), (5, 20)])
def test_the_same_difference_everywhere_has_no_spread(shape, value, verdict):
    interval = bootstrap([np.full(shape, value)])
    expected = (100 * value,) * 3
    assert (interval.mean, interval.low, interval.high) == pytest.approx(expected)
    assert interval.verdict == verdict


def test_tasks_count_equally_whatever_their_size():
    small, large = np.ones((1, 4)), np.zeros((3, 400))
    assert bootstrap([small, large]).mean == pytest.approx(50)
    with_spread = [random_difference(1, 50), random_difference(1, 1500, seed=1)]
    interval = bootstrap(with_spread)
    variances = [(100 * d.std()) ** 2 / d.size for d in with_spread]
    width = 2 * 1.96 * np.sqrt(sum(variances)) / 2
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)
    assert interval.mean == pytest.approx(50 * (with_spread[0].mean() + with_spread[1].mean()))


def test_swapping_the_methods_turns_the_interval_round():
    difference = random_difference(4, 60)
    there, back = bootstrap([difference]), bootstrap([-difference])
    mirrored = (-there.mean, -there.high, -there.low)
    assert (back.mean, back.low, back.high) == pytest.approx(mirrored)


def test_interval_repeats_itself_and_covers_the_mean():
    difference = random_difference(3, 80)
    interval = bootstrap([difference])
    assert interval == bootstrap([difference])
    assert interval.low < interval.mean < interval.high


def test_interval_as_text():
    assert str(Interval(1.234, -0.5, 3)) == "+1.23 [-0.50, +3.00]"
