"""Item texts in the model and liked texts in the contrast, against loops over the rows."""

import numpy as np
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.layout import FieldSlots, InputLayout
from components.dataset.training_set import SplitArrays
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.training.item_texts import give_texts, with_liked
from components.training.texts import TextRows

CPU = torch.device("cpu")
ITEMS, LENGTH, DIM = 12, 4, 5
ITEM = FieldSlots("item", "item", "id", 1, 1, 5, 3 + ITEMS)
SEEN = FieldSlots("history_item", "user", "id", 2, LENGTH, 5, 3 + ITEMS)
LABEL = FieldSlots("history_label", "user", "category", 2 + LENGTH, LENGTH, 5 + 3 + ITEMS, 5)
LAYOUT = InputLayout((FieldSlots("user", "user", "category", 0, 1, 1, 4), ITEM), (SEEN, LABEL))
CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1, text_rows=3)


def rows_of(seed, count):
    """Rows with histories of 0 to LENGTH events, of items that are unknown now and then."""
    random = np.random.default_rng(seed)
    ids = np.zeros((count, LAYOUT.width), np.int32)
    ids[:, 0] = 1
    ids[:, 1] = ITEM.offset + 3 + random.integers(0, ITEMS - 1, count)  # the last item is never shown
    there = np.arange(LENGTH)[::-1] < random.integers(0, LENGTH + 1, (count, 1))
    codes = random.choice([0, *range(3, 3 + ITEMS)], (count, LENGTH))
    ids[:, SEEN.start : SEEN.stop] = np.where(there, ITEM.offset + codes, 0)
    ids[:, LABEL.start : LABEL.stop] = np.where(there, LABEL.offset + 3 + random.integers(0, 2, (count, LENGTH)), 0)
    none = np.zeros(count, np.int64)
    return SplitArrays(ids, none.astype(np.float32), none, none, none.astype(np.int32), none.astype(np.int32))


@pytest.fixture
def room():
    """Rows of two parts, and texts of their users (0) and items (1 to ITEMS)."""
    parts = {"train": rows_of(1, 300), "valid": rows_of(2, 30)}
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(1 + ITEMS, DIM)).astype(np.float32))
    index = {
        part: {
            "user_text": torch.zeros(len(rows.ids), dtype=torch.int64),
            "item_text": torch.from_numpy(rows.ids[:, 1].astype(np.int64) - ITEM.offset - 3 + 1),
        }
        for part, rows in parts.items()
    }
    return parts, TextRows(matrix, index, CPU)


def test_liked_texts_are_the_mean_over_liked_items_of_the_train_part(room):
    parts, texts = room
    told = with_liked(texts, LAYOUT, parts)
    assert told.width == 3 * DIM and texts.width == 2 * DIM
    met = set()
    for part, rows in parts.items():
        order = torch.arange(len(rows.ids)).flip(0)
        found = told(part, order)
        torch.testing.assert_close(found[:, : 2 * DIM], texts(part, order))
        assert torch.equal(told.numbers(part, order), texts.numbers(part, order))
        for row, vector in zip(rows.ids[order], found[:, 2 * DIM :], strict=True):
            liked = []
            for event in range(LENGTH):
                code = row[SEEN.start + event] - ITEM.offset
                # Unknown items and the one that the train part never shows have no text.
                if row[LABEL.start + event] == LABEL.offset + 4 and 3 <= code < 3 + ITEMS - 1:
                    liked.append(texts.matrix[code - 3 + 1])
            met.add(len(liked))
            expected = torch.stack(liked).mean(0) if liked else torch.zeros(DIM)
            torch.testing.assert_close(vector, expected)
    assert met == {0, 1, 2, 3, 4}


def test_a_model_without_history_has_no_liked_texts(room):
    parts, texts = room
    with pytest.raises(UserError, match="does not read the user's history"):
        with_liked(texts, LAYOUT.without_history(), parts)


def test_the_model_holds_the_principal_components_of_the_items_that_were_shown(room):
    parts, texts = room
    model = build_backbone("autoint_history", LAYOUT, CONFIG)
    before = {name: value.clone() for name, value in model.named_parameters()}
    give_texts(model, texts, parts["train"])
    vectors = texts.matrix[1:ITEMS].double().numpy()  # all items but the last
    centred = vectors - vectors.mean(0)
    # Principal components the other way round: from the eigenvectors of the Gram matrix.
    values, eigenvectors = np.linalg.eigh(centred @ centred.T)
    components = eigenvectors[:, ::-1][:, :3] * np.sqrt(values[::-1][:3])
    components /= np.linalg.norm(components, axis=1, keepdims=True)
    ids = torch.arange(ITEM.offset, ITEM.offset + ITEM.size)
    found = model.texts(ids).numpy()
    assert (found[:3] == 0).all() and (found[-1] == 0).all(), "reserved codes, and an item that was never shown"
    np.testing.assert_allclose(found[3:-1] @ found[3:-1].T, components @ components.T, atol=1e-5)
    assert (model.texts(torch.zeros(2, dtype=torch.int64)) == 0).all(), "padding"
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_later_text_of_an_item_counts(room):
    parts, texts = room
    shown = parts["train"].ids[:, 1]
    last = int(np.flatnonzero(shown == shown[0])[-1])
    assert last > 0
    texts.index["train"][last, 1] = ITEMS  # the text that no item of the train part had
    told = with_liked(texts, LAYOUT, {"train": parts["train"]})
    code = int(shown[0]) - ITEM.offset
    rows = parts["train"].ids
    only = [
        row
        for row in range(len(rows))
        if [
            rows[row, SEEN.start + event] - ITEM.offset
            for event in range(LENGTH)
            if rows[row, LABEL.start + event] == LABEL.offset + 4 and rows[row, SEEN.start + event] != ITEM.offset
        ]
        == [code]
    ]
    assert only
    torch.testing.assert_close(told("train", torch.tensor(only[:1]))[0, 2 * DIM :], texts.matrix[ITEMS])


def test_more_components_than_texts_are_refused(room):
    parts, texts = room
    model = build_backbone("autoint_history", LAYOUT, CONFIG.model_copy(update={"text_rows": 6}))
    with pytest.raises(UserError, match=r"model\.text_rows=6 is more than 11 items' texts of 5 numbers"):
        give_texts(model, texts, parts["train"])


def test_a_model_without_room_is_left_alone(room):
    parts, texts = room
    model = build_backbone("autoint", LAYOUT, CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    give_texts(model, texts, parts["train"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
