"""DCN: explicit crosses of bounded degree (Wang et al. 2017, arXiv 1708.05123)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp


class CrossLayer(nn.Module):
    """Eq. 3: x_{l+1} = x_0 (x_l · w_l) + b_l + x_l, all of shape [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next x for the network's first and its current one."""
        return torch.addcmul(x + self.bias, first, self.weight(x))


class DCN(CollaborativeModel):
    """Cross network (eq. 3) beside an MLP (eq. 4), side by side before the output (eq. 5).

    Representation: the last cross layer, then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        width = self.fields * config.embedding_dim
        self.cross = nn.ModuleList(self.cross_layer(width, config) for _ in range(config.cross_layers))
        self.deep = mlp(width, config)
        self.set_width(width + config.hidden[-1])

    def cross_layer(self, width: int, config: BackboneConfig) -> nn.Module:
        """One layer of the cross network, called with the network's first row and its current one."""
        del config
        return CrossLayer(width)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[crosses, MLP] of shape [batch, F * dim + hidden[-1]]."""
        del x
        crossed = first = embedded.flatten(1)
        for layer in self.cross:
            crossed = layer(first, crossed)
        return torch.cat([crossed, self.deep(first)], dim=1)
