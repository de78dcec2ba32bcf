"""Parts of a training step with their gradients written out: fewer passes over memory than autograd would make.

On a CPU a step of a click model is bound by many small products and by copies between them, not by arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FieldAttention(torch.autograd.Function):
    """Self-attention over the fields in its merged form, with the residual and the ReLU (AutoInt, eq. 5 to 8).

    Scores are bilinear in two rows, so that a head's query and key weights are one matrix; and a head's weighted sum
    of values is its value weight times its weighted sum of rows. All heads of an impression then share each product,
    and nothing is laid out by head. The softmax runs over the first of its two dimensions, which keeps the second,
    wider one in a register.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, score: Tensor, value: Tensor, residual: Tensor) -> Tensor:
        """Interacted rows [batch, F, attention_dim].

        Args:
            ctx: Where autograd keeps what the gradient needs.
            rows: [batch, F, width].
            score: W_qᵀ W_k of each head, [width, heads * width].
            value: W_vᵀ of each head in a block of its own, [heads * width, attention_dim].
            residual: W_resᵀ, [width, attention_dim].
        """
        batch, fields, width = rows.shape
        flat = rows.reshape(batch * fields, width)
        asked = (flat @ score).view(batch, -1, width)
        # [batch, F, F * heads]: for each row the share that it has in what each row and head gathers.
        shares = torch.softmax(torch.bmm(rows, asked.transpose(1, 2)), dim=1)
        gathered = torch.bmm(shares.transpose(1, 2), rows).view(batch * fields, -1)
        output = torch.mm(flat, residual).addmm_(gathered, value).relu_()
        ctx.save_for_backward(rows, score, value, residual, asked, shares, gathered, output)
        return output.view(batch, fields, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of rows, score, value and residual."""
        rows, score, value, residual, asked, shares, gathered, output = ctx.saved_tensors
        batch, fields, width = rows.shape
        flat = rows.reshape(batch * fields, width)
        of_output = torch.ops.aten.threshold_backward(gradients[0].reshape(output.shape), output, 0)
        of_value, of_residual = gathered.T @ of_output, flat.T @ of_output
        # The two widest gradients take the places of what they are the gradients of, which lie in the cache: new memory
        # costs more than these products. A second backward through the same graph is refused by autograd.
        of_gathered = torch.mm(of_output, value.T, out=gathered).view(batch, -1, width)
        of_shares = torch.bmm(rows, of_gathered.transpose(1, 2))
        of_logits = torch.ops.aten._softmax_backward_data(of_shares, shares, 1, rows.dtype)
        of_rows = torch.mm(of_output, residual.T).view(batch, fields, width)
        of_rows.baddbmm_(shares, of_gathered).baddbmm_(of_logits, asked)
        of_asked = torch.bmm(of_logits.transpose(1, 2), rows, out=asked).view(batch * fields, -1)
        of_rows.view(batch * fields, width).addmm_(of_asked, score.T)
        return of_rows, flat.T @ of_asked, of_value, of_residual


class Dropout(nn.Dropout):
    """Dropout whose masks on a CPU come from 16 random bits each, four to a draw: torch draws each alone.

    The rate is then a multiple of 2^-16; what is kept is scaled to match.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As torch's."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(max(1, round(self.p * 2**16)), 2**16 - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        # Compared as floats, and to floats: booleans cost a CPU more than the rest together.
        kept = bits[: x.numel()].view(x.shape).to(torch.float32)
        torch.ge(kept, dropped - 2**15, out=kept)
        return x * kept.mul_(2**16 / (2**16 - dropped)).to(x.dtype)
