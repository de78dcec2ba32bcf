"""Rows for ids: one table and one gather for all fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import PADDING, RESERVED_CODES, InputLayout

#: Small enough that a first step sees near-linear sigmoids, large enough to break symmetry.
INITIAL_STD = 0.01
#: From this many numbers on, a table's gradient holds only the rows that a batch read.
SPARSE_FROM = 8_000_000


class FieldEmbedding(nn.Module):
    """One embedding row for each field: ids [batch, W] -> [batch, F, dim].

    A multi field's row is the mean over its slots that are not padding. The rows of unknown, missing and masked
    values start at zero, so that a value that training never shows stays neutral. The table holds rows for what only
    the events of a history have, too; history slots are not read here.
    Large tables have sparse gradients: the cost of a step does not grow with the vocabulary.
    """

    pooling: Tensor
    columns: Tensor

    def __init__(self, layout: InputLayout, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.fields = len(layout.fields)
        sparse = layout.vocabulary_size * dim >= SPARSE_FROM
        # The rows come from our own reset: the layer's own would draw each of them a second time.
        weight = torch.empty(layout.vocabulary_size, dim)
        self.table = nn.Embedding(layout.vocabulary_size, dim, padding_idx=PADDING, sparse=sparse, _weight=weight)
        slots = [(field, column) for field in layout.fields for column in range(field.start, field.stop)]
        self.plain = len(slots) == self.fields
        names = {field.name: place for place, field in enumerate(layout.fields)}
        pooling = torch.zeros(self.fields, len(slots))
        for place, (field, _) in enumerate(slots):
            pooling[names[field.name], place] = 1.0
        self.register_buffer("columns", torch.tensor([column for _, column in slots]), persistent=False)
        self.register_buffer("pooling", pooling, persistent=False)
        self._reset(layout)

    def _reset(self, layout: InputLayout) -> None:
        with torch.no_grad():
            self.table.weight.normal_(std=INITIAL_STD)
            self.table.weight[PADDING] = 0.0
            for field in (*layout.fields, *layout.history):
                self.table.weight[[field.offset + code for code in RESERVED_CODES]] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Rows of shape [batch, F, dim] for ids [batch, W]."""
        ids = x.index_select(1, self.columns)
        rows: Tensor = self.table(ids)
        if self.plain:
            return rows
        # The padding row is zero: a sum over all slots is the sum over the filled ones.
        filled = (ids != PADDING).to(rows.dtype) @ self.pooling.T
        return (self.pooling @ rows) / filled.clamp(min=1.0).unsqueeze(-1)
