"""Noise-contrastive estimation against the plain formula on a tiny vocabulary."""

import math

import pytest
import torch

from components.objectives.nce import NoiseContrast

COUNTS = torch.tensor([0, 4, 1, 0, 5, 10])
WIDTH, NOISE = 3, 4


def contrast():
    torch.manual_seed(0)
    return NoiseContrast(COUNTS, WIDTH, NOISE)


def test_loss_is_the_plain_formula():
    """s(f) - ln V - ln p(f) - ln K, binary cross-entropy summed over one true and K noise ids."""
    made = contrast()
    with torch.no_grad():
        made.bias += torch.randn(len(COUNTS))
    states, truth = torch.randn(5, WIDTH), torch.tensor([1, 5, 5, 2, 4])
    noise = made.draw(5, torch.Generator().manual_seed(1))
    found = made(states, truth, noise)
    total = float(COUNTS.sum())
    for row in range(5):
        expected = 0.0
        for place, id_ in enumerate([int(truth[row]), *noise[row].tolist()]):
            score = (states[row] @ made.table.weight[id_] + made.bias[id_]).item()
            p = max(int(COUNTS[id_]), 1) / total
            logit = score - math.log(len(COUNTS)) - math.log(p) - math.log(NOISE)
            probability = 1 / (1 + math.exp(-logit))
            expected -= math.log(probability if place == 0 else 1 - probability)
        assert float(found[row].detach()) == pytest.approx(expected, rel=1e-5)


def test_a_fresh_one_knows_the_frequencies_and_nothing_else():
    made = contrast()
    logits = made.logits(torch.zeros(1, WIDTH), torch.arange(len(COUNTS)).unsqueeze(0))
    torch.testing.assert_close(logits, torch.full((1, len(COUNTS)), -math.log(NOISE)))


def test_noise_comes_by_frequency():
    drawn = contrast().draw(20_000, torch.Generator().manual_seed(3)).flatten()
    shares = torch.bincount(drawn, minlength=len(COUNTS)) / len(drawn)
    assert shares.tolist() == pytest.approx((COUNTS / COUNTS.sum()).tolist(), abs=0.01)
    assert shares[0] == shares[3] == 0


def test_gradient_descent_tells_the_true_id():
    """The estimate is that of the softmax: the true id's score rises above all others."""
    made = contrast()
    states, truth = torch.eye(3).repeat(40, 1), torch.tensor([1, 4, 5]).repeat(40)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(5)
    for _ in range(150):
        optimizer.zero_grad()
        made(states, truth, made.draw(len(states), generator)).mean().backward()
        optimizer.step()
    scores = states[:3] @ made.table.weight.T + made.bias
    assert scores.argmax(1).tolist() == [1, 4, 5]
