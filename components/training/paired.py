"""Whether one model ranks the same rows better than another: paired intervals of the difference of two AUCs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.training.metrics import Floats, Integers, checked, midranks


@dataclass(frozen=True)
class Paired:
    """A difference (first less second), its two-sided interval, and the p of "no difference"."""

    difference: float
    low: float
    high: float
    p: float


def delong(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = 0.95
) -> Paired | None:
    """DeLong's interval of AUC(first) - AUC(second) on the same rows, in O(n log n).

    Sun and Xu 2014, "Fast implementation of DeLong's algorithm", algorithm 2: midranks give the structural
    components, whose covariance is that of the AUCs.

    Args:
        labels: 0 or 1, [n].
        first: Finite scores, [n].
        second: Finite scores, [n].
        confidence: Mass of the interval, in (0, 1).

    Returns:
        None where either class has fewer than two rows.
    """
    y, a = checked(labels, first)
    _, b = checked(labels, second)
    positive = y == 1
    if min(positive.sum(), (~positive).sum()) < 2:
        return None
    of_positives, of_negatives = zip(*(_components(scores, positive) for scores in (a, b)), strict=True)
    difference = float(np.mean(of_positives[0]) - np.mean(of_positives[1]))
    variance = sum(float(np.var(x - z, ddof=1)) / len(x) for x, z in (of_positives, of_negatives))
    return _normal(difference, math.sqrt(variance), confidence)


def _components(scores: Floats, positive: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Per positive the share of negatives below it, per negative the share of positives above it; ties half."""
    ranks = midranks(scores)
    above, below = scores[positive], scores[~positive]
    of_positives = (ranks[positive] - midranks(above)) / len(below)
    of_negatives = 1 - (ranks[~positive] - midranks(below)) / len(above)
    return of_positives, of_negatives


def mean_difference(first: Floats, second: Floats, confidence: float = 0.95) -> Paired | None:
    """Interval of the mean of paired differences, such as of two models' log loss by row. None below two rows."""
    if len(first) < 2:
        return None
    differences = first - second
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return _normal(float(differences.mean()), error, confidence)


def _normal(difference: float, error: float, confidence: float) -> Paired:
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    # Without spread the difference is certain: it is nothing, or it is no chance.
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else float(difference == 0)
    return Paired(difference, difference - reach, difference + reach, p)


class _WeightedAuc:
    """AUC of fixed scores under changing whole-number weights of the rows, sorted once; ties counted half."""

    def __init__(self, y: Floats, scores: Floats) -> None:
        self.positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
        self.negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ascending = scores[self.negatives]
        # Positives by score: their look-ups in the cumulated weights then walk forward through memory.
        self.positives = self.positives[np.argsort(scores[self.positives], kind="stable")]
        self.below = np.searchsorted(ascending, scores[self.positives], side="left")
        self.up_to = np.searchsorted(ascending, scores[self.positives], side="right")
        self.tied = bool((self.below != self.up_to).any())

    def __call__(self, weights: Integers) -> float | None:
        """The AUC for weights [n]; None where they leave one class only."""
        cumulated = np.zeros(len(self.negatives) + 1, dtype=np.int64)
        np.cumsum(weights[self.negatives], out=cumulated[1:])
        mine = weights[self.positives]
        pairs = int(mine.sum()) * int(cumulated[-1])
        if not pairs:
            return None
        twice = mine @ cumulated[self.below]
        twice += mine @ cumulated[self.up_to] if self.tied else twice
        return float(twice) / 2 / pairs


def bootstrap(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 1,
    clusters: npt.ArrayLike | None = None,
) -> Paired | None:
    """Percentile interval of AUC(first) - AUC(second) over resamples of the rows, the same for both.

    A resample is how often each row was drawn: the scores are sorted once, and each resample costs a handful of
    linear passes. Memory is that of a few vectors of n.

    Args:
        labels: 0 or 1, [n].
        first: Finite scores, [n].
        second: Finite scores, [n].
        resamples: Number of resamples.
        confidence: Mass of the interval, in (0, 1).
        seed: Of the draws.
        clusters: Codes from 0 on, [n]: whole clusters, such as the rows of a user, are drawn instead of rows.

    Returns:
        None where the rows, or every resample of them, have one class only.
    """
    y, a = checked(labels, first)
    _, b = checked(labels, second)
    aucs = _WeightedAuc(y, a), _WeightedAuc(y, b)
    whole = [auc(np.ones(y.size, dtype=np.int64)) for auc in aucs]
    if whole[0] is None or whole[1] is None:
        return None
    groups = None if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    differences = _differences(aucs, y.size, groups, resamples, seed)
    if not differences.size:
        return None
    low, high = np.quantile(differences, [0.5 - confidence / 2, 0.5 + confidence / 2])
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * float(fewer + 1) / (differences.size + 1))
    return Paired(whole[0] - whole[1], float(low), float(high), p)


def _differences(
    aucs: tuple[_WeightedAuc, _WeightedAuc], rows: int, groups: Integers | None, resamples: int, seed: int
) -> Floats:
    random = np.random.default_rng(seed)
    units = rows if groups is None else int(groups.max()) + 1
    found = []
    for _ in range(resamples):
        drawn = np.bincount(random.integers(0, units, units), minlength=units)
        weights = drawn if groups is None else drawn[groups]
        first, second = aucs[0](weights), aucs[1](weights)
        if first is not None and second is not None:
            found.append(first - second)
    return np.array(found)
