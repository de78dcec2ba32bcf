"""The field of each token, against a naive walk; what is hidden of texts."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.models.plm import PlmSpec, load_tokenizer, locate
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_transform
from components.reconstruct.settings import ReconstructSettings
from components.reconstruct.words import hide_words
from components.training.tokens import NONE, PromptTokens, TokenRows
from tests.components.encode.tiny import save_bert
from tests.components.prompt_transform.making import random_rows, write

FORMS = ("natural", "field-value", "field:value", "nameless-field", "values_only")
PLM = PlmSpec()


def prompts(folder, **settings):
    write(folder / "data", random_rows(40))
    prompt_transform(folder / "data", folder / "prompts", PromptSettings(plm=None, **settings))
    return PromptSet.open(folder / "prompts")


def walk(tokenizer, text, spans):
    """Field of each token, by cutting each piece of the text into tokens by itself."""
    found, at = [], 0
    for span in spans:
        between = tokenizer.encode(text[at : span["start"]], add_special_tokens=False).ids
        value = tokenizer.encode(text[span["start"] : span["end"]], add_special_tokens=False).ids
        found += [(id_, None) for id_ in between] + [(id_, span["field"]) for id_ in value]
        at = span["end"]
    found += [(id_, None) for id_ in tokenizer.encode(text[at:], add_special_tokens=False).ids]
    first, last = tokenizer.encode("").ids
    return [(first, None), *found, (last, None)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", ["entity", "instance"])
def test_tokens_of_values_are_those_of_a_naive_walk(tmp_path, form, granularity):
    texts = prompts(tmp_path, form=form, granularity=granularity, history_items=2).texts(["text", "spans"])
    tokens = PromptTokens.of(texts, PLM, np.arange(texts.num_rows))
    tokenizer = load_tokenizer(PLM, locate(PLM), None)
    padded = tokens.padded(torch.arange(texts.num_rows))
    named = [None, *tokens.names]
    seen = set()
    for row, text in enumerate(texts.to_pylist()):
        length = int(padded.lengths[row])
        fields = [named[number + 1] for number in padded.fields[row, :length].tolist()]
        found = list(zip(padded.ids[row, :length].tolist(), fields, strict=True))
        assert found == walk(tokenizer, text["text"], text["spans"])
        assert not padded.ids[row, length:].any() and (padded.fields[row, length:] == NONE).all()
        seen |= set(fields)
    assert seen >= {"gender", "age", "job", "title", "genres", None}


def test_a_prefix_and_a_cut_move_no_mark(tmp_path):
    texts = prompts(tmp_path).texts(["text", "spans"])
    plain = PromptTokens.of(texts, PLM, np.arange(texts.num_rows))
    before = PromptTokens.of(texts, PLM.model_copy(update={"prefix": "query: "}), np.arange(texts.num_rows))
    short = PromptTokens.of(texts, PLM.model_copy(update={"max_length": 9}), np.arange(texts.num_rows))
    for row in range(texts.num_rows):
        own, prefixed, cut = (of.padded(torch.tensor([row])).fields[0].tolist() for of in (plain, before, short))
        assert prefixed == [NONE] * 2 + own
        assert cut[:-1] == own[: len(cut) - 1] and cut[-1] == NONE


def test_texts_that_nobody_reads_are_not_cut(tmp_path):
    texts = prompts(tmp_path).texts(["text", "spans"])
    some = PromptTokens.of(texts, PLM, np.array([1, 3]))
    assert (some.starts.diff() > 0).nonzero().flatten().tolist() == [1, 3]


def test_a_plm_without_a_mask_is_refused(tmp_path):
    folder = save_bert(tmp_path / "bert")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("[MASK]", "[HIDE]"))
    with pytest.raises(UserError, match="no mask token"):
        PromptTokens.of(pa.table({"text": ["a"], "spans": [[]]}), PlmSpec(name=str(folder)), np.arange(1))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hide")
    prompts(folder)
    plm = PlmSpec(name=str(save_bert(folder / "bert")))
    return TokenRows.read(folder / "prompts", plm, {"train": None})


@pytest.mark.parametrize("masks", ["field", "token"])
def test_whole_values_or_tokens_of_values_are_hidden(rows, masks):
    settings = ReconstructSettings(text_masks=masks, text_ratio=0.4)
    every = torch.arange(40)
    found = hide_words(rows, "train", every, settings, torch.Generator().manual_seed(0))
    numbers = rows.numbers("train", every)
    fields = rows.tokens.padded(found.numbers).fields
    assert not (found.hidden & (fields == NONE)).any(), "no name, no mark, no padding"
    parts = 0
    for text, owner in enumerate(found.owners.tolist()):
        assert found.numbers[text] in numbers[owner]
        for field in set(fields[text].tolist()) - {NONE}:
            hit = found.hidden[text][fields[text] == field]
            parts += bool(hit.any() and not hit.all())
    assert (parts == 0) == (masks == "field")
    ids = rows.tokens.padded(found.numbers).ids
    assert torch.equal(found.truth, ids[found.hidden]) and found.count == len(found.truth) == len(found.rows)
    assert torch.equal(found.rows, found.owners.repeat_interleave(found.hidden.sum(1)))
    for row in range(40):
        of_value = torch.cat([rows.tokens.padded(number[None]).fields[0] for number in numbers[row]])
        there = set(of_value.tolist()) - {NONE}
        known = len(there) if masks == "field" else int((of_value != NONE).sum())
        texts = (found.owners == row).nonzero().flatten().tolist()
        by_field = sum(len(set(fields[text][found.hidden[text]].tolist())) for text in texts)
        drawn = by_field if masks == "field" else sum(int(found.hidden[text].sum()) for text in texts)
        assert drawn == (max(1, int(known * 0.4 + 1e-9)) if known else 0)


def test_a_share_is_a_part_of_the_whole(rows):
    settings, every = ReconstructSettings(), torch.arange(40)
    whole = hide_words(rows, "train", every, settings, torch.Generator().manual_seed(0))
    parts = [whole.of(share) for share in (slice(0, 13), slice(13, 40))]
    assert torch.equal(torch.cat([part.truth for part in parts]), whole.truth)
    assert torch.equal(torch.cat([parts[0].rows, parts[1].rows + 13]), whole.rows)
    assert {part.count for part in parts} == {whole.count}
