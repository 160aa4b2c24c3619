"""Statistics against cases that can be worked by hand or have a formula."""

import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from adapterfusion import stats
from adapterfusion.stats import (
    Interval,
    bootstrap,
    holm,
    paired_p,
    ranks,
    seed_spread,
    wilcoxon,
)


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


def test_chunks_change_no_number(monkeypatch):
    """Against the formula in one piece, with the same stream of random numbers."""
    difference = random_difference(3, 70).astype(float)
    rng = np.random.default_rng(7)
    size = stats.RESAMPLES
    rows = rng.multinomial(70, np.full(70, 1 / 70), size=size) / 70
    seeds = rng.multinomial(3, np.full(3, 1 / 3), size=size) / 3
    expected = np.einsum("bs,sr,br->b", seeds, difference, rows)
    for chunk in (1, 70 * 33, 2**20):  # one draw at a time, 33, all at once
        monkeypatch.setattr(stats, "CHUNK", chunk)
        draws = stats._resampled_means(difference, np.random.default_rng(7))
        np.testing.assert_allclose(draws, expected, atol=1e-12)


def test_a_large_dev_set_needs_little_memory(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    difference = random_difference(1, 40_000)  # 200 draws of 40,000 rows would be 64 MB
    tracemalloc.start()
    bootstrap([difference])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6


def test_paired_p_by_hand():
    """Two seeds, three rows, a mean of 1/2.

    Squares: seeds 3 (1/36 + 1/36) = 1/6, rows 2 (0 + 1/4 + 1/4) = 1, rest 3/2 - 1/6 - 1 = 1/3. With
    1, 2 and 2 degrees of freedom the mean squares are 1/6, 1/2, 1/6, so that the mean's variance is
    (1/6 + 1/2 - 1/6) / 6 = 1/12 and t = sqrt(3); its degrees of freedom are
    (1/2)^2 / ((1/6)^2 / 1 + (1/2)^2 / 2 + (1/6)^2 / 2) = 3/2.
    """
    p = paired_p(np.array([[1, 0, 1], [0, 0, 1]]))
    assert p == pytest.approx(2 * scipy_stats.t.sf(math.sqrt(3), 1.5), abs=1e-12)


def test_paired_p_of_two_seeds_and_one_row():
    """t = 1 with one degree of freedom: a Cauchy variable lies beyond 1 half of the time."""
    assert paired_p(np.array([[1], [0]])) == pytest.approx(0.5)


def test_paired_p_of_one_seed_is_the_t_test_over_rows():
    difference = random_difference(1, 120)
    assert paired_p(difference) == pytest.approx(scipy_stats.ttest_1samp(difference[0], 0).pvalue)


@pytest.mark.parametrize(
    ("difference", "p"),
    [(np.ones((1, 1)), 1), (np.zeros((3, 20)), 1), (np.ones((3, 20)), 0), (-np.ones((1, 20)), 0)],
)
def test_paired_p_where_nothing_varies(difference, p):
    assert paired_p(difference) == p


def test_paired_p_does_not_depend_on_order_or_direction():
    difference = random_difference(4, 60)
    rng = np.random.default_rng(3)
    shuffled = difference[rng.permutation(4)][:, rng.permutation(60)]
    assert paired_p(shuffled) == pytest.approx(paired_p(difference), rel=1e-9)
    assert paired_p(-difference) == pytest.approx(paired_p(difference), rel=1e-9)


def test_paired_p_keeps_its_level_where_seeds_matter():
    """No difference between the methods, but lucky seeds: a test over rows alone sees one often."""
    rng = np.random.default_rng(0)
    p, p_rows = [], []
    for _ in range(400):
        difference = rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.5, (3, 400))
        p.append(paired_p(difference))
        p_rows.append(scipy_stats.ttest_1samp(difference.mean(axis=0), 0).pvalue)
    assert 0 < np.mean(np.array(p) < 0.05) < 0.08
    assert np.mean(np.array(p_rows) < 0.05) > 0.3


def test_paired_p_sees_a_difference_that_is_there():
    assert paired_p(random_difference(3, 400)) < 0.01  # shares of 0.1 and 0.2: 10 points


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, which rises to 0.06."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_of_none_and_above_one():
    np.testing.assert_allclose(holm([0.2]), [0.2])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert len(holm([])) == 0


