"""DIN: each candidate weighs the user's history for itself (Zhou et al. 2018, arXiv 1706.06978)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig
from components.models.history import Events, HistoryModel


class ActivationUnit(nn.Module):
    """The weight a(e_j, v_A) of an event for a candidate (figure 2): a small network over both and how they differ.

    An event has attributes that a candidate has not (its label, its gap): difference and product are taken over the
    item's attributes. PReLU between the layers (eq. 2).
    """

    def __init__(self, width: int, item_width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.parts = [width, item_width, item_width, item_width]
        self.first = nn.Linear(sum(self.parts), hidden[0])
        layers: list[nn.Module] = [nn.PReLU()]
        for inner, outer in pairwise(hidden):
            layers += [nn.Linear(inner, outer), nn.PReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, rows: Tensor, candidate: Tensor) -> Tensor:
        """Weights [batch, L] of events' rows [batch, L, width] for candidates [batch, item_width]."""
        items, shown = rows[..., : self.parts[1]], candidate.unsqueeze(1)
        event, item, difference, product = self.first.weight.split(self.parts, dim=1)  # type: ignore[no-untyped-call]
        # The first layer over [event, item, event - item, event * item], without laying these out side by side.
        of_event = event + functional.pad(difference, (0, event.shape[1] - difference.shape[1]))
        of_item = functional.linear(candidate, item - difference, self.first.bias).unsqueeze(1)
        hidden = functional.linear(rows, of_event) + of_item + functional.linear(items * shown, product)
        weights: Tensor = self.rest(hidden)
        return weights.squeeze(-1)


class DIN(HistoryModel):
    """Eq. 3: v_U(A) = Σ_j a(e_j, v_A) e_j, weights not normalised: their sum tells how strong the interest is.

    Representation: the last layer of the MLP over the fields and v_U(A).
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        dim = config.embedding_dim
        self.unit = ActivationUnit(self.summary_width, self.events.items * dim, config.activation)

    @property
    def summary_width(self) -> int:
        """All attributes side by side."""
        return self.events.attributes * self.config.embedding_dim

    def summary(self, events: Events) -> Tensor:
        """The events' rows, weighed; an empty slot's row is zero and adds nothing."""
        weights = self.unit(events.rows, events.candidate)
        interest: Tensor = weights.unsqueeze(1) @ events.rows
        return interest.squeeze(1)
