"""FLIP's heads: what they attend to, what they are tied to."""

import pytest
import torch

from components.objectives.reconstruction import FieldHead, InstanceHead, TokenHead

ROWS, TOKENS, TEXT, TABLE, FIELDS, WIDTH = 4, 6, 8, 5, 3, 2


def inputs():
    torch.manual_seed(1)
    there = torch.arange(TOKENS) < torch.tensor([[6], [3], [1], [5]])
    return torch.randn(ROWS, TABLE), torch.randn(ROWS, TOKENS, TEXT), there


def head(**changes):
    torch.manual_seed(2)
    return FieldHead(TEXT, TABLE, FIELDS, WIDTH, **{"mask_padding": True, "scale": True, **changes})


def test_one_query_attends_over_the_tokens_that_are_there():
    table, states, there = inputs()
    made = head()
    found = made.read(table, states, there)
    for row in range(ROWS):
        own = states[row, : int(there[row].sum())]
        query = made.norm(made.query(table[row]))
        weights = torch.softmax(own @ query / TEXT**0.5, dim=0)
        torch.testing.assert_close(found[row], weights @ own)
    assert made(table, found).shape == (ROWS, FIELDS, WIDTH)


@pytest.mark.parametrize("masked", [True, False])
def test_padding_counts_in_the_released_variant_alone(masked):
    table, states, there = inputs()
    made = head(mask_padding=masked)
    other = torch.where(there.unsqueeze(-1), states, torch.randn_like(states))
    same = torch.allclose(made.read(table, states, there), made.read(table, other, there))
    assert same == masked


def test_unscaled_scores_are_sharper():
    table, states, there = inputs()
    plain, scaled = (head(scale=scale).read(table, states, there) for scale in (False, True))
    assert not torch.allclose(plain, scaled)
    nearest = [float((states - one.unsqueeze(1)).norm(dim=-1).min(1).values.mean()) for one in (plain, scaled)]
    assert nearest[0] < nearest[1], "nearer to single tokens"


def test_a_word_is_told_from_its_state_and_its_row():
    torch.manual_seed(3)
    decoder, bias = torch.randn(7, TEXT), torch.randn(7)
    made = TokenHead(TEXT, TABLE, decoder, bias, 0.0, tied=False)
    states, table = torch.randn(ROWS, TEXT), torch.randn(ROWS, TABLE)
    truth = torch.arange(ROWS)
    logits = torch.tanh(made.fuse(torch.cat([states, table], 1))) @ decoder.T + bias
    expected = -torch.log_softmax(logits, 1)[torch.arange(ROWS), truth].sum()
    torch.testing.assert_close(made(states, table, truth), expected)
    assert not torch.allclose(made(states, table, truth), made(states, torch.zeros_like(table), truth))
    made(states, table, truth).backward()
    assert made.decoder.grad.abs().sum() > 0


def test_a_tied_decoder_is_the_plms_own_tensor():
    torch.manual_seed(3)
    words = torch.randn(7, TEXT, requires_grad=True)
    made = TokenHead(TEXT, TABLE, words.detach(), torch.zeros(7), 0.0, tied=True)
    assert made.decoder is None
    states, table = torch.randn(ROWS, TEXT), torch.randn(ROWS, TABLE)
    with pytest.raises(ValueError, match="words' rows"):
        made(states, table, torch.arange(ROWS))
    made(states, table, torch.arange(ROWS), words).backward()
    assert words.grad.abs().sum() > 0


def test_an_instance_head_ends_in_a_layer_norm_over_a_residual():
    torch.manual_seed(4)
    made = InstanceHead(TABLE, 6, 0.0)
    x = torch.randn(ROWS, TABLE)
    entered = made.enter(x)
    expected = made.norm(entered + made.inner(torch.nn.functional.gelu(entered)))
    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made(x).mean(1), torch.zeros(ROWS), atol=1e-5, rtol=0)
