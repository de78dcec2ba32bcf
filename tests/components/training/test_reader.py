"""A PLM over tokens: the same states frozen, in training and from transformers; what is kept and what is trained."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertForMaskedLM

from components.dataset.errors import UserError
from components.models.plm import PlmSpec, load_plm, own_decoder
from components.models.tuning import TuningSettings, learnt, load_learnt, save_learnt
from components.training import reader as module
from components.training.reader import FrozenReader, LiveReader, TextStates, open_reader, row_vectors
from components.training.tokens import PromptTokens
from tests.components.encode.tiny import prompts, save_bert, save_llama

CPU = torch.device("cpu")
TEXTS = prompts(12)


@pytest.fixture(scope="module")
def plm(tmp_path_factory):
    return PlmSpec(name=str(save_bert(tmp_path_factory.mktemp("plm") / "bert")))


def tokens_of(plm):
    spans = [[{"field": "first", "start": 0, "end": len(text.split()[0])}] for text in TEXTS]
    return PromptTokens.of(pa.table({"text": TEXTS, "spans": spans}), plm, np.arange(len(TEXTS)))


def readers(plm):
    tokens = tokens_of(plm)
    frozen = open_reader(tokens, TuningSettings(plm=plm), CPU, 8)
    live = open_reader(tokens, TuningSettings(plm=plm, plm_mode="full"), CPU, 0)
    assert isinstance(frozen, FrozenReader) and isinstance(live, LiveReader)
    return tokens, frozen, live.eval()


NUMBERS = torch.tensor([3, 0, 7, 3, 11])


def drawn(tokens):
    """A mask over the texts of NUMBERS; the first and the fourth, of one text, are hidden alike."""
    padded = tokens.padded(NUMBERS)
    hidden = (torch.rand(padded.ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3) & padded.there
    hidden[:, 1] = True
    hidden[3] = hidden[0]
    return padded, hidden


def test_states_are_those_of_transformers(plm, monkeypatch):
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 60)
    tokens, frozen, live = readers(plm)
    model = load_plm(plm).model
    padded, hidden = drawn(tokens)
    different = torch.unique(NUMBERS)
    for reader in (frozen, live):
        states, there = reader.states(different)
        masked = reader.hidden_states(NUMBERS, hidden)
        for row, number in enumerate(different.tolist()):
            own = tokens.padded(torch.tensor([number]))
            expected = model(input_ids=own.ids).last_hidden_state[0]
            torch.testing.assert_close(states[row, : len(expected)], expected, atol=1e-5, rtol=1e-4)
            assert int(there[row].sum()) == len(expected)
        assert not states[~there].any() and not there.all(), "padding is zeros"
        expected = []
        for row in range(len(NUMBERS)):
            length = int(padded.lengths[row])
            ids = padded.ids[row, :length].masked_fill(hidden[row, :length], tokens.mask)
            expected.append(model(input_ids=ids[None]).last_hidden_state[0][hidden[row, :length]])
        torch.testing.assert_close(masked, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_a_frozen_plm_reads_each_text_under_each_mask_once(plm, monkeypatch):
    tokens, frozen, _ = readers(plm)
    _, hidden = drawn(tokens)
    read = []
    whole = module.forward

    def counted(model, tokens, numbers, *rest):
        read.append(len(numbers))
        return whole(model, tokens, numbers, *rest)

    monkeypatch.setattr(module, "forward", counted)
    first = frozen.hidden_states(NUMBERS, hidden)
    again = frozen.hidden_states(NUMBERS, torch.nn.functional.pad(hidden, (0, 5)))
    assert sum(read) == 4 and torch.equal(first, again), "two of five are alike; padding is no other mask"
    frozen.states(torch.tensor([0, 3]))
    assert sum(read) == 6
    frozen.room = 0
    frozen.states(torch.tensor([5]))
    frozen.states(torch.tensor([5]))
    assert sum(read) == 8, "what finds no room is made again"


def test_rows_share_the_states_of_their_texts(plm):
    _, frozen, _ = readers(plm)
    found = TextStates.of(frozen, NUMBERS)
    states, there = found.by_row()
    vectors = found.vectors()
    assert len(found.states) == 4 and states.shape[:2] == there.shape and len(states) == len(vectors) == 5
    torch.testing.assert_close(vectors[0], states[0][there[0]].mean(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(vectors[0], vectors[3])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_rows_vector_is_pooled_from_its_texts_states(plm, pooling, monkeypatch):
    """Of a frozen PLM the vector alone is kept."""
    _, frozen, live = readers(plm.model_copy(update={"pooling": pooling}))
    kinds = {"mean": lambda own: own.mean(0), "cls": lambda own: own[0], "last": lambda own: own[-1]}
    for reader in (frozen, live):
        states, there = TextStates.of(reader, NUMBERS).by_row()
        expected = torch.stack([kinds[pooling](own[mark]) for own, mark in zip(states, there, strict=True)])
        for found in (row_vectors(reader, NUMBERS), TextStates.of(reader, NUMBERS).vectors()):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    room = frozen.room
    row_vectors(frozen, torch.tensor([5, 5]))
    assert room - frozen.room == 4 * frozen.dim
    monkeypatch.setattr(module, "forward", lambda _model, _tokens, numbers, *_: iter(numbers.tolist()))
    assert len(row_vectors(frozen, torch.tensor([5, 3]))) == 2, "nothing is read again"


def test_gradients_reach_the_plm_even_where_nothing_is_hidden(plm):
    """Or processes would bring together gradients of different weights."""
    tokens, _, live = readers(plm)
    _, hidden = drawn(tokens)
    live.hidden_states(NUMBERS, hidden).square().sum().backward()
    touched = {name for name, weight in live.named_parameters() if weight.grad is not None}
    assert float(live.model.encoder.layer[0].attention.self.query.weight.grad.abs().sum()) > 0
    live.zero_grad(set_to_none=True)
    nothing = live.hidden_states(NUMBERS[:0], hidden[:0])
    assert nothing.shape == (0, live.dim)
    nothing.sum().backward()
    assert {name for name, weight in live.named_parameters() if weight.grad is not None} == touched


@pytest.mark.parametrize("mode", ["last_layer", "lora", "full"])
def test_what_was_trained_is_read_again(plm, tmp_path, mode):
    settings = TuningSettings(plm=plm, plm_mode=mode)
    tokens = tokens_of(plm)
    live = open_reader(tokens, settings, CPU, 0)
    with torch.no_grad():
        for weight in learnt(live.model).values():
            weight += 0.1 * torch.randn_like(weight)
    save_learnt(tmp_path, live.model, settings, live.digest)
    again = open_reader(tokens, settings, CPU, 0, start=tmp_path)
    torch.testing.assert_close(again.eval().states(NUMBERS[:3])[0], live.eval().states(NUMBERS[:3])[0])
    other = "full" if mode != "full" else "last_layer"
    with pytest.raises(UserError, match="another PLM"):
        load_learnt(tmp_path, open_reader(tokens, TuningSettings(plm=plm, plm_mode=other), CPU, 0).model)


def test_a_decoder_is_refused(tmp_path):
    llama = PlmSpec(name=str(save_llama(tmp_path / "llama")), pooling="last")
    with pytest.raises(UserError, match="give an encoder"):
        open_reader(tokens_of(llama), TuningSettings(plm=llama), CPU, 0)


def test_a_plms_own_head_is_found(plm, tmp_path):
    """The wheel has none, nor has a BERT that was saved without."""
    assert own_decoder(plm) is None and own_decoder(PlmSpec()) is None
    model = BertForMaskedLM.from_pretrained(plm.name)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    folder = tmp_path / "headed"
    model.save_pretrained(folder)
    weight, bias = own_decoder(PlmSpec(name=str(folder)))
    torch.testing.assert_close(weight, model.bert.embeddings.word_embeddings.weight)
    torch.testing.assert_close(bias, model.cls.predictions.bias)
    assert own_decoder(PlmSpec(name=str(folder), random_weights=True)) is None
