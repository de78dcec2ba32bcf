"""AutoInt: fields attend to each other (Song et al. 2019, arXiv 1810.11921)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.folding import Folding, Sides, SplitMlp, output_weights
from components.models.kernels import FieldAttention


class InteractingLayer(nn.Module):
    """One multi-head self-attention layer over the fields: [batch, F, width] -> [batch, F, attention_dim].

    Eq. 5: scores of fields m and k are softmax_k <W_q e_m, W_k e_k>, not scaled; eq. 6: their weighted sum of
    W_v e_k; eq. 7: heads side by side; eq. 8: ReLU of the sum with W_res e_m.
    """

    def __init__(self, width: int, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        # Queries, keys, values, residual.
        self.project = nn.Linear(width, 4 * config.attention_dim, bias=False)

        width, attention = self.project.in_features, config.attention_dim
        #: Many heads would make the merged form's products wider than those by head.
        self.merges = config.heads * width <= 2 * attention

    def forward(self, rows: Tensor) -> Tensor:
        """Interacted rows [batch, F, attention_dim]."""
        if self.merges:
            found: Tensor = FieldAttention.apply(rows, *self.merged())  # type: ignore[no-untyped-call]
            return found
        query, key, value, residual = (functional.linear(rows, part) for part in self.project.weight.chunk(4))
        query, key, value = (self._by_head(part) for part in (query, key, value))
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return torch.relu(attended + residual)

    def merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Score, value and residual weights as `FieldAttention` and `MergedLayer` read them."""
        query, key, value, residual = self.project.weight.chunk(4)
        query, key, value = (part.unflatten(0, (self.heads, -1)) for part in (query, key, value))  # type: ignore[no-untyped-call]
        score = torch.cat(list(query.transpose(1, 2) @ key), dim=1)
        return score, torch.block_diag(*value.transpose(1, 2)), residual.T  # type: ignore[no-untyped-call]

    def served(self) -> nn.Module:
        """The merged form, where it is the cheaper one."""
        return MergedLayer(self) if self.merges else self

    def _by_head(self, rows: Tensor) -> Tensor:
        """[batch, F, attention_dim] -> [batch, heads, F, attention_dim / heads]."""
        split: Tensor = rows.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


class MergedLayer(nn.Module):
    """An interacting layer as it is served: four products of whole batches and two of single impressions.

    A score is bilinear in two rows, <W_q e_m, W_k e_k> = e_m (W_qᵀ W_k) e_k, and a head's weighted sum of values is
    W_v times its weighted sum of rows. So all heads' scores of an impression are one product, and so are their sums;
    queries, keys and values are never laid out by head, which costs more than the sums themselves.
    """

    def __init__(self, layer: InteractingLayer) -> None:
        super().__init__()
        self.heads = layer.heads
        self.score, self.value, self.residual = (nn.Parameter(part.detach().contiguous()) for part in layer.merged())

    def forward(self, rows: Tensor) -> Tensor:
        """Interacted rows [batch, F, attention_dim]."""
        batch, fields, width = rows.shape
        weights = torch.softmax(self.scores(rows), dim=-1)
        mixed = (weights @ rows).reshape(batch * fields, -1)
        residual = rows.reshape(batch * fields, width) @ self.residual
        return torch.relu(torch.addmm(residual, mixed, self.value)).reshape(batch, fields, -1)

    def scores(self, rows: Tensor) -> Tensor:
        """Scores [batch, F * heads, F]: of each field and head, over the fields."""
        batch, fields, width = rows.shape
        return (rows @ self.score).reshape(batch, fields * self.heads, width) @ rows.transpose(1, 2)


class AutoInt(CollaborativeModel):
    """AutoInt with an MLP beside the attention (AutoInt+, section 5.5).

    Representation: the attention's rows side by side (eq. 9), then the MLP's last hidden layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        widths = [config.embedding_dim] + [config.attention_dim] * (config.layers - 1)
        self.attention = nn.Sequential(*(InteractingLayer(width, config) for width in widths))
        self.deep = mlp(self.fields * config.embedding_dim, config)
        self.set_width(self.fields * config.attention_dim + config.hidden[-1])

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[attention, MLP] of shape [batch, F * attention_dim + hidden[-1]]."""
        del x
        return torch.cat([self.attention(embedded).flatten(1), self.deep(embedded.flatten(1))], dim=1)

    def fold(self) -> Folding:
        """The first layer's scores and sums over the fields of one side are known before the sides meet."""
        return FoldedAutoInt(self)


