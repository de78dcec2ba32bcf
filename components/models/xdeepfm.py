"""xDeepFM: a compressed interaction network beside an MLP (Lian et al. 2018, arXiv 1803.05170)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, FirstOrder, mlp


class CompressedInteraction(nn.Module):
    """The CIN (section 3.2): [batch, F, dim] -> [batch, sum of its layers' maps].

    Eq. 6: row h of layer k is Σ_ij W_hij (row i of layer k - 1 ⊙ row j of the input), without an activation; then
    every row is summed over `dim`.
    """

    def __init__(self, fields: int, maps: tuple[int, ...]) -> None:
        super().__init__()
        before = (fields, *maps[:-1])
        self.compress = nn.ModuleList(
            nn.Linear(rows * fields, out, bias=False) for rows, out in zip(before, maps, strict=True)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Sums of every layer's rows."""
        first = rows.transpose(1, 2)  # [batch, dim, F]: a layer is one product over the last axis
        current, pooled = first, []
        for layer in self.compress:
            crossed = current.unsqueeze(3) * first.unsqueeze(2)
            current = layer(crossed.flatten(2))
            pooled.append(current.sum(1))
        return torch.cat(pooled, dim=1)


class XDeepFM(CollaborativeModel):
    """Section 3.3: sigmoid of a linear part over the raw fields, the CIN's sums and an MLP's last layer.

    Representation: first-order weights (additive), the CIN's sums, the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        self.first_order = FirstOrder(self.layout)
        self.cin = CompressedInteraction(self.fields, config.cin)
        self.deep = mlp(self.fields * config.embedding_dim, config)
        self.set_width(self.fields + sum(config.cin) + config.hidden[-1], additive=self.fields)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[first order, CIN, MLP] of shape [batch, F + sum(cin) + hidden[-1]]."""
        return torch.cat([self.first_order(x), self.cin(embedded), self.deep(embedded.flatten(1))], dim=1)
