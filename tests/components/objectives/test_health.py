import math

import pytest
import torch

from components.objectives import health


def test_effective_rank_counts_equal_dimensions():
    assert health.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert health.effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert health.effective_rank(torch.zeros(6, 4)) == 0


def test_alignment_and_uniformity_at_known_points():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert health.alignment(x, x) == pytest.approx(0)
    assert health.alignment(x, -x) == pytest.approx(4)
    assert health.uniformity(x) == pytest.approx(-4)  # one pair, squared distance 2, t = 2


def test_mean_cosine_leaves_out_a_row_with_itself():
    assert health.mean_cosine(torch.eye(4)) == pytest.approx(0, abs=1e-6)
    assert health.mean_cosine(torch.ones(4, 3)) == pytest.approx(1)


def test_retrieval_takes_an_equal_pair_for_its_own():
    similarity = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    same = torch.eye(3, dtype=torch.bool)
    assert health.retrieval_accuracy(similarity, same) == pytest.approx(1 / 3)
    same[0, 1] = same[1, 0] = True
    assert health.retrieval_accuracy(similarity, same) == pytest.approx(2 / 3)


def test_a_collapse_is_named_with_its_side():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(50, 8, generator=generator)
    assert health.report(good, good)["verdict"] == "healthy"
    collapsed = health.report(good, torch.ones(50, 8) + 1e-4 * good)
    assert collapsed["verdict"] == "collapsed"
    assert all("table" in reason for reason in collapsed["reasons"])
    assert all(math.isfinite(value) for value in collapsed.values() if isinstance(value, float))