class SplitAttention(nn.Module):
    """The first interacting layer, from what each side's fields give among themselves.

    What a row gathers from the fields of its own side is one weighted mean with the logarithm of a weight (the sum of
    their exponentials): the softmax over all fields is the one over that mean and the other side's fields. So the
    request's rows look at each item's fields and at one mean of their own, and an item's rows the other way round.
    """

    def __init__(self, layer: InteractingLayer, sides: Sides) -> None:
        super().__init__()
        self.layer, self.sides, self.heads = MergedLayer(layer), sides, layer.heads

    def alone(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one side's rows [n, f, width]: log weights [n, f, heads], means, values by head, and residuals.

        Means and residuals are [n, f, attention_dim]; values are [n, heads, 1 + f, attention_dim], zero in the other
        heads' columns, and their first row, which stands for the mean, is zero altogether.
        """
        count, fields, _ = rows.shape
        scores = self.layer.scores(rows)
        mixed = (torch.softmax(scores, dim=-1) @ rows).reshape(count, fields, -1)
        weights = torch.logsumexp(scores, dim=-1).reshape(count, fields, self.heads)
        by_head = torch.stack([rows @ part for part in self.layer.value.chunk(self.heads)], dim=1)
        values = functional.pad(by_head, (0, 0, 1, 0))
        return weights, mixed @ self.layer.value, values, rows @ self.layer.residual

    def item(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Parts of items' rows [n, item fields, width]: rows and log weights, means, values, residuals."""
        weights, means, values, residual = self.alone(rows)
        return torch.cat([rows.flatten(1), weights.flatten(1)], dim=1), means, values.flatten(1, 2), residual

    def forward(self, rows: Tensor, keys: Tensor, means: Tensor, values: Tensor, residual: Tensor) -> Tensor:
        """Interacted rows [n, F, attention_dim] of a request's rows [1, request fields, width] and items' parts."""
        own = self.alone(rows)
        request = self._request(rows, own, keys, values)
        item = self._item(rows, own, keys, means)
        return torch.relu(self.sides.join(request, item + residual))

    def _request(self, rows: Tensor, own: tuple[Tensor, ...], keys: Tensor, values: Tensor) -> Tensor:
        """What the request's rows gather, and their residuals, [n, request fields, attention_dim]."""
        weights, means, _, residual = own
        fields, others, heads = len(self.sides.request), len(self.sides.item), self.heads
        # Logits of an item are linear in its rows: [others * width (+ log weights), fields * heads * (1 + others)].
        turned = (rows[0] @ self.layer.score).reshape(fields, heads, -1).permute(2, 0, 1)
        each = turned.unsqueeze(0).unsqueeze(-1) * torch.eye(others).reshape(others, 1, 1, 1, others)
        matrix = functional.pad(each, (1, 0)).reshape(others * rows.shape[2], -1)
        matrix = functional.pad(matrix, (0, 0, 0, others * heads))
        known = functional.pad(weights[0].unsqueeze(-1), (0, others)).flatten()
        logits = torch.addmm(known, keys, matrix).reshape(-1, fields * heads, 1 + others)
        shares = torch.softmax(logits, dim=-1)
        # The request's own means and residuals are the same for every item: one product for all of them.
        apart = means[0].reshape(fields, heads, 1, -1) * torch.eye(heads).reshape(1, heads, heads, 1)
        apart = apart.reshape(fields, heads, 1, 1, -1) * torch.eye(fields).reshape(fields, 1, 1, fields, 1)
        apart = functional.pad(apart, (0, 0, 0, 0, 0, others)).reshape(fields * heads * (1 + others), -1)
        gathered = torch.addmm(residual.flatten(), shares.flatten(1), apart).reshape(keys.shape[0], fields, -1)
        return gathered + shares.reshape(keys.shape[0], fields, heads * (1 + others)) @ values

    def _item(self, rows: Tensor, own: tuple[Tensor, ...], keys: Tensor, means: Tensor) -> Tensor:
        """What the items' rows gather, [n, item fields, attention_dim]."""
        fields, others, heads = len(self.sides.item), len(self.sides.request), self.heads
        width = rows.shape[2]
        turned = (rows[0] @ torch.cat([part.T for part in self.layer.score.chunk(heads, 1)], dim=1)).T
        turned = turned.reshape(heads, width, others).transpose(0, 1)  # [width, heads, others]
        each = turned.reshape(1, width, 1, heads, others) * torch.eye(fields).reshape(fields, 1, fields, 1, 1)
        matrix = functional.pad(each, (1, 0)).reshape(fields * width, -1)
        # The log weights lie behind the rows among the keys, and pass as they are.
        passed = functional.pad(torch.eye(fields * heads).unsqueeze(-1), (0, others)).reshape(fields * heads, -1)
        logits = (keys @ torch.cat([matrix, passed])).reshape(-1, fields, heads, 1 + others)
        shares = torch.softmax(logits, dim=-1)
        gathered = shares.reshape(-1, heads * (1 + others)) @ own[2].flatten(1, 2)[0]
        of_own: Tensor = shares[..., :1] * means.unflatten(2, (heads, -1))  # type: ignore[no-untyped-call]
        return gathered.reshape(of_own.shape[0], fields, -1) + of_own.flatten(2)


class FoldedAutoInt(Folding):
    """Parts of an item: those of the first layer (`SplitAttention.item`), and its part of the MLP."""

    def __init__(self, model: AutoInt) -> None:
        super().__init__(model)
        first, *rest = (layer for layer in model.attention if isinstance(layer, InteractingLayer))
        self.first = SplitAttention(first, self.sides)
        self.rest = nn.Sequential(*(layer.served() for layer in rest))
        attended, deep = output_weights(model, model.width - model.config.hidden[-1], model.config.hidden[-1])
        self.output = nn.Parameter(attended)
        self.deep = SplitMlp(model.deep, deep, self.sides)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        rows: Tensor = self.item_rows(ids)
        return *self.first.item(rows), self.deep.first.item(rows)

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        *met, hidden = parts
        rows: Tensor = self.request_rows(ids)
        attended: Tensor = self.rest(self.first(rows, *met))
        return attended.flatten(1) @ self.output + self.deep.share(rows, hidden)
