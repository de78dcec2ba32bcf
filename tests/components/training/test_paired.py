"""Paired intervals against the textbook definitions, a naive resampling loop, and their own promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training import metrics, paired


def draw(seed, rows=400, noise=(0.5, 0.8), decimals=None):
    random = np.random.default_rng(seed)
    truth = random.normal(size=rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    scores = [1 / (1 + np.exp(-(truth + random.normal(0, spread, rows)))) for spread in noise]
    return labels, *(score if decimals is None else score.round(decimals) for score in scores)


def naive_delong(labels, first, second):
    """DeLong et al. 1988 by the double loop: difference of the AUCs and its standard error."""
    components = []
    for scores in (first, second):
        above, below = scores[labels == 1], scores[labels == 0]
        wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
        components.append((wins.mean(axis=1), wins.mean(axis=0)))
    of_positives, of_negatives = (np.cov(np.array(pair)) / len(pair[0]) for pair in zip(*components, strict=True))
    covariance = of_positives + of_negatives
    difference = components[0][0].mean() - components[1][0].mean()
    return difference, np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_delong_equals_the_double_loop(seed, decimals):
    labels, first, second = draw(seed, decimals=decimals)
    difference, error = naive_delong(labels, first, second)
    found = paired.delong(labels, first, second, confidence=0.95)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.high - found.difference == pytest.approx(1.959963984540054 * error, rel=1e-9)
    assert found.difference - found.low == pytest.approx(1.959963984540054 * error, rel=1e-9)


def test_p_of_delong_is_that_of_its_interval():
    labels, first, second = draw(4)
    p = paired.delong(labels, first, second).p
    edge = paired.delong(labels, first, second, confidence=1 - p)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1])
def test_weighted_auc_is_the_auc_of_the_repeated_rows(decimals):
    labels, first, _ = draw(5, decimals=decimals)
    auc = paired._WeightedAuc(labels.astype(float), first)
    random = np.random.default_rng(6)
    for _ in range(20):
        weights = random.integers(0, 4, len(labels))
        assert auc(weights) == pytest.approx(metrics.auc(labels.repeat(weights), first.repeat(weights)), abs=1e-12)


def test_bootstrap_equals_a_naive_loop_over_the_same_draws():
    labels, first, second = draw(7, rows=300, decimals=2)
    random = np.random.default_rng(11)
    naive = []
    for _ in range(200):
        rows = random.integers(0, 300, 300)
        naive.append(metrics.auc(labels[rows], first[rows]) - metrics.auc(labels[rows], second[rows]))
    found = paired.bootstrap(labels, first, second, resamples=200, confidence=0.9, seed=11)
    assert [found.low, found.high] == pytest.approx(np.quantile(naive, [0.05, 0.95]), abs=1e-12)


def test_drawing_whole_clusters_equals_a_naive_loop():
    labels, first, second = draw(8, rows=300)
    users = np.random.default_rng(9).integers(100, 140, 300)
    known = np.unique(users)
    random = np.random.default_rng(12)
    naive = []
    for _ in range(100):
        chosen = known[random.integers(0, len(known), len(known))]
        rows = np.concatenate([np.flatnonzero(users == user) for user in chosen])
        naive.append(metrics.auc(labels[rows], first[rows]) - metrics.auc(labels[rows], second[rows]))
    found = paired.bootstrap(labels, first, second, resamples=100, seed=12, clusters=users)
    assert [found.low, found.high] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=1e-12)


def test_bootstrap_and_delong_agree_on_many_rows():
    labels, first, second = draw(10, rows=20_000)
    wide, exact = paired.bootstrap(labels, first, second, resamples=500), paired.delong(labels, first, second)
    assert wide.difference == pytest.approx(exact.difference, abs=1e-12)
    assert wide.high - wide.low == pytest.approx(exact.high - exact.low, rel=0.15)


@given(st.integers(0, 10_000), st.sampled_from([None, 1]))
@settings(max_examples=30, deadline=None)
def test_swapping_the_models_mirrors_every_interval(seed, decimals):
    labels, first, second = draw(seed, rows=60, decimals=decimals)
    for measure in (paired.delong, lambda *rows: paired.bootstrap(*rows, resamples=50)):
        one, other = measure(labels, first, second), measure(labels, second, first)
        assert one.difference == pytest.approx(-other.difference, abs=1e-12)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
        assert one.p == pytest.approx(other.p)


def test_intervals_cover_as_often_as_they_say():
    """Equally good models: about 5 % of the intervals at 95 % miss nought, far from none and far from a tenth."""
    drawn = [draw(seed, rows=300, noise=(0.7, 0.7)) for seed in range(400)]
    missed = {
        "delong": sum(paired.delong(*rows).p < 0.05 for rows in drawn),
        "bootstrap": sum(paired.bootstrap(*rows, resamples=200).p < 0.05 for rows in drawn),
    }
    assert all(0.02 * 400 < count < 0.085 * 400 for count in missed.values()), missed


def test_the_same_scores_do_not_differ():
    labels, first, _ = draw(13)
    for found in (paired.delong(labels, first, first), paired.bootstrap(labels, first, first, resamples=50)):
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_certain_difference_is_no_chance():
    labels = np.array([0, 0, 1, 1])
    found = paired.delong(labels, labels.astype(float), np.full(4, 0.5))
    assert (found.difference, found.low, found.p) == (0.5, 0.5, 0)


@pytest.mark.parametrize("labels", [[], [1], [0, 0, 0], [1, 1, 1]])
def test_one_class_has_no_interval(labels):
    scores = np.linspace(0, 1, len(labels))
    assert paired.delong(labels, scores, scores) is None
    assert paired.bootstrap(labels, scores, scores) is None


def test_resamples_of_one_class_are_left_out():
    found = paired.bootstrap([0, 1, 1], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], resamples=200)
    assert found.difference == 1.0
    assert (found.low, found.high) == (1.0, 1.0)


def test_mean_difference_is_the_paired_normal_interval():
    first, second = np.array([0.2, 0.4, 0.9]), np.array([0.1, 0.5, 0.6])
    found = paired.mean_difference(first, second)
    assert found.difference == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * 0.2 / np.sqrt(3), rel=1e-5)
    assert paired.mean_difference(first[:1], second[:1]) is None


def test_nan_scores_raise():
    with pytest.raises(ValueError, match="NaN"):
        paired.delong([0, 1], [0.1, np.nan], [0.1, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        paired.bootstrap([0, 1], [0.1, 0.3], [np.nan, 0.2])
