"""Rows for users and items that came after training: more values in the vocabulary, more rows in the tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.dataset.bundle import ROW_MAPS
from components.dataset.errors import UserError
from components.dataset.layout import MASK, MISSING, PADDING, UNKNOWN, InputLayout
from components.dataset.spec import ITEM_KEY, USER_KEY
from components.dataset.training_set import SplitArrays, TrainingSet
from components.dataset.vocabulary import Vocabulary
from components.models.base import CollaborativeModel
from components.models.embedding import FieldEmbedding
from components.models.registry import build_backbone, name_of
from components.training.newcomers import RowMaps, id_field
from components.training.texts import TextRows

KEYS = {"user": USER_KEY, "item": ITEM_KEY}


@dataclass(frozen=True)
class NewRows:
    """For each side the weight [dim, text dim] and bias [dim] that make the row of a new id from its text.

    `about` says how the texts came about that they were learnt from: prompt_hash, prompt (its settings), plm (a
    PlmSpec) and plm_digest.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, side: str, texts: Tensor) -> Tensor:
        """Rows [n, dim] of new users or items with these texts [n, text dim]."""
        return texts @ self.weights[side].T + self.biases[side]

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that have a map."""
        return tuple(self.weights)

    def save(self, folder: Path) -> None:
        """Write the maps beside a checkpoint."""
        weights = {f"{side}.weight": weight.cpu().contiguous() for side, weight in self.weights.items()}
        biases = {f"{side}.bias": bias.cpu().contiguous() for side, bias in self.biases.items()}
        save_file(weights | biases, str(folder / ROW_MAPS), {"about": json.dumps(self.about, sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the maps that lie beside a checkpoint.

        Raises:
            UserError: there are none.
        """
        if not (folder / ROW_MAPS).is_file():
            raise UserError(
                f"{folder}: the model was trained without maps of rows; write finetune.map_rows: [user, item]"
            )
        with safe_open(str(folder / ROW_MAPS), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        weights, biases = (
            {name.partition(".")[0]: tensor for name, tensor in tensors.items() if name.endswith(kind)}
            for kind in (".weight", ".bias")
        )
        return cls(weights, biases, about)


@torch.no_grad()
def settle(model: CollaborativeModel, maps: RowMaps, texts: TextRows, train: SplitArrays) -> NewRows:
    """Put the mapped rows of the train part's users and items into the model's own table, for good.

    Where an id's text changed, its last one counts. Unknown ids get the mean of the mapped rows.

    Returns:
        The map that gives new ids their rows.
    """
    table = model.embedding.table.weight
    weights, biases = {}, {}
    for side, field in maps.fields.items():
        ids, numbers = train.ids[:, field.slots.start], texts.of_part(side, "train").cpu().numpy()
        last = dict(zip(ids.tolist(), numbers.tolist(), strict=True))
        unknown = field.slots.offset + UNKNOWN
        known = torch.tensor([id_ for id_ in last if id_ != unknown], device=table.device)
        mapped = maps(side, texts.matrix[torch.tensor([last[id_] for id_ in known.tolist()], device=table.device)])
        linear = maps.linear(side)
        weights[side] = linear.weight.detach().clone()
        biases[side] = (linear.bias + table[unknown]).clone()
        table[known] += mapped
        for code in (UNKNOWN, MISSING, MASK):
            table[field.slots.offset + code] += mapped.mean(0)
    return NewRows(weights, biases)


@torch.no_grad()
def grow(
    model: CollaborativeModel, vocabulary: Vocabulary, side: str, keys: Sequence[str], rows: Tensor
) -> tuple[CollaborativeModel, Vocabulary]:
    """The model and vocabulary with new users or items; those given are left as they are.

    Args:
        model: A trained model.
        vocabulary: The vocabulary whose layout is the model's.
        side: user or item.
        keys: New keys, none of them in the vocabulary.
        rows: Their embedding rows, [len(keys), dim].

    Raises:
        ValueError: a key is known already, or keys and rows differ in number.
    """
    if len(keys) != len(rows):
        raise ValueError(f"{len(keys)} keys do not fit {len(rows)} rows")
    field = id_field(model.layout, side).slots
    larger = vocabulary.extended(field.name, keys)
    grown = build_backbone(name_of(model), larger.layout, model.config).to(rows.device)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("table.weight")}
    grown.load_state_dict(state, strict=False)
    old = dict(model.named_modules())
    for name, module in grown.named_modules():
        source = old.get(name)
        if isinstance(module, FieldEmbedding) and isinstance(source, FieldEmbedding):
            copy_rows(source.table.weight, model.layout, module.table.weight, grown.layout)
            start = grown.layout.field(field.name).offset + field.size
            # Weights of an id alone, such as Wide & Deep's, are what an unknown one has.
            new = rows if name == "embedding" else source.table.weight[field.offset + UNKNOWN]
            module.table.weight[start : start + len(keys)] = new
    return grown.eval(), larger


def copy_rows(source: Tensor, small: InputLayout, target: Tensor, large: InputLayout) -> None:
    """Every row that the smaller layout knows, to its place in the larger one's."""
    target[PADDING] = source[PADDING]
    for before, after in zip((*small.fields, *small.history), (*large.fields, *large.history), strict=True):
        target[after.offset : after.offset + before.size] = source[before.offset : before.offset + before.size]


def grown_for(
    model: CollaborativeModel, maps: NewRows, data: TrainingSet, texts: TextRows, part: str
) -> tuple[CollaborativeModel, Vocabulary]:
    """The model and vocabulary with rows for each user and item of a part that training did not show."""
    vocabulary = data.vocabulary
    for side in maps.sides:
        field = vocabulary.field(id_field(model.layout, side).slots.name)
        column = data.table(part, [KEYS[side]])[KEYS[side]]
        codes = field.encode(column)
        places = np.flatnonzero(codes == UNKNOWN)
        numbers = texts.of_part(side, part).cpu().numpy()
        last = {column[int(place)].as_py(): int(numbers[place]) for place in places}
        if last:
            rows = maps(side, texts.matrix[torch.tensor(list(last.values()))])
            model, vocabulary = grow(model, vocabulary, side, [str(key) for key in last], rows)
    return model, vocabulary
