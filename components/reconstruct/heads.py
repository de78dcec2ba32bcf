"""What stands between the two models while they reconstruct each other's view, and is left behind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from components.models.base import CollaborativeModel
from components.models.plm import own_decoder
from components.objectives.masks import HiddenFields
from components.objectives.nce import NoiseContrast
from components.objectives.reconstruction import FieldHead, InstanceHead, TokenHead
from components.reconstruct.settings import ReconstructSettings
from components.training.contrast import info_nce_of
from components.training.group import Group
from components.training.reader import Reader


class Heads(nn.Module):
    """The heads of FLIP's three tasks.

    Args:
        model: The collaborative model.
        reader: The PLM.
        said: Ids of the tokens that values hold, ascending.
        columns: Texts of an impression.
        counts: How often each id stands in the train part [V].
        settings: The step's.
    """

    words: Tensor
    places: Tensor

    def __init__(
        self,
        model: CollaborativeModel,
        reader: Reader,
        said: Tensor,
        columns: int,
        counts: Tensor,
        settings: ReconstructSettings,
    ) -> None:
        super().__init__()
        self.settings = settings
        table, text = model.width, reader.dim
        self.by_text = InstanceHead(columns * text, settings.projection, settings.dropout)
        self.by_table = InstanceHead(table, settings.projection, settings.dropout)
        own = own_decoder(settings.plm)
        rows = reader.words().detach().cpu()
        decoder, bias = own or (rows, rows.new_zeros(len(rows)))
        words = torch.arange(len(decoder)) if settings.vocabulary == "whole" else said
        self.register_buffer("words", words, persistent=False)
        places = torch.full((len(decoder),), -1).scatter(0, words, torch.arange(len(words)))
        self.register_buffer("places", places, persistent=False)
        # Word embeddings that are trained as the PLM's input are its output too: one and the same tensor.
        self.tied = settings.plm_mode == "full" and (own is None or torch.equal(decoder, rows))
        start = decoder[words], bias[words]
        self.tokens = TokenHead(text, table, *start, settings.dropout, self.tied)
        shape = model.fields, settings.field_width, settings.mask_padding, settings.scale_scores
        self.fields = FieldHead(text, table, *shape)
        self.noise = NoiseContrast(counts, settings.field_width, settings.noise)

    def contrast(self, text: Tensor, table: Tensor, same: Tensor | None, group: Group, whole: int) -> Tensor:
        """The symmetric InfoNCE of projected texts [n, d] and rows [n, d]; pairs that are the `same` [n, N] are none.

        In a group, a process's part of it over the N = `whole` rows that all processes hold.
        """
        every = group.whole_batch(table, whole)
        similarities = text @ every.T, every @ text.T
        return info_nce_of(group, whole, *similarities, self.settings.temperature, same)

    def masked_words(self, states: Tensor, table: Tensor, truth: Tensor, rows: Callable[[], Tensor]) -> Tensor:
        """The sum of the cross-entropies of hidden tokens.

        Args:
            states: Their states [h, text width].
            table: The clean table vectors of their rows [h, table width].
            truth: Their ids [h].
            rows: Gives the PLM's word embeddings, to which the decoder may be tied.
        """
        table = table if self.settings.cross_modal else torch.zeros_like(table)
        words = rows()[self.words] if self.tied else None
        total: Tensor = self.tokens(states, table, self.places[truth], words)
        return total

    def masked_fields(
        self, table: Tensor, states: Tensor, there: Tensor, fields: HiddenFields, noise: Tensor
    ) -> Tensor:
        """Losses [h] of hidden fields by noise-contrastive estimation.

        Args:
            table: The masked rows' vectors [n, table width].
            states: The clean texts' token states [n, T, text width].
            there: Where tokens are [n, T].
            fields: What is hidden.
            noise: Noise ids [h, K].
        """
        read = self.fields.read(table, states, there)
        read = read if self.settings.cross_modal else torch.zeros_like(read)
        found = self.fields(table, read)[fields.hidden]
        losses: Tensor = self.noise(found, fields.truth[fields.hidden], noise)
        return losses
