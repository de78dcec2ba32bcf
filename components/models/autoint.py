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

    What items' rows meet of a request are matrices made of few rows and many zeros. Each is laid out by one look-up of
    rows: a request of few items costs what its small operators do.
    """

    of_head: Tensor
    at_known: Tensor
    at_to_request: Tensor
    at_to_item: Tensor
    at_apart: Tensor
    at_values: Tensor

    def __init__(self, layer: InteractingLayer, sides: Sides) -> None:
        super().__init__()
        self.layer, self.heads = MergedLayer(layer), layer.heads
        self.sides, self.fields, self.others = sides, len(sides.request), len(sides.item)
        fields, others, heads, attention = self.fields, self.others, self.heads, layer.project.out_features // 4
        # Of a request's rows: the scores' other halves by head, values, residuals.
        halves = [part.T for part in self.layer.score.chunk(heads, 1)]
        value = torch.stack(self.layer.value.chunk(heads)).sum(0)
        self.project = nn.Parameter(torch.cat([*halves, value, self.layer.residual], dim=1).detach())
        self.register_buffer(
            "of_head", (torch.arange(attention) * heads // attention == torch.arange(heads).unsqueeze(1)).float()
        )

        # Of the request's rows by head, of their other halves, then a row of zeros: for each logit one of each field's.
        zero = 2 * fields * heads
        own = torch.arange(fields * heads).reshape(fields, heads)
        to_request = torch.full((fields, heads, 1 + others, others), zero)
        to_item = torch.full((others, heads, 1 + fields, others), zero)
        for other in range(others):
            to_request[:, :, 1 + other, other] = own
            to_item[other, :, 1:, other] = own.T + zero // 2
        # Of the means by head, then of the values, then a row of zeros.
        apart = torch.full((fields, heads, fields), zero)
        for field in range(fields):
            apart[field, :, field] = own[field]
        values = torch.full((heads, 1 + fields), zero)
        values[:, 1:] = own.T + zero // 2
        known = torch.full((fields, heads, 1 + others), fields * heads)
        known[:, :, 0] = own
        looked = {"to_request": to_request, "to_item": to_item, "apart": apart, "values": values, "known": known}
        for name, places in looked.items():
            self.register_buffer(f"at_{name}", places.flatten())

    def item(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Parts of items' rows [n, f, width]: rows, log weights, means, values, residuals.

        Rows are [n, f * width]. Log weights are [n, f * heads * (1 + request fields)], zero but for the first of each
        head. Means and residuals are [n, f, attention_dim]. Values are [n, heads * (1 + f), attention_dim], zero in the
        other heads' columns, and each head's first row, which stands for the mean, is zero altogether.
        """
        count, fields, _ = rows.shape
        scores = self.layer.scores(rows)
        means = (torch.softmax(scores, dim=-1) @ rows).reshape(count, fields, -1) @ self.layer.value
        weights = functional.pad(torch.logsumexp(scores, dim=-1).unsqueeze(-1), (0, self.fields)).flatten(1)
        by_head = torch.stack([rows @ part for part in self.layer.value.chunk(self.heads)], dim=1)
        values = functional.pad(by_head, (0, 0, 1, 0)).flatten(1, 2)
        return rows.flatten(1), weights, means, values, rows @ self.layer.residual

    def forward(
        self, rows: Tensor, keys: Tensor, weights: Tensor, means: Tensor, values: Tensor, residual: Tensor
    ) -> Tensor:
        """Interacted rows [n, F, attention_dim] of a request's rows [1, request fields, width] and items' parts."""
        rows = rows.squeeze(0)
        width, attention = rows.shape[1], residual.shape[2]
        own = rows @ self.layer.score
        halves, value, own_residual = torch.split(
            rows @ self.project, [self.heads * width, attention, attention], dim=1
        )
        own, zeros = own.reshape(-1, width), rows.new_zeros(1, max(width, attention))
        turned = torch.cat([own, halves.reshape(-1, width), zeros[:, :width]])
        scores = own @ rows.T
        mean = (torch.softmax(scores, dim=-1) @ rows).reshape(self.fields, -1) @ self.layer.value
        by_head = torch.stack([mean, value]).unsqueeze(2) * self.of_head
        gathered = torch.cat([by_head.reshape(-1, attention), zeros[:, :attention]])
        known = torch.cat([torch.logsumexp(scores, dim=-1), zeros[0, :1]]).index_select(0, self.at_known)
        request = self._request(known, turned, gathered, own_residual, keys, values)
        item = self._item(turned, gathered, keys, weights, means, residual)
        return torch.relu(self.sides.join(request, item))

    def _request(
        self, known: Tensor, turned: Tensor, gathered: Tensor, residual: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """What the request's rows gather, and their residuals, [n, request fields, attention_dim]."""
        met = turned.index_select(0, self.at_to_request).reshape(known.shape[0], -1)
        logits = torch.addmm(known, keys, met.T)
        shares = torch.softmax(logits.reshape(-1, self.fields * self.heads, 1 + self.others), dim=-1)
        # The request's own means and residuals are the same for every item: one product for all of them.
        apart = gathered.index_select(0, self.at_apart).reshape(self.fields * self.heads, -1)
        own = torch.addmm(residual.flatten(), shares[..., :1].flatten(1), apart)
        by_field = shares.reshape(-1, self.fields, self.heads * (1 + self.others))
        return own.reshape(by_field.shape[0], self.fields, -1) + by_field @ values

    def _item(
        self, turned: Tensor, gathered: Tensor, keys: Tensor, weights: Tensor, means: Tensor, residual: Tensor
    ) -> Tensor:
        """What the items' rows gather, and their residuals, [n, item fields, attention_dim]."""
        met = turned.index_select(0, self.at_to_item).reshape(weights.shape[1], -1)
        logits = torch.addmm(weights, keys, met.T)
        shares = torch.softmax(logits.reshape(-1, self.others, self.heads, 1 + self.fields), dim=-1)
        by_row = shares.reshape(-1, self.heads * (1 + self.fields))
        own = by_row @ gathered.index_select(0, self.at_values) + residual.flatten(0, 1)
        of_own: Tensor = shares[..., :1] * means.unflatten(2, (self.heads, -1))  # type: ignore[no-untyped-call]
        return own.reshape(of_own.shape[0], self.others, -1) + of_own.flatten(2)


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
