"""FiBiNET: fields by importance, bilinear pairs (Huang, Zhang and Zhang 2019, arXiv 1905.09433)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, FirstOrder, mlp, pairs


class Senet(nn.Module):
    """Section 3.3: z = mean of each row, a = ReLU(W_2 ReLU(W_1 z)), v_i = a_i e_i; [batch, F, dim] in and out."""

    def __init__(self, fields: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, fields // reduction)
        self.squeeze = nn.Linear(fields, inner, bias=False)
        self.excite = nn.Linear(inner, fields, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows weighed by their field's importance."""
        weights = torch.relu(self.excite(torch.relu(self.squeeze(rows.mean(2)))))
        return rows * weights.unsqueeze(2)


class Bilinear(nn.Module):
    """Section 3.4: p_ij = (v_i W) ⊙ v_j for i < j; [batch, F, dim] -> [batch, F (F - 1) / 2, dim].

    W is shared by all pairs ('all'), by the pairs of a left field ('each'), or by none ('interaction').
    """

    left: Tensor
    right: Tensor

    def __init__(self, fields: int, config: BackboneConfig) -> None:
        super().__init__()
        left, right = pairs(fields)
        matrices = {"all": 1, "each": fields, "interaction": len(left)}[config.bilinear]
        self.by_pair = config.bilinear == "interaction"
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.weight = nn.Parameter(torch.empty(matrices, config.embedding_dim, config.embedding_dim))
        for matrix in self.weight:
            nn.init.xavier_normal_(matrix)

    def forward(self, rows: Tensor) -> Tensor:
        """Products of all pairs."""
        turned = rows[:, self.left] if self.by_pair else rows
        turned = (turned.unsqueeze(2) @ self.weight).squeeze(2)
        return (turned if self.by_pair else turned[:, self.left]) * rows[:, self.right]


class FiBiNET(CollaborativeModel):
    """Sections 3.5 to 3.7: first-order weights plus an MLP over the bilinear pairs of the rows and of SENET's rows.

    One bilinear layer serves both. Representation: first-order weights (additive), then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        if self.fields < 2:
            raise UserError("backbone 'fibinet' reads pairs of fields and the spec has one; choose another backbone")
        self.first_order = FirstOrder(self.layout)
        self.senet = Senet(self.fields, config.reduction)
        self.bilinear = Bilinear(self.fields, config)
        self.deep = mlp(self.fields * (self.fields - 1) * config.embedding_dim, config)
        self.set_width(self.fields + config.hidden[-1], additive=self.fields)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[first order, MLP] of shape [batch, F + hidden[-1]]."""
        products = torch.cat([self.bilinear(embedded), self.bilinear(self.senet(embedded))], dim=1)
        return torch.cat([self.first_order(x), self.deep(products.flatten(1))], dim=1)
