"""Metrics of predicted click probabilities. NumPy only, so that steps without torch may use them.

A metric that the rows do not define (one class, no rows) is None, never NaN: None is JSON's null and fails loudly in
a comparison. Scores that are NaN or infinite, and labels other than 0 and 1, raise ValueError everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Probabilities are held this far from 0 and 1 before a logarithm: the resolution of a float32 near 1.
CLIP = 1e-7


@dataclass(frozen=True)
class Curve:
    """Points of a curve, all finite: x and y in [0, 1] and the score threshold of each point."""

    x: Floats
    y: Floats
    threshold: Floats


@dataclass(frozen=True)
class Reliability:
    """Per bin of about equal mass: rows, mean predicted probability, observed share of positives."""

    rows: Integers
    predicted: Floats
    observed: Floats


def checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Labels and scores as float64 [n].

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be two vectors of one length")
    if not np.isfinite(s).all():
        raise ValueError(f"{int((~np.isfinite(s)).sum())} of {s.size} scores are NaN or infinite")
    if not ((y == 0) | (y == 1)).all():
        raise ValueError("labels must be 0 or 1")
    return y, s


def midranks(values: Floats) -> Floats:
    """Ranks from 1 on; equal values share the mean of their ranks. O(n log n)."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = _sorted_midranks(_starts(values[order]), len(values))
    return ranks


def _starts(ordered: npt.NDArray[np.generic]) -> Integers:
    """Where each run of equal values starts in a sorted vector."""
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)])


def _sorted_midranks(starts: Integers, size: int) -> Floats:
    lengths = np.diff(starts, append=size)
    return np.repeat(starts + (lengths + 1) / 2, lengths)


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Area under the ROC curve by ranks (Mann-Whitney U), ties counted half. None where only one class is present."""
    y, s = checked(labels, scores)
    positives = y.sum()
    negatives = y.size - positives
    if not positives or not negatives:
        return None
    ranks = float(midranks(s) @ y)
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def gauc(labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> float | None:
    """Mean of the users' own AUCs, weighted by their impressions, over the users with both classes.

    As in Zhu et al. 2017 (arXiv 1706.06978). One sort, no loop over users.

    Args:
        labels: 0 or 1, [n].
        scores: Finite scores, [n].
        users: Integer code of each row's user, [n].
    """
    y, s = checked(labels, scores)
    codes = np.asarray(users)
    if codes.shape != y.shape:
        raise ValueError(f"users {codes.shape} must have the shape of the labels {y.shape}")
    if not y.size:
        return None
    order = np.lexsort((s, codes))
    y, s, codes = y[order], s[order], codes[order]
    user_starts = _starts(codes)
    tied = np.union1d(_starts(s), user_starts)
    rows = np.diff(user_starts, append=y.size)
    ranks = _sorted_midranks(tied, y.size) - np.repeat(user_starts, rows)
    positives, rank_sums = np.add.reduceat(y, user_starts), np.add.reduceat(y * ranks, user_starts)
    pairs = positives * (rows - positives)
    both = pairs > 0
    if not both.any():
        return None
    areas = (rank_sums[both] - positives[both] * (positives[both] + 1) / 2) / pairs[both]
    return float(np.average(areas, weights=rows[both]))


def row_logloss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Floats:
    """Log loss of each row in nats, [n].

    Raises:
        ValueError: a probability lies outside [0, 1], or as in `checked`.
    """
    y, p = checked(labels, probabilities)
    if p.size and (p.min() < 0 or p.max() > 1):
        raise ValueError(f"probabilities must lie in [0, 1], not in [{p.min():.4g}, {p.max():.4g}]")
    losses: Floats = -np.log(np.clip(np.where(y == 1, p, 1 - p), CLIP, 1 - CLIP))
    return losses


def logloss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Mean log loss in nats, probabilities clipped by `CLIP`. None without rows."""
    losses = row_logloss(labels, probabilities)
    return float(losses.mean()) if losses.size else None


def normalised_entropy(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Log loss over the entropy of the rows' own label rate (He et al. 2014). None for one class."""
    loss = logloss(labels, probabilities)
    rate = float(np.mean(np.asarray(labels, dtype=np.float64))) if loss is not None else 0.0
    if loss is None or rate in {0.0, 1.0}:
        return None
    return loss / float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))


def calibration(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Expected over observed positives, sum(p) / sum(y). None without a positive."""
    y, p = checked(labels, probabilities)
    positives = y.sum()
    return float(p.sum() / positives) if positives else None


def reliability(labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 10) -> Reliability:
    """Reliability curve over at most `bins` bins of about equal mass; equal predictions stay in one bin."""
    y, p = checked(labels, probabilities)
    order = np.argsort(p, kind="stable")
    y, p = y[order], p[order]
    starts = _starts(p)
    wanted = np.arange(bins) * y.size // bins
    # A bin starts where a run of equal predictions does: the bins do not depend on the order of the rows.
    edges = np.unique(starts[np.searchsorted(starts, wanted, side="right") - 1]) if y.size else starts
    rows = np.diff(edges, append=y.size)
    sums = [np.add.reduceat(column, edges) if y.size else column for column in (p, y)]
    return Reliability(rows, sums[0] / rows, sums[1] / rows)


def _thresholds(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats, Floats] | None:
    """True and false positives at each distinct score, highest first; None for one class."""
    y, s = checked(labels, scores)
    if not 0 < y.sum() < y.size:
        return None
    order = np.argsort(-s, kind="stable")
    last = np.append(_starts(s[order])[1:], y.size) - 1
    true = np.cumsum(y[order])[last]
    return true, last + 1 - true, s[order][last]


def pr_auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Average precision: precision summed over the steps of recall, no interpolation. None for one class."""
    counts = _thresholds(labels, scores)
    if counts is None:
        return None
    true, false, _ = counts
    return float(np.diff(true, prepend=0.0) @ (true / (true + false)) / true[-1])


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike, points: int = 200) -> Curve | None:
    """ROC curve as false (x) and true (y) positive rates from (0, 0) to (1, 1), at most `points` points.

    The first point's threshold is 1, or the highest score where that is more: never infinity. None for one class.
    """
    counts = _thresholds(labels, scores)
    if counts is None:
        return None
    true, false, threshold = (np.concatenate(([0.0], column)) for column in counts)
    threshold[0] = max(1.0, threshold[1])
    return _thinned(Curve(false / false[-1], true / true[-1], threshold), points)


def pr_curve(labels: npt.ArrayLike, scores: npt.ArrayLike, points: int = 200) -> Curve | None:
    """Precision (y) over recall (x), at most `points` points by rising recall. None for one class."""
    counts = _thresholds(labels, scores)
    if counts is None:
        return None
    true, false, threshold = counts
    return _thinned(Curve(true / true[-1], true / (true + false), threshold), points)


def _thinned(curve: Curve, points: int) -> Curve:
    """At most `points` of the curve's points, evenly along its length, both ends among them."""
    if len(curve.x) <= points:
        return curve
    length = np.concatenate(([0.0], np.cumsum(np.hypot(np.diff(curve.x), np.diff(curve.y)))))
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(0, len(length) - 1))
    return Curve(curve.x[kept], curve.y[kept], curve.threshold[kept])


def rela_impr(auc_model: float | None, auc_base: float | None) -> float | None:
    """(AUC_model - 0.5) / (AUC_base - 0.5) - 1. None where an AUC is missing or the base is no better than chance."""
    if auc_model is None or auc_base is None or auc_base <= 0.5:
        return None
    return (auc_model - 0.5) / (auc_base - 0.5) - 1
