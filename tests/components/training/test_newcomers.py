"""Ids hidden at random, mapped rows, and rows for users and items that training did not show."""

import numpy as np
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.layout import MASK, MISSING, UNKNOWN
from components.models.config import BackboneConfig
from components.models.registry import BACKBONES, build_backbone, reads_history
from components.objectives.settings import ContrastSettings
from components.training.contrast import Contrast
from components.training.group import Group
from components.training.growth import NewRows, grow, grown_for, settle
from components.training.learner import Learner
from components.training.loop import fit, predict
from components.training.newcomers import Hiding, RowMaps, id_field
from components.training.seeds import seed_everything
from components.training.settings import LoopSettings
from components.training.texts import TextRows
from tests.components.evaluate.logs import training_set

CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1, cin=(4,))
DIM = 6
CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("rows") / "training_set")


@pytest.fixture(scope="module")
def plain(data):
    """The same rows as a model without a history sees them."""
    return data.for_model(False)


@pytest.fixture(scope="module")
def texts(data):
    """A vector for each user and each item of the log."""
    keys: dict[str, int] = {}
    index = {}
    for part in ("train", "valid", "test"):
        rows = data.table(part)
        index[part] = {
            f"{side}_text": torch.tensor([keys.setdefault(key, len(keys)) for key in rows[f"{side}_id"].to_pylist()])
            for side in ("user", "item")
        }
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(len(keys), DIM)).astype(np.float32))
    return TextRows(matrix, index, CPU)


def learner_of(data, texts, backbone="autoint", **more):
    seed_everything(1)
    model = build_backbone(backbone, data.layout, CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.embedding.table.weight[0] = 0
    return Learner(model, maps=RowMaps(data.layout, ("user", "item"), DIM, 4), texts=texts, **more)


# --- hiding ------------------------------------------------------------------------------------------------------


def test_hidden_is_what_a_new_item_would_not_have(data):
    """The log's items share genres and prices; its ids are their own."""
    train = data.arrays("train")
    hiding = Hiding(data.layout, train, {"user": 0.0, "item": 0.999999})
    ids = torch.from_numpy(train.ids)
    hidden = hiding(ids, torch.Generator().manual_seed(0), ALONE, len(ids))
    item = data.layout.field("item_id")
    assert (hidden[:, item.start] == item.offset + UNKNOWN).all()
    others = [c for c in range(data.layout.width) if c != item.start]
    assert torch.equal(hidden[:, others], ids[:, others])


def test_values_that_one_item_alone_has_are_hidden_with_it(data):
    """Where only one item has a value, as with titles, the value would give the item away."""
    train = data.arrays("train")
    genres = data.layout.field("genres")
    ids = train.ids.copy()
    first = train.item_codes == train.item_codes[0]
    rare = genres.offset + genres.size - 1
    ids[:, genres.start : genres.stop] = np.where(ids[:, genres.start : genres.stop] == rare, rare - 1, 0)
    ids[first, genres.start] = rare
    changed = type(train)(**{**vars(train), "ids": ids})
    hiding = Hiding(data.layout, changed, {"item": 0.999999})
    hidden = hiding(torch.from_numpy(ids), torch.Generator().manual_seed(0), ALONE, len(ids))
    assert (hidden[first, genres.start] == genres.offset + UNKNOWN).all()
    assert torch.equal(hidden[~first, genres.start], torch.from_numpy(ids)[~first, genres.start])


@pytest.mark.parametrize("few", [1, 4, 9])
def test_what_a_few_share_is_hidden_with_each_of_them(data, few):
    """Each value's items counted one after the other."""
    train, genres = data.arrays("train"), data.layout.field("genres")
    ids = train.ids.copy()
    values = genres.offset + 3 + np.digitize(train.item_codes, [1, 4, 10])
    ids[:, genres.start] = values
    ids[:, genres.start + 1 : genres.stop] = 0
    hiding = Hiding(data.layout, type(train)(**{**vars(train), "ids": ids}), {"item": 0.999999}, few)
    hidden = hiding(torch.from_numpy(ids), torch.Generator().manual_seed(0), ALONE, len(ids))[:, genres.start]
    owners = {value: len(set(train.item_codes[values == value])) for value in set(values)}
    assert {1, 3, 6} <= set(owners.values()), owners
    expected = [genres.offset + UNKNOWN if owners[value] <= few else value for value in values]
    assert hidden.tolist() == expected


def test_hiding_draws_its_share_and_leaves_the_history(data):
    train = data.arrays("train")
    hiding = Hiding(data.layout, train, {"user": 0.25, "item": 0.5})
    ids, generator = torch.from_numpy(train.ids), torch.Generator().manual_seed(3)
    hidden = hiding(ids, generator, ALONE, len(ids))
    shares = {}
    for side in ("user", "item"):
        field = data.layout.field(f"{side}_id")
        shares[side] = float((hidden[:, field.start] == field.offset + UNKNOWN).float().mean())
    assert shares["user"] == pytest.approx(0.25, abs=0.03) and shares["item"] == pytest.approx(0.5, abs=0.03)
    for slots in data.layout.history:
        assert torch.equal(hidden[:, slots.start : slots.stop], ids[:, slots.start : slots.stop])
    assert not torch.equal(hiding(ids, generator, ALONE, len(ids)), hidden)


# --- mapped rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["autoint", "wide_deep", "xdeepfm"])
def test_the_served_table_holds_the_mapped_rows(plain, texts, backbone):
    """With texts and without them the model says the same of users and items that it knows."""
    learner = learner_of(plain, texts, backbone)
    train = plain.arrays("train")
    expected = learner.predict("train", train.ids)
    before = predict(learner.model, train.ids)
    settle(learner.model, learner.maps, texts, train)
    assert np.abs(predict(learner.model, train.ids) - expected).max() < 1e-6 < np.abs(before - expected).max()


@pytest.mark.parametrize("backbone", [name for name in sorted(BACKBONES) if not reads_history(name)])
def test_new_users_and_items_get_rows_from_their_texts(plain, texts, backbone):
    """Grown, the model gives a part with new users and items what the learner gives with texts at hand."""
    learner = learner_of(plain, texts, backbone)
    test = plain.arrays("test")
    expected = learner.predict("test", test.ids)
    new = (test.user_counts == 0) | (test.item_counts == 0)
    assert new.any() and not new.all()
    maps = settle(learner.model, learner.maps, texts, plain.arrays("train"))
    grown, vocabulary = grown_for(learner.model, maps, plain, texts, "test")
    table = plain.table("test")
    ids = vocabulary.encode({name: table[name] for name in table.column_names})
    assert grown.layout == vocabulary.layout and grown.layout.vocabulary_size > plain.layout.vocabulary_size
    assert np.abs(predict(grown, ids) - expected).max() < 1e-5
    stale = predict(learner.model, test.ids)
    assert np.abs(stale[~new] - expected[~new]).max() < 1e-5 < np.abs(stale[new] - expected[new]).max()


def test_growing_moves_every_row_and_changes_no_known_prediction(plain):
    seed_everything(2)
    model = build_backbone("deepfm", plain.layout, CONFIG)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "table"):
                module.table.weight.normal_()
                module.table.weight[0] = 0
    rows = torch.randn(3, 4)
    grown, vocabulary = grow(model, plain.vocabulary, "item", ["x", "y", "z"], rows)
    train = plain.table("train")
    columns = {name: train[name] for name in train.column_names}
    known = predict(model, plain.vocabulary.encode(columns)), predict(grown, vocabulary.encode(columns))
    np.testing.assert_allclose(*known, atol=1e-6)
    field, first = vocabulary.layout.field("item_id"), plain.layout.field("item_id").size
    assert torch.equal(grown.embedding.table.weight[field.offset + first : field.offset + first + 3], rows)
    assert vocabulary.field("item_id").encode(["y"])[0] == first + 1
    with pytest.raises(ValueError, match="already"):
        grow(grown, vocabulary, "item", ["y"], rows[:1])
    with pytest.raises(ValueError, match="do not fit"):
        grow(model, plain.vocabulary, "item", ["y"], rows)


