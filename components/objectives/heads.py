"""The projections that bring both modalities into one space; they are left behind after training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from components.objectives.contrastive import SubSpaces, max_sim
from components.objectives.settings import ContrastSettings


class Heads(nn.Module):
    """One linear layer per modality to `projection` dimensions, then the sub-spaces (CTRL, section 3.3)."""

    def __init__(self, text_width: int, table_width: int, settings: ContrastSettings) -> None:
        super().__init__()
        self.cosine = settings.similarity == "cosine"
        self.text = nn.Linear(text_width, settings.projection)
        self.table = nn.Linear(table_width, settings.projection)
        shape = (settings.projection, settings.subspaces, settings.width, settings.normalise)
        self.text_spaces = nn.Identity() if self.cosine else SubSpaces(*shape)
        self.table_spaces = nn.Identity() if self.cosine else SubSpaces(*shape)

    def project(self, text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides in the common space, [N, projection]."""
        return self.text(text), self.table(table)

    def sub_vectors(self, text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """What is compared, [N, M, width] each, of projected vectors [N, projection]; the whole vector for cosine."""
        if self.cosine:
            return functional.normalize(text, dim=-1), functional.normalize(table, dim=-1)
        return self.text_spaces(text), self.table_spaces(table)

    def compare(self, text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Text-anchored and table-anchored similarities, [n, N] and [N, n], of n texts' and N rows' sub-vectors."""
        if self.cosine:
            cosine = text @ table.T
            return cosine, cosine.T
        return max_sim(text, table)

    def similarities(self, text: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Text-anchored and table-anchored similarities, [N, N] each, of projected vectors [N, projection]."""
        return self.compare(*self.sub_vectors(text, table))
