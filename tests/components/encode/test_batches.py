"""Batches of tokens: bounded, alike in length, and every odd text handled."""

import numpy as np
import pytest

from components.dataset.errors import UserError
from components.encode.batches import Batch, Tokeniser, unpack
from components.encode.forward import padded
from components.models.plm import PlmSpec
from tests.components.encode.tiny import prompts


def tokeniser_of(folder, budget=64, **spec):
    return Tokeniser.of(PlmSpec(name=str(folder), **spec), folder, budget)


def test_batches_hold_every_text_once_within_the_budget(bert):
    texts = prompts(200)
    tokeniser = tokeniser_of(bert)
    ids = tokeniser.ids(texts)
    batches = list(tokeniser.batches(7, texts))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(200))
    for batch in batches:
        assert batch.block == 7 and len(batch.rows) * batch.lengths.max() <= 64
        for row, of in zip(batch.rows, unpack(batch.to_bytes()), strict=True):
            assert of.tolist() == ids[row].tolist()
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert (np.diff(lengths) <= 0).all(), "long texts come first"
    padding = sum(len(b.rows) * b.lengths.max() for b in batches) / lengths.sum()
    assert padding < 1.1, "texts of a batch are alike in length"


def test_a_text_longer_than_the_budget_goes_alone(bert):
    batches = list(tokeniser_of(bert, budget=4).batches(0, ["movie " * 20, "a", "b"]))
    assert [len(batch.rows) for batch in batches] == [1, 1, 1]


def test_texts_are_cut_at_max_length_and_prefixed(bert):
    cut = tokeniser_of(bert, max_length=8).ids(["movie " * 100])[0]
    assert len(cut) == 8 and cut[0] == 1 and cut[-1] == 2
    plain, prefixed = tokeniser_of(bert), tokeniser_of(bert, prefix="query: ")
    assert prefixed.ids(["movie"])[0].tolist() == plain.ids(["query: movie"])[0].tolist()


def test_text_of_100000_characters(bert):
    tokeniser = tokeniser_of(bert, max_length=256)
    long = ["movie " * 17_000, "x" * 100_000, "機" * 100_000]
    assert [len(ids) for ids in tokeniser.ids(long)] == [256, 3, 256]


def test_empty_text_has_a_token_in_any_model(bert, llama):
    assert tokeniser_of(bert).ids(["", " "])[0].tolist() == [1, 2]
    assert [len(ids) for ids in tokeniser_of(llama).ids(["", "movie"])] == [1, 1]


def test_lone_surrogate_is_refused_with_the_text(bert):
    with pytest.raises(UserError, match=r"text 'bad \\ud800' is not valid UTF-8"):
        tokeniser_of(bert).ids(["good", "bad \ud800"])


def test_padding_is_on_the_right_and_masked():
    texts = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    ids, mask = padded(texts)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = padded(texts[:1] * 2)
    assert ids.tolist() == [[5, 6, 7]] * 2 and mask is None


def test_batch_survives_the_socket():
    batch = Batch(0, np.array([3, 1], np.int32), np.array([2, 1], np.int32), np.array([9, 8, 7], np.int32))
    assert [ids.tolist() for ids in unpack(batch.to_bytes())] == [[9, 8], [7]]
