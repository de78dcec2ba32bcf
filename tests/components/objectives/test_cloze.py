"""The multi-attribute cloze: what is hidden, and its loss against the plain formula."""

import pytest
import torch
from torch import nn

from components.objectives.cloze import Attribute, Cloze, mask_events

ATTRIBUTES = (
    Attribute("item", 1, 9, of_item=True),
    Attribute("genre", 10, 6, of_item=True),
    Attribute("label", 16, 5, of_item=False),
    Attribute("hour", 21, 7, of_item=False),
)
MASK = 2


def events(rows=400, length=6):
    """Left-padded ids [rows, length, 4]."""
    generator = torch.Generator().manual_seed(1)
    columns = [
        torch.randint(one.offset + 3, one.offset + one.size, (rows, length), generator=generator) for one in ATTRIBUTES
    ]
    filled = torch.randint(1, length + 1, (rows, 1), generator=generator)
    there = torch.arange(length).flip(0) < filled
    return torch.stack(columns, dim=-1) * there.unsqueeze(-1)


def test_item_and_behaviour_are_hidden_apart_and_each_as_a_whole():
    ids = events()
    masked = mask_events(ids, ATTRIBUTES, (0.2, 0.4), MASK, torch.Generator().manual_seed(3))
    item, genre, label, hour = masked.hidden.unbind(-1)
    assert torch.equal(item, genre)
    assert torch.equal(label, hour)
    there = ids[:, :, 0] != 0
    assert not (masked.hidden & ~there.unsqueeze(-1)).any(), "an empty slot hides nothing"
    assert float(item[there].float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(label[there].float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float((item & label)[there].float().mean()) == pytest.approx(0.08, abs=0.02), "independent"
    offsets = torch.tensor([one.offset for one in ATTRIBUTES])
    assert torch.equal(masked.ids, torch.where(masked.hidden, offsets + MASK, ids))


def naive(cloze, place, state, truth, table):
    attribute = ATTRIBUTES[place]
    logits = [state @ table[i] + cloze.bias[i] for i in range(attribute.offset, attribute.offset + attribute.size)]
    return -torch.log_softmax(torch.stack(logits), 0)[truth - attribute.offset]


def test_a_loss_is_the_mean_cross_entropy_of_its_hidden_values():
    torch.manual_seed(0)
    table, ids = nn.Embedding(28, 5), events(rows=20)
    cloze = Cloze(ATTRIBUTES, table, samples=4)
    nn.init.normal_(cloze.bias)
    masked = mask_events(ids, ATTRIBUTES, (0.3, 0.3), MASK, torch.Generator().manual_seed(3))
    tokens = torch.randn(*ids.shape[:2], 5)
    with torch.no_grad():
        losses = cloze(tokens, ids, masked.hidden, table.weight, torch.Generator())
        for place, attribute in enumerate(ATTRIBUTES):
            where = masked.hidden[:, :, place]
            states = cloze.transform[place](tokens[where])
            pairs = zip(states, ids[:, :, place][where], strict=True)
            expected = [naive(cloze, place, state, truth, table.weight) for state, truth in pairs]
            assert float(losses[attribute.name]) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)
    assert cloze(tokens, ids, torch.zeros_like(masked.hidden), table.weight, torch.Generator()) == {}


def test_the_sampled_softmax_nears_the_full_one_as_it_draws_more():
    """With its known bias taken off: of n uniform draws the partition is estimated up to the factor n / (size - 1)."""
    torch.manual_seed(0)
    attribute = Attribute("item", 1, 500, of_item=True)
    table = nn.Embedding(501, 5)
    ids = torch.randint(4, 501, (300, 1, 1))
    tokens, hidden = torch.randn(300, 1, 5) * 0.3, torch.ones(300, 1, 1, dtype=torch.bool)
    full, sampled = (Cloze((attribute,), table, samples=200_000, full=limit) for limit in (1024, 10))
    sampled.load_state_dict(full.state_dict())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        state = full.transform[0](tokens[hidden[:, :, 0]])
        drawn = torch.randint(1, 501, (200_000,), generator=torch.Generator().manual_seed(5))
        truth = ids.flatten()
        true = (state * table.weight[truth]).sum(-1)
        others = (state @ table.weight[drawn].T).masked_fill(drawn == truth.unsqueeze(1), float("-inf"))
        expected = (torch.logsumexp(torch.cat([true.unsqueeze(1), others], 1), 1) - true).mean()
        found = sampled(tokens, ids, hidden, table.weight, generator)["item"]
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
        scaled = torch.logsumexp(others, 1) - torch.log(torch.tensor(200_000 / 500))
        exact = full(tokens, ids, hidden, table.weight, generator)["item"]
        assert float((torch.logaddexp(true, scaled) - true).mean()) == pytest.approx(float(exact), rel=0.01)
