"""CTRL's contrastive objective: fine-grained max-sim between sub-spaces, symmetric InfoNCE (section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Rows of a block: a product of a block and 6,400 columns takes 7 MB, which stays near the core.
BLOCK = 256
#: A logit whose exponential is 0 beside any other.
MASKED = -1e30


class SubSpaces(nn.Module):
    """M affine maps of a whole vector: h_m = W_m h + b_m (CTRL, eq. 6), [N, width_in] -> [N, M, width]."""

    def __init__(self, width_in: int, subspaces: int, width: int, normalise: bool) -> None:
        super().__init__()
        self.subspaces, self.normalise = subspaces, normalise
        self.project = nn.Linear(width_in, subspaces * width)

    def forward(self, x: Tensor) -> Tensor:
        """Sub-vectors [N, M, width], of length 1 if `normalise`."""
        parts: Tensor = self.project(x).unflatten(-1, (self.subspaces, -1))
        return functional.normalize(parts, dim=-1) if self.normalise else parts


class _MaxSim(torch.autograd.Function):
    """Both max-sim matrices in row blocks, with the winners kept as bytes instead of every product.

    Plain autograd would keep M² matrices of N x N floats; this keeps two bytes for each pair and sub-space, and
    one product serves the maximum over n and the maximum over m alike.
    """

    @staticmethod
    def forward(ctx: Any, text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        (rows, subspaces, _), columns = text.shape, len(table)
        by_text, by_table = text.new_zeros(rows, columns), text.new_zeros(rows, columns)
        best_n, best_m = (torch.zeros(subspaces, rows, columns, dtype=torch.uint8, device=text.device) for _ in "nm")
        for start in range(0, rows, BLOCK):
            block = slice(start, start + BLOCK)
            highest = text.new_full((subspaces, len(text[block]), columns), float("-inf"))
            for m in range(subspaces):
                value = torch.full_like(highest[0], float("-inf"))
                for n in range(subspaces):
                    # One contiguous product at a time: a maximum with its place over a strided dimension is slow.
                    products = text[block, m] @ table[:, n].T
                    _raise(value, best_n[m, block], products, n)
                    _raise(highest[n], best_m[n, block], products, m)
                by_text[block] += value
            by_table[block] = highest.sum(0)
        ctx.save_for_backward(text, table, best_n, best_m)
        return by_text.div_(subspaces), by_table.div_(subspaces).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        text, table, best_n, best_m = ctx.saved_tensors
        rows, subspaces, _ = text.shape
        text_gradient, table_gradient = torch.zeros_like(text), torch.zeros_like(table)
        for start in range(0, rows, BLOCK):
            block = slice(start, start + BLOCK)
            by_text, by_table = (of[block].div(subspaces).contiguous() for of in (gradients[0], gradients[1].T))
            # Comparisons give floats: to multiply by a boolean takes a CPU ten times as long.
            weight, won = torch.empty_like(by_text), torch.empty_like(by_text)
            winners = best_m[:, block].to(text.dtype)
            for m in range(subspaces):
                winner = best_n[m, block].to(text.dtype)
                for n in range(subspaces):
                    torch.eq(winner, n, out=weight).mul_(by_text)
                    weight.addcmul_(by_table, torch.eq(winners[n], m, out=won))
                    text_gradient[block, m] += weight @ table[:, n]
                    table_gradient[:, n] += weight.T @ text[block, m]
        return text_gradient, table_gradient


def _raise(highest: Tensor, places: Tensor, products: Tensor, place: int) -> None:
    """Where products are above the highest ones so far, take them over, and write down their place.

    Places come in rising order, so that the higher one of two is the later one: a maximum of bytes takes a CPU a
    hundredth of the time of a fill under a mask.
    """
    if place:
        torch.maximum(places, torch.gt(products, highest).view(torch.uint8).mul_(place), out=places)
    torch.maximum(highest, products, out=highest)


def max_sim(text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Both similarity matrices of sub-vectors [n, M, width] and [N, M, width], divided by M (CTRL, eq. 7).

    Where the texts are the part of a batch that one process holds, and the tabular rows the whole of it, one product
    still serves both matrices.

    Returns:
        [n, N] and [N, n]. Text-anchored: row i, column j is mean_m max_n <text_im, table_jn>. Table-anchored: row i,
        column j is mean_m max_n <table_im, text_jn>. The two are not each other's transpose.
    """
    by_text, by_table = _MaxSim.apply(text, table)  # type: ignore[no-untyped-call]
    return by_text, by_table


def info_nce(text_anchored: Tensor, table_anchored: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Half the sum of the two in-batch cross-entropies at temperature τ (CTRL, eq. 3 to 5).

    Args:
        text_anchored: Similarities [N, N], texts by rows.
        table_anchored: Similarities [N, N], tabular rows by rows.
        temperature: τ.
        same: Boolean [N, N]: pairs that are equal and so no negatives; the diagonal is ignored.
    """
    target = torch.arange(len(text_anchored), device=text_anchored.device)
    losses = []
    for similarity in (text_anchored, table_anchored):
        logits = similarity / temperature
        if same is not None:
            off = same & ~torch.eye(len(target), dtype=torch.bool, device=same.device)
            logits = logits.masked_fill(off, float("-inf"))
        losses.append(functional.cross_entropy(logits, target))
    return 0.5 * (losses[0] + losses[1])


def shared_info_nce(
    text_anchored: Tensor,
    table_anchored: Tensor,
    temperature: float,
    same: Tensor | None,
    mine: slice,
    gather: Callable[[Tensor], Tensor],
) -> Tensor:
    """One process's part of `info_nce` over a batch that several share; the parts' sum is the whole batch's loss.

    A process holds the similarities of its n texts with all N tabular rows. Those are whole rows of the text-anchored
    softmax, and of the table-anchored one the part whose sum of exponentials is brought together with the others'.

    Args:
        text_anchored: Similarities [n, N], texts by rows.
        table_anchored: Similarities [N, n], tabular rows by rows.
        temperature: τ.
        same: Boolean [n, N]: pairs that are equal and so no negatives; the positive is ignored.
        mine: Which of the N pairs are this process's n.
        gather: Every process's tensor of one shape in a new first dimension, through which gradients flow back.
    """
    by_text, by_table = text_anchored / temperature, table_anchored.T / temperature
    place = torch.arange(by_text.shape[0], device=by_text.device)
    target = place + mine.start
    if same is not None:
        off = same.index_put((place, target), torch.tensor(False, device=same.device))
        # Not infinity: a part may hold nothing but masked pairs, and its sum would have no gradient.
        by_text, by_table = (logits.masked_fill(off, MASKED) for logits in (by_text, by_table))
    sums = gather(torch.logsumexp(by_table, 0)).logsumexp(0)
    text_loss = functional.cross_entropy(by_text, target, reduction="sum")
    table_loss = (sums[mine] - by_table[place, target]).sum()
    return 0.5 * (text_loss + table_loss) / by_text.shape[1]


def equal_pairs(keys: Tensor, others: Tensor | None = None) -> Tensor:
    """Which pairs are one and the same: boolean [n, N] of integer keys [n, K] and [N, K], or those of one batch."""
    others = keys if others is None else others
    # Column by column: a reduction over so short a dimension takes a CPU five times as long.
    found = torch.ones(len(keys), len(others), dtype=torch.bool, device=keys.device)
    for mine, theirs in zip(keys.unbind(1), others.unbind(1), strict=True):
        found &= mine.unsqueeze(1) == theirs
    return found
