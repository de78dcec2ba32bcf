"""Text vectors of items for a model that holds them: the PLM's embeddings, reduced to their principal components."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from components.dataset.errors import UserError
from components.dataset.events import LABELS
from components.dataset.layout import FIRST_VALUE, PADDING, UNKNOWN, InputLayout
from components.dataset.training_set import SplitArrays
from components.models.autoint_history import AutoIntHistory
from components.models.base import CollaborativeModel
from components.training.newcomers import id_field
from components.training.texts import TextRows

log = logging.getLogger("tandem.training")
#: Stands for an item without a text.
NONE = -1


def text_numbers(layout: InputLayout, train: SplitArrays, texts: TextRows) -> npt.NDArray[np.int64]:
    """The number of the text of each code of the item's id [size of its field]: its last one in the train part.

    Codes that no item of the train part has, such as that of unknown items, have NONE.
    """
    slots = id_field(layout, "item").slots
    found = np.full(slots.size, NONE, dtype=np.int64)
    # Of several texts of one code the last is kept.
    found[train.ids[:, slots.start] - slots.offset] = texts.of_part("item", "train").cpu().numpy()
    found[:FIRST_VALUE] = NONE
    return found


@torch.no_grad()
def give_texts(model: CollaborativeModel, texts: TextRows, train: SplitArrays) -> None:
    """Put the text vectors of the train part's items into the model, if it has room for any.

    What is kept of a vector are its first principal components over those items, scaled to length 1: the cosine of
    two of them stands for that of the texts once what all items have in common is taken away.

    Raises:
        UserError: there are fewer items or numbers in a vector than components are asked for.
    """
    if not isinstance(model, AutoIntHistory) or model.texts is None:
        return
    slots, numbers = id_field(model.layout, "item").slots, text_numbers(model.layout, train, texts)
    codes = np.flatnonzero(numbers != NONE)
    vectors = texts.matrix[torch.from_numpy(numbers[codes])].float().cpu()
    width = model.texts.vectors.shape[1]
    if width > min(vectors.shape):
        given = f"{len(codes)} items' texts of {texts.dim} numbers"
        raise UserError(f"model.text_rows={width} is more than {given} can give; lower it")
    centred = vectors - vectors.mean(0)
    *_, directions = torch.linalg.svd(centred, full_matrices=False)
    components = centred @ directions[:width].T
    model.texts.fill(torch.from_numpy(codes + slots.offset), functional.normalize(components, dim=1))
    kept = float(components.square().sum() / centred.square().sum())
    log.info("%d items' texts, %d components of %d: %.0f %% of the variance", len(codes), width, texts.dim, 100 * kept)


def with_liked(texts: TextRows, layout: InputLayout, parts: Mapping[str, SplitArrays]) -> TextRows:
    """The same texts and, behind them, the mean of the texts of the liked items in each row's history.

    Args:
        texts: Texts of users and items.
        layout: The model's input.
        parts: Rows by part; that of the train part says which item has which text.

    Raises:
        UserError: the model does not read the history.
    """
    slots = id_field(layout, "item").slots
    seen = [one for one in layout.history if one.offset == slots.offset]
    if not seen:
        raise UserError("liked_texts: the model does not read the user's history; choose a backbone that does")
    numbers = text_numbers(layout, parts["train"], texts)
    label = layout.field(LABELS)
    liked = label.offset + FIRST_VALUE + 1
    found = {}
    for part, rows in parts.items():
        ids = rows.ids[:, seen[0].start : seen[0].stop]
        theirs = numbers[np.where(ids == PADDING, UNKNOWN, ids - slots.offset)]
        theirs[rows.ids[:, label.start : label.stop] != liked] = NONE
        theirs = np.sort(theirs, axis=1)
        # Those without a text come first: only as many columns are kept as the row with the most texts fills.
        kept = theirs[:, theirs.shape[1] - max(int((theirs != NONE).sum(1).max()), 1) :]
        found[part] = torch.from_numpy(np.where(kept == NONE, len(texts.matrix), kept))
    return texts.beside(found)
