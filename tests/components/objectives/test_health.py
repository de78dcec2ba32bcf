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


def measured(text, table, **found):
    retrieval = {"retrieval_by_text": 0.5, "retrieval_by_table": 0.5, "retrieval_by_chance": 1 / len(text)}
    return {"rows": len(text), **health.report(text, table), **retrieval, **found}


def test_a_collapse_is_named_with_its_side():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(50, 8, generator=generator)
    bad = torch.ones(50, 8) + 1e-4 * good
    healthy, collapsed = measured(good, good), measured(good, bad)
    assert health.judge(collapsed, healthy) == ("healthy", [])
    verdict, reasons = health.judge(healthy, collapsed)
    assert verdict == "collapsed" and len(reasons) == 2
    assert all("table" in reason and "before" not in reason for reason in reasons)
    assert all(math.isfinite(value) for value in collapsed.values())
    verdict, reasons = health.judge(collapsed, collapsed)
    assert verdict == "collapsed" and all(reason.endswith(", as before the alignment") for reason in reasons)


def test_sides_that_find_each_other_by_chance_only_are_unaligned():
    good = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    healthy = measured(good, good)
    by_chance = measured(good, good, retrieval_by_text=4 / 400, retrieval_by_table=0.0)
    verdict, (reason,) = health.judge(healthy, by_chance)
    assert verdict == "unaligned"
    assert reason.endswith("no better than by chance (1.00% by text and 0.00% by table; chance 0.25%)")
    assert health.judge(healthy, {**by_chance, "retrieval_by_table": 5 / 400}) == ("healthy", [])
