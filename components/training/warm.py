"""A warm start: a model begins with the champion's weights, and ids that both know keep their rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.models.base import CollaborativeModel
from components.models.item_texts import ItemTexts
from components.run import CHAMPION, read_json
from components.training.checkpoints import load_model
from components.training.growth import copy_rows

log = logging.getLogger("tandem.training")

#: The arm that has never met the PLM continues what has never met it; the candidate continues the champion itself.
COLLABORATIVE, CANDIDATE = "collaborative", "candidate"


def champion_checkpoint(folder: Path | None, arm: str) -> Path | None:
    """The checkpoint that an arm begins with, among those that the retrieve step has fetched; None to start anew."""
    if folder is None or not read_json(folder / CHAMPION):
        return None
    of_candidate = folder / CANDIDATE
    # A champion that met no PLM is both at once.
    return of_candidate if arm != COLLABORATIVE and of_candidate.is_dir() else folder / COLLABORATIVE


def begin_with(model: CollaborativeModel, checkpoint: Path) -> dict[str, Any]:
    """Give a fresh model the weights of a checkpoint whose vocabulary its own has grown from.

    Rows of ids that only the model knows stay as they were initialised.

    Returns:
        Whose weights they are, as CHAMPION says: name, version, run_id.

    Raises:
        UserError: the checkpoint is of another backbone or configuration, the vocabulary has not grown from it, or the
            model holds its items' texts.
    """
    source = load_model(checkpoint)
    if type(source) is not type(model) or source.config != model.config:
        raise UserError(
            "the champion is of another backbone or configuration; give --backbone and model as it has them, "
            "or write warm_start: false"
        )
    if any(isinstance(module, ItemTexts) for module in model.modules()):
        raise UserError(
            "a warm start cannot carry model.text_rows: what they hold is relative to the champion's own items; "
            "write model.text_rows: 0 or warm_start: false"
        )
    _refuse_strange(source.layout, model.layout)
    tables = _tables(source)
    state = {name: value for name, value in source.state_dict().items() if name not in tables}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in tables:
                copy_rows(tables[name], source.layout, parameter, model.layout)
    champion: dict[str, Any] = read_json(checkpoint.parent / CHAMPION)
    new = model.layout.vocabulary_size - source.layout.vocabulary_size
    log.info("warm start from %s version %s, %d rows new", champion["name"], champion["version"], new)
    return champion


def _tables(model: CollaborativeModel) -> dict[str, torch.Tensor]:
    """The weights with a row for each id, by name."""
    rows = model.layout.vocabulary_size
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows
    }


def _refuse_strange(small: InputLayout, large: InputLayout) -> None:
    """Each field must be there with at least the ids that it had."""
    before, after = ((*layout.fields, *layout.history) for layout in (small, large))
    grown = len(before) == len(after) and all(
        (old.name, old.kind, old.width) == (new.name, new.kind, new.width) and old.size <= new.size
        for old, new in zip(before, after, strict=True)
    )
    if not grown:
        raise UserError("the training set's vocabulary is not the champion's grown; run retrieve again")
