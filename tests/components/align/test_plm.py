"""A PLM that learns with the table: what each mode trains, what it keeps, and whether it helps."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from components.align.plm import LiveTexts
from components.align.settings import AlignSettings
from components.align.step import align
from components.dataset.embeddings import write_embeddings
from components.dataset.errors import UserError
from components.dataset.prompts import TEXT_SCHEMA, text_hash, write_prompt_set
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.models.plm import PlmSpec, load_plm
from components.training.texts import read_texts
from tests.components.encode.tiny import save_bert
from tests.components.evaluate.logs import table, training_set

CONFIG = BackboneConfig(embedding_dim=8, hidden=(16,), layers=1, dropout=0.0)
MODES = ("last_layer", "lora", "full")


@pytest.fixture(scope="module", params=["entity", "instance"])
def inputs(request, tmp_path_factory):
    """A training set with a text for each user and item, or for each row, and what a tiny BERT makes of them."""
    folder = tmp_path_factory.mktemp(request.param)
    data = training_set(folder / "training_set", rows=table(rows=600))
    plm = PlmSpec(name=str(save_bert(folder / "bert")))
    texts: dict[str, int] = {}
    index = {}
    for part in ("train", "valid", "test"):
        rows = data.table(part)
        users = [f"this is a user number {key[1:]}" for key in rows["user_id"].to_pylist()]
        items = [f"this is a movie number {key[1:]}" for key in rows["item_id"].to_pylist()]
        whole = [f"{user} {item}" for user, item in zip(users, items, strict=True)]
        columns = {"user_text": users, "item_text": items} if request.param == "entity" else {"row_text": whole}
        index[part] = {
            name: np.array([texts.setdefault(text, len(texts)) for text in said], np.int32)
            for name, said in columns.items()
        }
    written = pa.table(
        {
            "text_id": pa.array(range(len(texts)), pa.int32()),
            "side": ["row"] * len(texts),
            "text": list(texts),
            "hash": [text_hash(text) for text in texts],
            "spans": pa.array([[] for _ in texts], TEXT_SCHEMA.field("spans").type),
        }
    )
    write_prompt_set(folder / "prompts", written, index, {}, {"granularity": request.param, "prompt_hash": "p"})
    loaded = load_plm(plm)
    meta = {"plm": "tiny", "plm_digest": loaded.digest, "pooling": "mean", "cache": {}}
    vectors = np.zeros((len(texts), loaded.dim), np.float32)
    write_embeddings(folder / "embeddings", vectors, np.arange(len(texts), dtype=np.int32), meta)
    return folder, data, plm, list(texts)


def settings_of(plm, mode, **changes):
    quick = {"epochs": 4, "batch_size": 64, "temperature": 0.1, "learning_rate": 3e-3, "health_rows": 48}
    return AlignSettings(**{**quick, "plm_mode": mode, "plm": plm, "plm_learning_rate": 1e-3, **changes})


def live(inputs, mode):
    folder, _, plm, texts = inputs
    frozen, _ = read_texts(folder / "prompts", [folder / "embeddings"], torch.device("cpu"))
    return LiveTexts(frozen, texts, settings_of(plm, mode)).eval()


def test_vectors_are_those_of_the_plm(inputs):
    """Padding and the order of a batch change nothing."""
    _, _, plm, texts = inputs
    texts_of = live(inputs, "full")
    loaded = load_plm(plm)
    rows = torch.tensor([5, 0, 5, 77])
    with torch.no_grad():
        found = texts_of("train", rows)
        for row, vector in zip(rows, found, strict=True):
            parts = []
            for number in texts_of.numbers("train", row[None])[0]:
                tokens = loaded.tokenizer(texts[number], return_tensors="pt")
                parts.append(loaded.model(**tokens).last_hidden_state[0].mean(0))
            torch.testing.assert_close(vector, torch.cat(parts), atol=1e-5, rtol=1e-4)
    assert found.shape == (4, texts_of.width)


def test_each_mode_trains_its_own_part(inputs):
    last, lora, full = (live(inputs, mode) for mode in MODES)
    assert all("encoder.layer.1." in name for name in last.learnt())
    assert len(last.learnt()) == len(list(last.model.encoder.layer[1].parameters()))
    assert lora.learnt() and all("lora_" in name for name in lora.learnt())
    assert set(full.learnt()) == {name for name, _ in full.model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_a_trained_plm_is_kept_beside_the_model_and_not_in_it(inputs, tmp_path, mode):
    folder, _, plm, _ = inputs
    paths = folder / "training_set", folder / "prompts", [folder / "embeddings"], tmp_path / "out"
    start = {name: value.detach().clone() for name, value in live(inputs, mode).learnt().items()}
    align(*paths, "autoint", CONFIG, settings_of(plm, mode), 1)
    # On the rows that it trained on: what a few hundred rows teach a random PLM need not hold for others.
    losses = [line["loss"] for line in json.loads((tmp_path / "out" / "curve.json").read_text())["history"]]
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter])
    kept = load_file(str(tmp_path / "out" / "plm" / "trained.safetensors"))
    assert set(kept) == set(start)
    moved = [name for name, value in kept.items() if not torch.equal(value, start[name])]
    # A fresh adapter's A has no gradient before its B has moved, and BERT's pooler is not read.
    assert len(moved) > 0.8 * len([name for name in kept if "pooler" not in name])
    about = json.loads((tmp_path / "out" / "plm" / "trained.json").read_text())
    assert (about["mode"], about["plm_digest"]) == (mode, load_plm(plm).digest)
    weights = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert not any("lora" in name or "encoder" in name for name in weights)
    assert not (tmp_path / "out" / "heads.safetensors").exists()
    # Stage 2 goes on from the collaborative half: at a rate of next to nothing its rows stay what they were.
    still = FinetuneSettings(epochs=1, learning_rate=1e-9)
    finetune(paths[0], tmp_path / "still", "ctrl", "autoint", CONFIG, still, 1, tmp_path / "out")
    tuned = load_file(str(tmp_path / "still" / "model.safetensors"))
    torch.testing.assert_close(tuned["embedding.table.weight"], weights["embedding.table.weight"])
    kept_up = FinetuneSettings(epochs=1, auxiliary={"weight": 0.1})
    rest = paths[0], tmp_path / "tuned", "ctrl", "autoint", CONFIG, kept_up, 1, tmp_path / "out", paths[1], paths[2]
    with pytest.raises(UserError, match="trained its PLM"):
        finetune(*rest)


def test_another_plm_than_the_encoded_one_is_refused(inputs, tmp_path):
    folder, _, _, _ = inputs
    other = PlmSpec(name=str(save_bert(tmp_path / "other", seed=1)))
    paths = folder / "training_set", folder / "prompts", [folder / "embeddings"], tmp_path / "out"
    with pytest.raises(UserError, match=r"align\.plm"):
        align(*paths, "autoint", CONFIG, settings_of(other, "full"), 1)
    assert not (tmp_path / "out").exists()
