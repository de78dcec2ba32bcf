"""Checkpoints: what is read is what was written, and what is no checkpoint is refused."""

import json

import pytest
import torch

from components.dataset.errors import UserError
from components.models.registry import BACKBONES
from components.training.checkpoints import load_model, save_model
from tests.components.models.making import MIXED, ids_of, model_of


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model = model_of(name)
    save_model(tmp_path / "kept", model, {"seed": 1}, {"curve.json": {"best_epoch": 2}})
    found = load_model(tmp_path / "kept").eval()
    ids = ids_of(MIXED)
    assert torch.equal(found(ids), model(ids))
    assert (found.layout, found.config) == (model.layout, model.config)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "config.json",
        "curve.json",
        "model.safetensors",
    ]


def test_a_later_checkpoint_takes_the_place_of_an_earlier_one(tmp_path):
    save_model(tmp_path / "kept", model_of("dcn"), {}, {"old.json": {}})
    save_model(tmp_path / "kept", model_of("pnn"), {})
    assert type(load_model(tmp_path / "kept")) is type(model_of("pnn"))
    assert not (tmp_path / "kept" / "old.json").exists()


def test_nothing_is_left_of_a_checkpoint_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_model(tmp_path / "kept", model_of("dcn"), {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_model(tmp_path)


def test_another_format_is_refused(tmp_path):
    save_model(tmp_path / "kept", model_of("dcn"), {})
    path = tmp_path / "kept" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_model(tmp_path / "kept")


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_a_flipped_bit_of_the_weights_is_refused(tmp_path, place):
    save_model(tmp_path / "kept", model_of("dcn"), {})
    flipped(tmp_path / "kept" / "model.safetensors", place)
    with pytest.raises(UserError, match=r"model\.safetensors: was changed or damaged"):
        load_model(tmp_path / "kept")


def test_weights_that_end_early_or_are_gone_are_refused(tmp_path):
    save_model(tmp_path / "kept", model_of("dcn"), {})
    weights = tmp_path / "kept" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match="was changed or damaged"):
        load_model(tmp_path / "kept")
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "kept")


@pytest.mark.parametrize(
    ("old", "new"), [('"embedding_dim": ', '"embedding_dim": 1'), ('"dcn"', '"pnn"'), ("}", ""), ("{", "[")]
)
def test_a_changed_description_is_refused(tmp_path, old, new):
    save_model(tmp_path / "kept", model_of("dcn"), {})
    path = tmp_path / "kept" / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=r"config\.json: was changed or damaged"):
        load_model(tmp_path / "kept")


def test_weights_of_another_model_are_refused(tmp_path):
    """Each file is whole, but the two were not written together."""
    for name in ("dcn", "pnn"):
        save_model(tmp_path / name, model_of(name), {})
    (tmp_path / "dcn" / "model.safetensors").write_bytes((tmp_path / "pnn" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="was changed or damaged"):
        load_model(tmp_path / "dcn")
