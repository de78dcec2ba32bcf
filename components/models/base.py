"""The one interface of all collaborative models, and the parts that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.config import BackboneConfig
from components.models.embedding import FieldEmbedding
from components.models.folding import Folding
from components.models.kernels import Dropout

__all__ = ["BackboneConfig", "CollaborativeModel", "FirstOrder", "mlp", "pairs"]


class CollaborativeModel(nn.Module, ABC):
    """A CTR model over fields: `representation` [batch, width], then one linear output.

    A backbone builds its layers, calls `set_width`, and says in `interact` how the fields' rows meet. Terms that
    its paper adds up without a weight (first-order weights, the factorisation machine) are the first `additive`
    columns of the representation: the output weighs them with 1 to begin with, so that a fresh backbone is the
    paper's, and alignment sees them too.
    """

    #: Whether the input holds the history's columns. A model that does not read them does not pay for them.
    reads_history: ClassVar[bool] = False

    width: int
    additive: int
    head: nn.Linear

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__()
        layout = layout if self.reads_history else layout.without_history()
        self.layout = layout
        self.config = config
        self.fields = len(layout.fields)
        self.embedding = FieldEmbedding(layout, config.embedding_dim)

    @abstractmethod
    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The representation [batch, width] of the fields' rows [batch, F, dim] and their ids [batch, W]."""

    def fold(self) -> Folding | None:
        """The model cut into a request's and an item's part, for serving; None where the backbone knows no way.

        The model must be in eval mode, each batch norm folded into the linear layer before it.
        """
        return None

    def representation(self, x: Tensor) -> Tensor:
        """What the output layer reads, [batch, width], for ids [batch, W]."""
        return self.interact(self.embedding(x), x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch] for ids [batch, W]."""
        return self.logits(self.representation(x))

    def logits(self, representation: Tensor) -> Tensor:
        """Logits [batch] for representations [batch, width]."""
        output: Tensor = self.head(representation)
        return output.squeeze(-1)

    def set_width(self, width: int, additive: int = 0) -> None:
        """Declare the representation's width, and make the output layer."""
        self.width, self.additive = width, additive
        self.head = nn.Linear(width, 1)
        self.reset_head()

    def reset_head(self) -> None:
        """Put a fresh linear output on the representation (CTRL, section 3.4)."""
        self.head.reset_parameters()
        with torch.no_grad():
            self.head.weight[:, : self.additive] = 1.0
            self.head.bias.zero_()


class FirstOrder(FieldEmbedding):
    """The weight of each field's id alone: ids [batch, W] -> [batch, F]; zero at the start."""

    def __init__(self, layout: InputLayout) -> None:
        super().__init__(layout, 1)
        nn.init.zeros_(self.table.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Weights of shape [batch, F]."""
        return super().forward(x).squeeze(-1)


def mlp(width: int, config: BackboneConfig) -> nn.Sequential:
    """Hidden layers from `width` to config.hidden[-1]: linear, batch norm, ReLU, dropout."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise((width, *config.hidden)):
        layers.append(nn.Linear(inner, outer))
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(outer))
        # In place: neither the linear layer nor batch norm needs what it gave.
        layers += [nn.ReLU(inplace=True), Dropout(config.dropout)]
    return nn.Sequential(*layers)


def pairs(fields: int) -> tuple[Tensor, Tensor]:
    """Indices i and j of every pair i < j of fields, each of shape [F (F - 1) / 2]."""
    left, right = torch.triu_indices(fields, fields, offset=1)
    return left, right
