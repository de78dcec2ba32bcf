"""FLIP's three tasks: tell hidden words with the table's help, hidden ids with the text's, and pairs from the others.

After the authors' released code (arXiv 2310.19453). The collaborative side is any representation [n, table width], the
textual side the PLM's states of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.objectives.words import word_loss


class InstanceHead(nn.Module):
    """One side of the contrast between instances: linear, GELU, linear, dropout, residual, layer norm."""

    def __init__(self, width: int, projection: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(width, projection)
        self.inner = nn.Linear(projection, projection)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(projection)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors [n, projection] of [n, width]."""
        entered = self.enter(x)
        found: Tensor = self.norm(entered + self.dropout(self.inner(functional.gelu(entered))))
        return found


class TokenHead(nn.Module):
    """Masked language modelling with the clean table's help: [state; table] -> linear, tanh, dropout -> words.

    Args:
        width: Of a token's state.
        table_width: Of the collaborative representation.
        decoder: Where the words' rows [words, d] begin: the PLM's own decoder, or its word embeddings.
        bias: Where the words' biases [words] begin.
        dropout: Before the decoder.
        tied: Whether the rows are trained as part of the PLM and handed in, so that the head holds none.
    """

    def __init__(self, width: int, table_width: int, decoder: Tensor, bias: Tensor, dropout: float, tied: bool) -> None:
        super().__init__()
        self.fuse = nn.Linear(width + table_width, decoder.shape[1])
        self.dropout = nn.Dropout(dropout)
        self.decoder = None if tied else nn.Parameter(decoder.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, states: Tensor, table: Tensor, truth: Tensor, words: Tensor | None = None) -> Tensor:
        """The sum of the cross-entropies of hidden tokens.

        Args:
            states: Their states [h, width].
            table: The table vectors of their rows [h, table width].
            truth: Their words [h], as places in the vocabulary.
            words: The words' rows [words, d], where the head is tied.

        Raises:
            ValueError: the head is tied, and is not given the words' rows.
        """
        rows = words if self.decoder is None else self.decoder
        if rows is None:
            raise ValueError("a tied head needs the words' rows")
        fused = self.dropout(torch.tanh(self.fuse(torch.cat([states, table], dim=1))))
        return word_loss(fused, rows, self.bias, truth)


class FieldHead(nn.Module):
    """Masked tabular modelling with the clean text's help: one query of the masked row attends over the tokens.

    A single head whose keys and values are the states themselves. What it reads, beside the masked row itself, becomes
    one state for each field.

    Args:
        width: Of a token's state.
        table_width: Of the collaborative representation.
        fields: Number of fields F.
        state_width: Of a field's state.
        mask_padding: Leave padding out; the released code does not.
        scale: Divide scores by the root of `width`; the released code does not.
    """

    def __init__(
        self, width: int, table_width: int, fields: int, state_width: int, mask_padding: bool, scale: bool
    ) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(table_width, width), nn.LayerNorm(width)
        self.output = nn.Linear(width + table_width, fields * state_width)
        self.fields, self.mask_padding, self.factor = fields, mask_padding, width**-0.5 if scale else 1.0

    def read(self, table: Tensor, states: Tensor, there: Tensor) -> Tensor:
        """What masked rows' vectors [n, table width] read of token states [n, T, width], there [n, T]; [n, width]."""
        query = self.norm(self.query(table))
        scores = torch.einsum("nw,ntw->nt", query, states) * self.factor
        if self.mask_padding:
            scores = scores.masked_fill(~there, float("-inf"))
        return torch.einsum("nt,ntw->nw", scores.softmax(1), states)

    def forward(self, table: Tensor, read: Tensor) -> Tensor:
        """States [n, F, state width] of the masked rows' vectors and of what they have read."""
        found: Tensor = self.output(torch.cat([read, table], dim=1))
        return found.view(len(found), self.fields, -1)
