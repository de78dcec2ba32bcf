"""PNN: products of the fields' rows before the MLP (Qu et al. 2016, arXiv 1611.00144)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp, pairs
from components.models.folding import Folding, SplitLinear


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

    def fold(self) -> Folding:
        """For one request the MLP's first layer is linear in an item's rows, but for what the item alone decides."""
        return FoldedPNN(self)


class FoldedPNN(Folding):
    """Parts of an item: its rows side by side [n, item fields * dim], and its own part of the first layer.

    A product of two of the item's rows is the item's, one of two of the request's rows is the request's; one of each is
    linear in the item's row, by a matrix that the request gives: [item fields * dim, hidden[0]].
    """

    def __init__(self, model: PNN) -> None:
        super().__init__(model)
        first, fields, dim = model.deep[0], model.fields, model.config.embedding_dim
        assert isinstance(first, nn.Linear)  # noqa: S101  (so `mlp` begins)
        weight, place = first.weight.detach(), fields * dim
        # <f_i, f_j> is symmetric: half of its weight on either side of the diagonal, as for f_Σ f_Σᵀ.
        inner = torch.zeros(len(weight), fields, fields)
        if model.inner:
            inner[:, model.left, model.right] = 0.5 * weight[:, place : place + len(model.left)]
            inner += inner.transpose(1, 2).clone()
            place += len(model.left)
        outer = weight[:, place:].reshape(-1, dim, dim) if model.outer else torch.zeros(len(weight), dim, dim)
        self.linear = SplitLinear(weight[:, : fields * dim], first.bias, self.sides)
        #: [dim * dim, hidden[0]], symmetric in both.
        self.outer = nn.Parameter(0.5 * (outer + outer.transpose(1, 2)).flatten(1).T)
        request, item = self.sides.request, self.sides.item
        self.among = nn.ParameterList(inner[:, places][:, :, places].flatten(1).T for places in (request, item))
        #: [request fields, item fields * hidden[0]], for both orders of a pair.
        self.between = nn.Parameter(2 * inner[:, request][:, :, item].permute(1, 2, 0).flatten(1))
        self.rest = model.deep[1:]
        self.output = nn.Parameter(model.head.weight.detach().T)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        rows: Tensor = self.item_rows(ids)
        return rows.flatten(1), self.linear.item(rows) + self._products(rows, 1)

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        of_item, hidden = parts
        rows: Tensor = self.request_rows(ids)
        own = self.linear.request(rows) + self._products(rows, 0)
        fields, dim = len(self.sides.item), rows.shape[2]
        inner = (rows[0].T @ self.between).reshape(dim, fields, -1).transpose(0, 1)
        outer = 2 * (rows.sum(1) @ self.outer.reshape(dim, -1)).reshape(1, dim, -1)
        met = (inner + outer).reshape(fields * dim, -1)
        share: Tensor = self.rest(own + hidden + of_item @ met) @ self.output
        return share

    def _products(self, rows: Tensor, side: int) -> Tensor:
        """The share [n, hidden[0]] of products among the rows [n, fields of one side, dim]."""
        total = rows.sum(1)
        inner: Tensor = (rows @ rows.transpose(1, 2)).flatten(1) @ self.among[side]
        return inner + (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1) @ self.outer
