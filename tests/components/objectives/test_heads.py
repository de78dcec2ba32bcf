"""The projections: shapes, and both similarities against their formulas."""

import pytest
import torch
from torch.nn.functional import normalize

from components.objectives.heads import Heads
from components.objectives.settings import ContrastSettings

N = 7


def heads_of(**changes):
    torch.manual_seed(0)
    return Heads(6, 5, ContrastSettings(projection=8, subspaces=3, width=4, **changes))


@pytest.mark.parametrize("normalise", [True, False])
def test_max_sim_takes_the_best_sub_space_of_the_other_side(normalise):
    """CTRL, section 3.3: each side is the anchor once, and one is not the other transposed."""
    heads = heads_of(normalise=normalise)
    text, table = heads.project(torch.randn(N, 6), torch.randn(N, 5))
    by_text, by_table = heads.similarities(text, table)
    h, k = heads.text_spaces(text), heads.table_spaces(table)
    pairs = torch.einsum("imd,jnd->ijmn", h, k)
    torch.testing.assert_close(by_text, pairs.amax(3).mean(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_table, pairs.amax(2).mean(2).T, atol=1e-5, rtol=0)
    assert not torch.allclose(by_text, by_table.T)


def test_cosine_is_of_the_whole_vectors_and_symmetric():
    heads = heads_of(similarity="cosine")
    text, table = heads.project(torch.randn(N, 6), torch.randn(N, 5))
    by_text, by_table = heads.similarities(text, table)
    torch.testing.assert_close(by_text, normalize(text, dim=-1) @ normalize(table, dim=-1).T)
    assert torch.equal(by_table, by_text.T)
