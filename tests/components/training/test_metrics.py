"""Every metric against a naive oracle or scikit-learn, and on the rows that break metrics."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from components.training import metrics

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), max_size=60)


def columns(rows):
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.array([]),) * 3
    return labels, scores / 6, users.astype(np.int64)


def pairwise_auc(labels, scores):
    """Share of (positive, negative) pairs in the right order, ties half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(pairs)) if pairs else None


def naive_gauc(labels, scores, users):
    total = weight = 0.0
    for user in np.unique(users):
        mine = users == user
        area = pairwise_auc(labels[mine], scores[mine])
        if area is not None:
            total, weight = total + area * mine.sum(), weight + mine.sum()
    return total / weight if weight else None


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(1)
    probabilities = generator.beta(2, 3, 3000).round(2)
    return (generator.random(3000) < probabilities).astype(np.int8), probabilities


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_auc_and_gauc_equal_the_pairwise_definition(rows):
    labels, scores, users = columns(rows)
    assert metrics.auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), nan_ok=False)
    assert metrics.gauc(labels, scores, users) == pytest.approx(naive_gauc(labels, scores, users))


@given(ROWS, st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_reliability_counts_every_row_once_whatever_their_order(rows, bins):
    labels, scores, _ = columns(rows)
    curve = metrics.reliability(labels, scores, bins)
    assert curve.rows.sum() == len(rows)
    assert len(curve.rows) <= bins
    assert curve.rows @ curve.predicted == pytest.approx(scores.sum())
    assert curve.rows @ curve.observed == pytest.approx(labels.sum())
    backwards = metrics.reliability(labels[::-1], scores[::-1], bins)
    np.testing.assert_allclose(backwards.observed, curve.observed)


def test_equal_to_scikit_learn(rows):
    labels, p = rows
    assert metrics.auc(labels, p) == pytest.approx(sk.roc_auc_score(labels, p), abs=1e-12)
    assert metrics.pr_auc(labels, p) == pytest.approx(sk.average_precision_score(labels, p), abs=1e-12)
    clipped = np.clip(p, metrics.CLIP, 1 - metrics.CLIP)
    assert metrics.logloss(labels, p) == pytest.approx(sk.log_loss(labels, clipped), abs=1e-12)


def test_equal_mass_bins_of_distinct_scores():
    curve = metrics.reliability(np.arange(100) % 2, np.arange(100) / 100, 10)
    assert curve.rows.tolist() == [10] * 10
    assert curve.predicted[0] == pytest.approx(0.045)


def test_roc_curve_is_finite_thin_and_keeps_the_area(rows):
    generator = np.random.default_rng(2)
    labels, p = rows[0], rows[1] + generator.random(3000) * 1e-3
    curve = metrics.roc_curve(labels, p, points=200)
    assert len(curve.x) <= 200
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    assert np.isfinite(curve.threshold).all()
    assert (np.diff(curve.x) >= 0).all()
    assert (np.diff(curve.y) >= 0).all()
    assert (np.diff(curve.threshold) <= 0).all()
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(metrics.auc(labels, p), abs=2e-3)
    json.dumps([curve.x.tolist(), curve.threshold.tolist()], allow_nan=False)


def test_full_roc_and_pr_curves_equal_scikit_learn(rows):
    labels, p = rows
    curve = metrics.roc_curve(labels, p, points=10_000)
    x, y, _ = sk.roc_curve(labels, p, drop_intermediate=False)
    np.testing.assert_allclose([curve.x, curve.y], [x, y])
    precision, recall, _ = sk.precision_recall_curve(labels, p)
    curve = metrics.pr_curve(labels, p, points=10_000)
    np.testing.assert_allclose([curve.x, curve.y], [recall[-2::-1], precision[-2::-1]])


def test_hand_made_values():
    assert metrics.calibration([1, 0, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 1.0
    assert metrics.normalised_entropy([1, 0, 0, 1], [0.5] * 4) == pytest.approx(1.0)
    assert metrics.logloss([1, 0], [0.0, 1.0]) == pytest.approx(-np.log(metrics.CLIP))
    assert metrics.rela_impr(0.8376, 0.8290) == pytest.approx(0.0261398)
    assert metrics.rela_impr(0.8, 0.5) is None
    assert metrics.rela_impr(None, 0.7) is None


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_one_class_is_none_and_never_nan(labels):
    scores, users = [0.2, 0.5, 0.7][: len(labels)], [1, 1, 2][: len(labels)]
    assert metrics.auc(labels, scores) is None
    assert metrics.gauc(labels, scores, users) is None
    assert metrics.pr_auc(labels, scores) is None
    assert metrics.roc_curve(labels, scores) is None
    assert metrics.pr_curve(labels, scores) is None
    assert metrics.normalised_entropy(labels, scores) is None
    assert (metrics.calibration(labels, scores) is None) == (sum(labels) == 0)
    assert (metrics.logloss(labels, scores) is None) == (not labels)


MEASURES = [metrics.auc, metrics.logloss, metrics.calibration, metrics.reliability, metrics.pr_auc, metrics.roc_curve]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_raise(measure, bad):
    with pytest.raises(ValueError, match="1 of 3 scores are NaN or infinite"):
        measure([0, 1, 1], [0.1, bad, 0.3])


def test_wrong_shapes_labels_and_probabilities_raise():
    with pytest.raises(ValueError, match="one length"):
        metrics.auc([0, 1], [0.1])
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        metrics.auc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.logloss([0, 1], [0.1, 1.2])
    with pytest.raises(ValueError, match="users"):
        metrics.gauc([0, 1], [0.1, 0.2], [1])
