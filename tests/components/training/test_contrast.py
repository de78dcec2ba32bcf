"""Texts by row, and which rows of a batch are no negatives of each other."""

import numpy as np
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.training_set import SplitArrays
from components.objectives.settings import ContrastSettings
from components.training.contrast import Contrast
from components.training.group import Group
from components.training.texts import TextRows

MATRIX = torch.arange(12.0).reshape(4, 3)
CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


def texts(users, items):
    return TextRows(MATRIX, {"train": {"user_text": torch.tensor(users), "item_text": torch.tensor(items)}}, CPU)


def arrays(users, items):
    none = np.zeros(len(users), np.int32)
    codes = np.array(users, np.int64), np.array(items, np.int64)
    return SplitArrays(none[:, None], none.astype(np.float32), *codes, none, none)


def test_the_texts_of_a_row_lie_side_by_side():
    rows = texts([0, 1], [3, 2])
    assert rows.width == 6
    assert rows("train", torch.tensor([1, 0])).tolist() == [[3, 4, 5, 6, 7, 8], [0, 1, 2, 9, 10, 11]]
    assert rows.of("item", "train", torch.tensor([1])).tolist() == [[6, 7, 8]]
    whole = TextRows(MATRIX, {"train": {"row_text": torch.tensor([0, 1])}}, CPU)
    with pytest.raises(UserError, match="granularity"):
        whole.of("item", "train", torch.tensor([1]))


def test_equal_pairs_and_equal_texts_are_no_negatives():
    """Row 1 repeats row 0; rows 2 and 3 are other users and items in the same words; row 4 is like none."""
    contrast = Contrast(
        texts([0, 0, 1, 1, 1], [2, 2, 2, 2, 3]),
        {"train": arrays([7, 7, 8, 9, 9], [1, 1, 1, 1, 2])},
        width=5,
        settings=ContrastSettings(projection=4, subspaces=2, width=3),
    )
    same = contrast.same("train", torch.arange(5))
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(same, expected)


def test_masking_is_a_setting():
    rows = texts([0, 0, 1], [2, 2, 3])
    parts = {"train": arrays([1, 1, 2], [1, 1, 2])}
    losses = []
    for masked in (True, False):
        torch.manual_seed(0)
        settings = ContrastSettings(projection=4, subspaces=2, width=3, mask_duplicates=masked)
        contrast = Contrast(rows, parts, width=5, settings=settings)
        losses.append(contrast("train", torch.arange(3), torch.ones(3, 5), ALONE, 3).item())
    assert losses[0] < losses[1]
