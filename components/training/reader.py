"""A PLM that reads tokens: states of whole texts, and of the hidden tokens of masked ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from components.dataset.errors import UserError
from components.models.bert import Bert, is_plain_bert
from components.models.plm import Pooling, is_causal, load_plm, locate, plm_digest, pool
from components.models.tuning import TuningSettings, load_learnt, trainable
from components.training.tokens import PromptTokens

#: Tokens of a batch: on a CPU as many as stay in the cache, on a GPU as many as fill it.
BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
#: In the place of a mask: all tokens' states, none of them hidden; or the one vector made of them.
WHOLE, POOLED = b"whole", b"pooled"


class Reader(Protocol):
    """A PLM over the tokens of prompts, frozen or in training."""

    dim: int
    digest: str
    settings: TuningSettings

    def states(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """States [m, T, dim] of the texts of these numbers [m], each given once, and where tokens are [m, T].

        Of padding they are zeros.
        """
        ...

    def vectors(self, numbers: Tensor) -> Tensor:
        """One vector [m, dim] of each text of these numbers [m], each given once."""
        ...

    def hidden_states(self, numbers: Tensor, hidden: Tensor) -> Tensor:
        """States [h, dim] of the tokens that are hidden [m, T] in the texts of these numbers [m], text by text."""
        ...

    def words(self) -> Tensor:
        """The PLM's word embeddings [vocabulary, d]."""
        ...


def open_reader(
    tokens: PromptTokens, settings: TuningSettings, device: torch.device, megabytes: int, start: Path | None = None
) -> FrozenReader | LiveReader:
    """The PLM as its mode wants it read.

    Args:
        tokens: Of the texts.
        settings: The PLM, and what of it is trained.
        device: Where it shall lie.
        megabytes: What a frozen PLM's states may take that are kept for the next time.
        start: A checkpoint beside which weights of the same mode lie; none for the PLM's own.

    Raises:
        UserError: as `load_plm`; or the PLM is no encoder, or the mode does not fit it.
    """
    frozen = settings.plm_mode == "frozen"
    reader = FrozenReader(tokens, settings, device, megabytes) if frozen else LiveReader(tokens, settings, device)
    if is_causal(reader.model):
        raise UserError(f"plm.name: '{settings.plm.name}' sees no word behind a hidden one; give an encoder")
    if isinstance(reader, FrozenReader):
        return reader
    if start is not None:
        load_learnt(start, reader.model)
    return reader


