"""What is hidden of a row: whole fields, as many as the ratio says, and nothing that is not there."""

import math

import pytest
import torch

from components.dataset.layout import MASK, PADDING, FieldSlots, InputLayout
from components.objectives.masks import TableMask, draw

LAYOUT = InputLayout(
    (
        FieldSlots("user_id", "user", "id", 0, 1, 1, 9),
        FieldSlots("genres", "item", "multi", 1, 3, 10, 8),
        FieldSlots("price", "item", "number", 4, 1, 18, 6),
    ),
    (FieldSlots("history_user_id", "user", "id", 5, 2, 1, 9),),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.6, 1.0])
def test_as_many_as_the_ratio_says_and_one_at_least(ratio):
    there = torch.rand(500, 20, generator=generator()) < 0.7
    there[:3] = False
    hidden = draw(there, ratio, generator(1))
    assert not (hidden & ~there).any()
    for row, of in zip(hidden.tolist(), there.tolist(), strict=True):
        known = sum(of)
        assert sum(row) == (max(1, math.floor(known * ratio + 1e-9)) if known else 0)
    assert int(draw(torch.ones(1, 10, dtype=torch.bool), 0.3, generator()).sum()) == 3, "0.3 * 10 is no 2.99"


def test_every_place_is_drawn_alike():
    hidden = draw(torch.ones(20_000, 8, dtype=torch.bool), 0.25, generator())
    assert hidden.float().mean(0).tolist() == pytest.approx([0.25] * 8, abs=0.02)


def rows(count=300):
    draws = generator(2)
    genres = torch.randint(13, 18, (count, 3), generator=draws)
    genres[torch.arange(3) > torch.randint(0, 3, (count, 1), generator=draws)] = PADDING
    user, price = torch.randint(4, 10, (count, 1), generator=draws), torch.randint(18, 24, (count, 1), generator=draws)
    history = torch.randint(4, 10, (count, 2), generator=draws)
    return torch.cat([user, genres, price, history], dim=1).int()


def test_a_hidden_field_is_one_mask_and_no_value_of_it_is_left():
    ids = rows()
    found = TableMask(LAYOUT)(ids, 0.7, generator())
    for before, after, hidden, truth in zip(
        ids.tolist(), found.ids.tolist(), found.hidden.tolist(), found.truth.tolist(), strict=True
    ):
        assert after[5:] == before[5:], "the history stays"
        for slots, gone, told in zip(LAYOUT.fields, hidden, truth, strict=True):
            old, new = before[slots.start : slots.stop], after[slots.start : slots.stop]
            assert new == ([slots.offset + MASK] + [PADDING] * (slots.width - 1) if gone else old)
            assert told in old and told != PADDING
    unknown = ids[:, 4] < 18 + 3
    assert unknown.any() and not found.hidden[unknown, 2].any(), "a missing price tells nothing"
    several = ids[:, 2] != PADDING
    assert (found.truth[several, 1] != ids[several, 1]).any(), "of several values any may be told"
    assert torch.equal(found.of(slice(3, 7)).truth, found.truth[3:7])