def test_unknown_ids_have_the_mean_row(plain, texts):
    learner = learner_of(plain, texts)
    field = id_field(plain.layout, "item").slots
    before = learner.model.embedding.table.weight.detach().clone()
    maps = settle(learner.model, learner.maps, texts, plain.arrays("train"))
    after = learner.model.embedding.table.weight.detach()
    added = after[field.offset + 3 : field.offset + field.size] - before[field.offset + 3 : field.offset + field.size]
    for code in (UNKNOWN, MISSING, MASK):
        row = field.offset + code
        torch.testing.assert_close(after[row] - before[row], added.mean(0))
    torch.testing.assert_close(maps.biases["item"], learner.maps.linear("item").bias + before[field.offset])


def test_maps_are_kept_beside_the_checkpoint(plain, texts, tmp_path):
    learner = learner_of(plain, texts)
    maps = settle(learner.model, learner.maps, texts, plain.arrays("train"))
    maps.save(tmp_path)
    loaded = NewRows.load(tmp_path)
    vectors = torch.randn(5, DIM)
    assert loaded.sides == ("user", "item") or loaded.sides == ("item", "user")
    for side in ("user", "item"):
        assert torch.equal(loaded(side, vectors), maps(side, vectors))
    with pytest.raises(UserError, match="map_rows"):
        NewRows.load(tmp_path / "absent")


def test_without_an_id_there_is_no_row_to_map(plain):
    slots = tuple(field for field in plain.layout.fields if field.name != "item_id")
    with pytest.raises(UserError, match="kind id"):
        id_field(type(plain.layout)(slots), "item")


# --- beside the clicks -------------------------------------------------------------------------------------------


def trained(plain, texts, **changes):
    settings = LoopSettings(**{"epochs": 2, "batch_size": 256, "learning_rate": 0.01, "patience": 5, **changes})
    learner = learner_of(plain, texts)
    contrast = Contrast(texts, {"train": plain.arrays("train")}, learner.model.width, ContrastSettings(temperature=0.1))
    learner.contrast, learner.weight = contrast, 1.0
    rows = torch.arange(256)

    def aligned() -> float:
        with torch.no_grad():
            learner.eval()
            ids = torch.from_numpy(plain.arrays("train").ids)[rows]
            representation = learner.model.interact(learner.embed(ids, "train", rows), ids)
            return float(contrast("train", rows, representation, ALONE, len(rows)))

    before = aligned()
    fit(learner, plain.arrays("train"), plain.arrays("valid"), settings, 1)
    return learner, before, aligned()


def test_alignment_beside_the_clicks_aligns(plain, texts):
    _, before, after = trained(plain, texts)
    assert after < 0.9 * before


def test_frozen_embeddings_stay_until_they_thaw(plain, texts):
    start = learner_of(plain, texts).model.embedding.table.weight.detach().clone()
    for changes in ({"frozen_epochs": 2}, {"embedding_rate": 0}):
        learner, *_ = trained(plain, texts, **changes)
        assert torch.equal(learner.model.embedding.table.weight, start), changes
        assert learner.model.embedding.table.weight.requires_grad
    learner, *_ = trained(plain, texts, frozen_epochs=1)
    assert not torch.equal(learner.model.embedding.table.weight, start)
