import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.objectives import contrastive
from components.objectives.contrastive import SubSpaces, equal_pairs, info_nce, max_sim


def naive_loss(text, table, temperature, pairs=None):
    """Double loop over rows and sub-spaces: CTRL's objective as the paper writes it."""
    rows, subspaces = len(text), len(text[0])

    def sim(one, other):
        best = [max(sum(a * b for a, b in zip(h, k, strict=True)) for k in other) for h in one]
        return sum(best) / subspaces

    total = 0.0
    for anchors, others in ((text, table), (table, text)):
        for i in range(rows):
            kept = [j for j in range(rows) if j == i or pairs is None or pairs[i] != pairs[j]]
            logits = [sim(anchors[i], others[j]) / temperature for j in kept]
            highest = max(logits)
            log_sum = highest + math.log(sum(math.exp(value - highest) for value in logits))
            total += log_sum - logits[kept.index(i)]
    return total / (2 * rows)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 7),
    subspaces=st.integers(1, 4),
    width=st.integers(1, 5),
    temperature=st.sampled_from([0.05, 0.7, 1.5]),
    seed=st.integers(0, 1000),
)
def test_loss_equals_the_double_loop(rows, subspaces, width, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    text, table = (torch.randn(rows, subspaces, width, generator=generator, dtype=torch.double) for _ in "ab")
    pairs = torch.randint(0, 3, (rows, 1), generator=generator)
    found = info_nce(*max_sim(text, table), temperature, equal_pairs(pairs))
    expected = naive_loss(text.tolist(), table.tolist(), temperature, pairs.flatten().tolist())
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_gradient_is_that_of_the_formula(monkeypatch):
    monkeypatch.setattr(contrastive, "BLOCK", 4)  # three blocks, the last one short
    generator = torch.Generator().manual_seed(0)
    text, table = (torch.randn(9, 3, 5, generator=generator, dtype=torch.double, requires_grad=True) for _ in "ab")
    assert torch.autograd.gradcheck(lambda a, b: info_nce(*max_sim(a, b), 0.3), (text, table))


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_equal_the_plain_einsum(monkeypatch, block):
    monkeypatch.setattr(contrastive, "BLOCK", block)
    text, table = torch.randn(10, 4, 8), torch.randn(10, 4, 8)
    products = torch.einsum("imd,jnd->ijmn", text, table)
    by_text, by_table = max_sim(text, table)
    torch.testing.assert_close(by_text, products.amax(3).mean(2))
    torch.testing.assert_close(by_table, products.amax(2).mean(2).T)


def test_the_two_anchors_differ():
    by_text, by_table = max_sim(torch.randn(6, 3, 4), torch.randn(6, 3, 4))
    assert not torch.allclose(by_text, by_table.T)


def test_duplicates_are_no_negatives():
    table = torch.eye(3)[[0, 0, 1]][:, None]
    similarities = max_sim(table, table)
    same = equal_pairs(torch.tensor([[1, 5], [1, 5], [2, 5]]))
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert float(info_nce(*similarities, 0.1, same)) < 1e-3 < float(info_nce(*similarities, 0.1))


def test_subspaces_are_projections_of_the_whole_vector():
    spaces = SubSpaces(8, subspaces=3, width=2, normalise=True)
    x = torch.randn(5, 8, requires_grad=True)
    parts = spaces(x)
    assert parts.shape == (5, 3, 2)
    torch.testing.assert_close(parts.norm(dim=-1), torch.ones(5, 3))
    parts[:, 0, 0].sum().backward()
    assert (x.grad != 0).all()
