"""Cross-entropy by pieces, beside the whole matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from components.objectives import words
from components.objectives.words import word_loss


@given(st.integers(1, 9), st.integers(2, 7), st.integers(1, 40), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_the_loss_and_its_gradients_are_those_of_the_whole_matrix(tokens, vocabulary, piece, seed):
    torch.manual_seed(seed)
    states, rows, bias = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((tokens, 3), (vocabulary, 3), (vocabulary,))
    )
    truth, share = torch.randint(vocabulary, (tokens,)), 0.37
    ours_in, theirs_in = ([part.clone().requires_grad_() for part in (states, rows, bias)] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PIECE", piece)
        loss = word_loss(*ours_in, truth)
        ours_out = loss, *torch.autograd.grad(share * loss, ours_in)
    loss = functional.cross_entropy(theirs_in[0] @ theirs_in[1].T + theirs_in[2], truth, reduction="sum")
    theirs_out = loss, *torch.autograd.grad(share * loss, theirs_in)
    for ours, theirs in zip(ours_out, theirs_out, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


class Seen(TorchDispatchMode):
    """Notes each operation's name and the sizes of what it gives."""

    def __init__(self):
        super().__init__()
        self.names, self.sizes = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        every = found if isinstance(found, tuple) else (found,)
        self.sizes += [one.numel() for one in every if isinstance(one, torch.Tensor)]
        return found


def test_no_matrix_of_all_tokens_and_words_is_made(monkeypatch):
    """Every tensor of the forward and backward pass has at most a piece's numbers."""
    monkeypatch.setattr(words, "PIECE", 5000)
    states, rows = torch.randn(400, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    with Seen() as seen:
        word_loss(states, rows, torch.zeros(300, requires_grad=True), torch.zeros(400, dtype=torch.long)).backward()
    assert max(seen.sizes) <= 5000 < 400 * 300
    assert seen.names.count("aten.addmm_.default") == 25  # pieces of 16 tokens


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_made_where_none_is_wanted(mode):
    states, rows, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (4, 3), (4,)))
    truth = torch.tensor([0, 1, 2, 3, 0])
    with mode(), Seen() as seen:
        found = word_loss(states, rows, bias, truth)
    assert "aten.addmm.default" in seen.names and "aten.addmm_.default" not in seen.names
    expected = functional.cross_entropy(states @ rows.T + bias, truth, reduction="sum")
    torch.testing.assert_close(found.clone(), expected.detach())


def test_a_gradient_of_the_gradient_is_refused():
    states, rows, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (4, 3), (4,)))
    loss = word_loss(states, rows, bias, torch.zeros(5, dtype=torch.long))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, states, create_graph=True)
