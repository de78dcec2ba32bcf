"""Cross-entropy over a vocabulary, without the matrix of all tokens and words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Logits that are there at a time, 64 MB of them.
PIECE = 1 << 24


def word_loss(states: Tensor, rows: Tensor, bias: Tensor, truth: Tensor) -> Tensor:
    """The sum of the cross-entropies of tokens whose logits are their states times the words' rows, plus the bias.

    A batch hides thousands of tokens, and a vocabulary has thousands of words: their logits are gigabytes, as are the
    probabilities and gradients that autograd would keep beside them. Here pieces of the tokens are taken in turn, and
    each piece's gradient is taken while its logits are there: as many products, in a fixed amount of memory.

    Args:
        states: [h, d], of one type with rows and bias.
        rows: The words' rows [words, d].
        bias: The words' biases [words].
        truth: Each token's word [h].
    """
    total: Tensor = _Pieces.apply(states, rows, bias, truth, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, bias: Tensor, truth: Tensor, learns: bool) -> Tensor:
        total, size = states.new_zeros(()), max(1, PIECE // len(rows))
        of_states, of_rows, of_bias = torch.empty_like(states), torch.zeros_like(rows), torch.zeros_like(bias)
        for start in range(0, len(states), size):
            piece = slice(start, start + size)
            logits, own = torch.addmm(bias, states[piece], rows.T), truth[piece].unsqueeze(1)
            sums = torch.logsumexp(logits, 1, keepdim=True)
            total += (sums - logits.gather(1, own)).sum()
            if learns:
                # Of a cross-entropy by its logits: the probabilities, less 1 at the truth.
                of_logits = logits.sub_(sums).exp_()
                of_logits.scatter_add_(1, own, torch.full_like(sums, -1.0))
                torch.mm(of_logits, rows, out=of_states[piece])
                of_rows.addmm_(of_logits.T, states[piece])
                of_bias += of_logits.sum(0)
        ctx.save_for_backward(of_states, of_rows, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "word_loss has no second derivative: its gradient is made with it; write create_graph=False"
            )
        of_states, of_rows, of_bias = (gradients[0] * gradient for gradient in ctx.saved_tensors)
        return of_states, of_rows, of_bias, None, None