class FrozenReader:
    """A PLM that is not trained: what it made of a text under a mask is kept, and made once.

    Whole fields are hidden, so that a text of few fields has few masked forms; of these only the hidden tokens' states
    are kept.
    """

    def __init__(self, tokens: PromptTokens, settings: TuningSettings, device: torch.device, megabytes: int) -> None:
        folder = locate(settings.plm)
        model: Any = Bert(folder) if is_plain_bert(settings.plm, folder) else load_plm(settings.plm).model
        self.model: nn.Module = model.to(device).eval().requires_grad_(False)
        self.tokens, self.settings, self.device = tokens, settings, device
        self.digest = plm_digest(settings.plm, folder)
        # A BERT's words are as wide as its states; another model says itself how wide those are.
        self.dim = int(self.words().shape[1]) if isinstance(model, Bert) else int(model.config.hidden_size)
        self.kept: dict[tuple[int, bytes], Tensor] = {}
        self.room = megabytes * 2**20

    def words(self) -> Tensor:
        """The PLM's word embeddings [vocabulary, d]."""
        return word_rows(self.model)

    def states(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As in Reader, without gradients."""
        found = self._found(numbers, None, WHOLE)
        there = self.tokens.padded(numbers).there
        return pad_sequence(found, batch_first=True), there.to(self.device)

    def vectors(self, numbers: Tensor) -> Tensor:
        """As in Reader, without gradients."""
        return torch.stack(self._found(numbers, None, POOLED))

    def hidden_states(self, numbers: Tensor, hidden: Tensor) -> Tensor:
        """As in Reader, without gradients."""
        found = self._found(numbers, hidden)
        return torch.cat(found) if found else torch.empty(0, self.dim, device=self.device)

    def _found(self, numbers: Tensor, hidden: Tensor | None, mark: bytes = b"") -> list[Tensor]:
        """States of each text's hidden tokens; if none are given those of all, or the vector of them; kept or made."""
        marks = [mark] * len(numbers) if hidden is None else [row.tobytes().rstrip(b"\0") for row in hidden.numpy()]
        keys = list(zip(numbers.tolist(), marks, strict=True))
        fresh: dict[tuple[int, bytes], int] = {}
        for row, key in enumerate(keys):
            if key not in self.kept:
                fresh.setdefault(key, row)
        made = self._made(numbers, hidden, fresh)
        return [self.kept[key] if key in self.kept else made[key] for key in keys]

    @torch.no_grad()
    def _made(
        self, numbers: Tensor, hidden: Tensor | None, fresh: dict[tuple[int, bytes], int]
    ) -> dict[tuple[int, bytes], Tensor]:
        """What is not kept, and cannot be for want of room."""
        made: dict[tuple[int, bytes], Tensor] = {}
        keys, rows = list(fresh), torch.tensor(list(fresh.values()), dtype=torch.int64)
        drawn = None if hidden is None else hidden[rows]
        for places, states, lengths in forward(self.model, self.tokens, numbers[rows], drawn, self.device):
            for place, of, length in zip(places.tolist(), states, lengths.tolist(), strict=True):
                seen = of[:length]
                if drawn is not None:
                    seen = seen[drawn[place, :length].to(self.device)]
                elif keys[place][1] == POOLED:
                    seen = pool(seen.unsqueeze(0), None, self.settings.plm.pooling).squeeze(0)
                self._keep(keys[place], seen.clone(), made)
        return made

    def _keep(self, key: tuple[int, bytes], seen: Tensor, made: dict[tuple[int, bytes], Tensor]) -> None:
        size = seen.numel() * seen.element_size()
        if size > self.room:
            made[key] = seen
            return
        self.room -= size
        self.kept[key] = seen


class LiveReader(nn.Module):
    """A PLM in training: its states as it is now, with gradients."""

    def __init__(self, tokens: PromptTokens, settings: TuningSettings, device: torch.device) -> None:
        super().__init__()
        plm = load_plm(settings.plm)
        self.tokens, self.settings, self.device = tokens, settings, device
        self.dim, self.digest = plm.dim, plm.digest
        self.model = trainable(plm, settings).to(device)

    def words(self) -> Tensor:
        """The PLM's word embeddings [vocabulary, d]."""
        return word_rows(self.model)

    def states(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As in Reader."""
        there = self.tokens.padded(numbers).there.to(self.device)
        return self._read(numbers, None).masked_fill(~there.unsqueeze(-1), 0.0), there

    def vectors(self, numbers: Tensor) -> Tensor:
        """As in Reader."""
        states, there = self.states(numbers)
        return pool(states, there.long(), self.settings.plm.pooling)

    def hidden_states(self, numbers: Tensor, hidden: Tensor) -> Tensor:
        """As in Reader; a text that is masked alike several times is read once."""
        # A process that hides nothing must have gradients for the same weights as the others.
        if not len(numbers):
            numbers, hidden = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool)
            numbers[0] = int((self.tokens.starts.diff() > 0).nonzero()[0])
        keys = torch.cat([numbers.unsqueeze(1), hidden.long()], dim=1)
        different, places = torch.unique(keys, dim=0, return_inverse=True)
        drawn = different[:, 1:].bool()
        states = self._read(different[:, 0], drawn)
        length = states.shape[1]
        return states[places.to(self.device)][_fitted(hidden, length).to(self.device)]

    def _read(self, numbers: Tensor, hidden: Tensor | None) -> Tensor:
        """Padded states [m, T, dim]."""
        longest = int((self.tokens.starts[numbers + 1] - self.tokens.starts[numbers]).max())
        parts, order = [], []
        for places, states, _ in forward(self.model, self.tokens, numbers, hidden, self.device):
            parts.append(nn.functional.pad(states, (0, 0, 0, longest - states.shape[1])))
            order.append(places)
        return torch.cat(parts)[torch.argsort(torch.cat(order)).to(self.device)]


def _fitted(hidden: Tensor, length: int) -> Tensor:
    """Marks [m, T] cut or filled up to a length: what is cut off was padding."""
    return nn.functional.pad(hidden, (0, length - hidden.shape[1]))


def forward(
    model: nn.Module, tokens: PromptTokens, numbers: Tensor, hidden: Tensor | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run a PLM over texts, those of about equal length together.

    Args:
        model: Takes input_ids and attention_mask.
        tokens: Of the texts.
        numbers: The texts [m].
        hidden: Tokens shown as hidden [m, T]; None for none.
        device: The model's.

    Yields:
        For some of the texts their places among `numbers`, states [b, t, dim] and lengths [b].
    """
    lengths = tokens.starts[numbers + 1] - tokens.starts[numbers]
    order = torch.argsort(lengths, descending=True, stable=True)
    start, budget = 0, BATCH_TOKENS[device.type]
    while start < len(order):
        count = max(1, budget // max(1, int(lengths[order[start]])))
        places = order[start : start + count]
        batch = tokens.padded(numbers[places])
        ids = batch.ids
        if hidden is not None:
            ids = ids.masked_fill(_fitted(hidden[places], ids.shape[1]), tokens.mask)
        even = bool((batch.lengths == batch.lengths[0]).all())
        mask = None if even else batch.there.long().to(device)
        output: Any = model(input_ids=ids.to(device), attention_mask=mask)
        yield places, output if isinstance(output, Tensor) else output.last_hidden_state, batch.lengths
        start += count


@dataclass(frozen=True)
class TextStates:
    """What a PLM makes of a batch's texts, each read once: states [u, T, dim], there [u, T], and each row's text."""

    states: Tensor
    there: Tensor
    places: Tensor
    pooling: Pooling

    @classmethod
    def of(cls, reader: Reader, numbers: Tensor) -> Self:
        """Of the texts of these numbers [n]."""
        different, places = torch.unique(numbers, return_inverse=True)
        states, there = reader.states(different)
        return cls(states, there, places.to(states.device), reader.settings.plm.pooling)

    def vectors(self) -> Tensor:
        """One vector a row [n, dim]."""
        return pool(self.states, self.there.long(), self.pooling)[self.places]

    def by_row(self) -> tuple[Tensor, Tensor]:
        """States and where tokens are of each row's text, [n, T, dim] and [n, T]."""
        return self.states[self.places], self.there[self.places]


def row_vectors(reader: Reader, numbers: Tensor) -> Tensor:
    """One vector [n, dim] of each row's text, each text read once; the texts are those of these numbers [n]."""
    different, places = torch.unique(numbers, return_inverse=True)
    found = reader.vectors(different)
    return found[places.to(found.device)]


def word_rows(model: Any) -> Tensor:
    """The word embeddings [vocabulary, d] of a PLM."""
    rows: Tensor = model.part("word") if isinstance(model, Bert) else model.get_input_embeddings().weight
    return rows
