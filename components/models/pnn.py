"""PNN: products of the fields' rows before the MLP (Qu et al. 2016, arXiv 1611.00144)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp, pairs


class PNN(CollaborativeModel):
    """An MLP (eq. 1 to 3) over the linear signals z, the rows themselves, and the quadratic signals p.

    Inner (IPNN, section III-B): <f_i, f_j> for every pair i < j. Outer (OPNN, section III-C): f_Σ f_Σᵀ with
    f_Σ = Σ f_i, the paper's superposition, flattened. `product` takes either or both. Representation: the MLP's
    last layer.
    """

    left: Tensor
    right: Tensor

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        left, right = pairs(self.fields)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.inner = config.product in {"inner", "both"}
        self.outer = config.product in {"outer", "both"}
        products = self.inner * len(left) + self.outer * config.embedding_dim**2
        self.deep = mlp(self.fields * config.embedding_dim + products, config)
        self.set_width(config.hidden[-1])

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The MLP's last layer, [batch, hidden[-1]]."""
        del x
        signals = [embedded.flatten(1)]
        if self.inner:
            signals.append((embedded @ embedded.transpose(1, 2))[:, self.left, self.right])
        if self.outer:
            total = embedded.sum(1)
            signals.append((total.unsqueeze(2) * total.unsqueeze(1)).flatten(1))
        output: Tensor = self.deep(torch.cat(signals, dim=1))
        return output