def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni():
    p = np.random.default_rng(0).uniform(size=12) ** 2
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(12 * p, 1)).all()
    assert (np.diff(adjusted[p.argsort()]) >= 0).all()
    assert adjusted.min() == pytest.approx(12 * p.min())


def test_wilcoxon_by_hand():
    """Ranks 1 to 6, only the largest negative: W = 6. Subsets of {1..6} with a sum up to 6: 14 of 64."""
    result = wilcoxon([1, 2, 3, 4, 5, -6])
    assert result.p == pytest.approx(2 * 14 / 64)
    assert (result.tasks, result.smallest, result.too_few) == (6, 2 / 64, False)
    assert str(result) == "p = 0.438 over 6 tasks"


def test_wilcoxon_with_ties_and_equal_tasks():
    """Ranks 1.5, 1.5, 3: W = 1.5, and three of eight outcomes go up to it. Zeros are left out."""
    result = wilcoxon([0.1 + 0.2, -0.3, 0.0, 0.7])  # 0.1 + 0.2 is not quite 0.3
    assert result.p == pytest.approx(2 * 3 / 8)
    assert (result.tasks, result.too_few) == (3, True)
    assert str(result) == "p = 0.750 over 3 tasks, too few to reach 0.05"


@pytest.mark.parametrize(("n", "too_few"), [(1, True), (5, True), (6, False), (16, False)])
def test_wilcoxon_when_all_tasks_agree(n, too_few):
    result = wilcoxon([-1.0 - i for i in range(n)])
    assert result.p == pytest.approx(2 / 2**n)
    assert result.smallest == result.p
    assert result.too_few == too_few


def test_wilcoxon_of_no_difference():
    result = wilcoxon([0.0, 0.0])
    assert (result.p, result.tasks, result.too_few) == (1, 0, True)


def test_seed_spread_by_hand():
    """79, 80, 81: deviations -1, 0, 1, variance 2 / 2. Of 400 rows: sqrt(0.8 * 0.2 / 400) = 0.02."""
    spread = seed_spread([79, 80, 81], 400)
    assert (spread.mean, spread.std, spread.seeds) == (80, 1, 3)
    assert spread.binomial_error == pytest.approx(2)
    assert str(spread) == "80.00 ± 1.00 (dev set: ± 2.00)"


def test_one_seed_has_no_spread():
    spread = seed_spread([80], 400)
    assert math.isnan(spread.std)
    assert str(spread) == "80.00 (dev set: ± 2.00)"


def scores_of(table: dict[str, list[float]]) -> pd.DataFrame:
    """method -> score on task 0, 1, ...; None where it was not run."""
    rows = [(m, t, s) for m, v in table.items() for t, s in enumerate(v) if s is not None]
    return pd.DataFrame(rows, columns=["method", "task", "score"])


def test_ranks_by_hand():
    """Ranks on the two tasks: a 1, 2; b 2, 1; c 3, 3. Two draws of two tasks give a 1, 1.5 or 2."""
    table = ranks(scores_of({"c": [1, 1], "a": [3, 2], "b": [2, 3]})).set_index("method")
    assert table.loc["a", ["rank", "low", "high"]].tolist() == [1.5, 1, 2]
    assert table.loc["b", ["rank", "low", "high"]].tolist() == [1.5, 1, 2]
    assert table.loc["c", ["rank", "low", "high"]].tolist() == [3, 3, 3]
    assert (table["tasks"] == 2).all()
    assert table.index[-1] == "c"


def test_ranks_share_ties_average_seeds_and_leave_out_incomplete_tasks():
    frame = scores_of({"a": [0.1 + 0.2, 5, 9], "b": [0.3, 4, None]})
    frame = pd.concat(
        [frame, pd.DataFrame([("a", 1, 1.0)], columns=frame.columns)]
    )  # a: 3 on task 1
    table = ranks(frame).set_index("method")
    assert table["rank"].to_dict() == {"a": 1.75, "b": 1.25}  # 1.5 and 2; 1.5 and 1
    assert (table["tasks"] == 2).all()


def test_ranks_sum_to_the_same_whatever_the_scores():
    rng = np.random.default_rng(0)
    table = ranks(scores_of({m: rng.normal(size=9).tolist() for m in "abcde"}))
    assert table["rank"].sum() == pytest.approx(1 + 2 + 3 + 4 + 5)
    assert (table["low"] <= table["rank"]).all()
    assert (table["rank"] <= table["high"]).all()
    assert (table["low"] < table["high"]).all()
    assert table["rank"].is_monotonic_increasing
