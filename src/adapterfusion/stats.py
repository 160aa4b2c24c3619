"""How sure a difference is: bootstrap intervals that resample what was sampled, seeds and dev rows.

A difference is an array [seeds, rows]: for each seed and dev row, whether method A was right minus
whether method B was right (1, 0 or -1). Pairing by seed and row takes out what both share.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean difference in points, with its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """higher, lower, or not distinguishable (the interval holds zero)."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not distinguishable"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def _resampled_means(difference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of RESAMPLES draws of seeds and rows, with replacement: [RESAMPLES]"""
    seeds, rows = difference.shape
    # counts instead of indices: a mean of resampled rows is a product with how often each was drawn
    row_weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) / rows
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return np.einsum("bs,sr,br->b", seed_weights, difference, row_weights, optimize=True)


def bootstrap(differences: list[np.ndarray]) -> Interval:
    """The mean over tasks of the mean difference, resampled within each task (stratified).

    With a single task this is that task's interval. Tasks themselves are not resampled: the
    interval speaks of these tasks, not of others.
    """
    rng = np.random.default_rng(0)
    draws = np.mean([_resampled_means(d, rng) for d in differences], axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = np.mean([d.mean() for d in differences])
    return Interval(100 * float(mean), 100 * float(low), 100 * float(high))
