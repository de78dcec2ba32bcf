"""Pre-training on a small log in which what comes next follows from what was before."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.layout import MASK
from components.dataset.training_set import TrainingSet, write_training_set
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.pretrain.sequences import Sequences, tiling_rows
from components.pretrain.settings import PretrainSettings
from components.pretrain.step import Pretraining, pretrain
from components.run import home
from components.training.checkpoints import continue_from, load_model
from tests.components.evaluate.logs import GENRES, LENGTH, spec_of, table

MODEL = BackboneConfig(embedding_dim=8, hidden=(8,), queries=2, encoder_layers=1, dropout=0.0)
SETTINGS = PretrainSettings(epochs=6, batch_size=16, learning_rate=1e-2, held_out=0.2, threads=1)


def with_attributes(rows):
    """The rows with what is kept of each event beside its item: drawn, for only how it is read matters."""
    random, lists = np.random.default_rng(3), rows["history_item_id"].to_pylist()
    stamps = [int(stamp.timestamp() * 1e6) for stamp in rows["event_timestamp"].to_pylist()]
    values = {
        "genres": (lambda _: str(random.choice(GENRES)), pa.string()),
        "price": (lambda _: float(random.integers(5, 12)), pa.float64()),
        "device": (lambda _: str(random.choice(["phone", "desk"])), pa.string()),
        "timestamp": (lambda now: now - int(random.integers(1, 10**12)), pa.int64()),
    }
    for name, (draw, kind) in values.items():
        column = [[draw(now) for _ in events] for events, now in zip(lists, stamps, strict=True)]
        rows = rows.append_column(f"history_{name}", pa.array(column, pa.list_(kind)))
    return rows


def made(folder, change=lambda rows: rows, **changes):
    spec = spec_of(**changes)
    rows = change(table(rows=600))
    count = rows.num_rows
    lists = rows["history_item_id"].to_pylist()
    labels = [None if events is None else [1] * len(events) for events in lists]
    rows = rows.append_column("history_label", pa.array(labels, pa.list_(pa.int64())))
    cuts = (0, int(count * 0.8), int(count * 0.9), count)
    parts = {name: rows.slice(cuts[i], cuts[i + 1] - cuts[i]) for i, name in enumerate(("train", "valid", "test"))}
    write_training_set(folder, spec, parts, {})
    return folder


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory):
    """Checkpoints of killed trainings lie in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    return made(tmp_path_factory.mktemp("pretrain") / "training_set")


@pytest.fixture(scope="module")
def checkpoint(training_set, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrain") / "checkpoint"
    pretrain(training_set, path, "srp4ctr", MODEL, SETTINGS, 1)
    return path


def test_what_is_hidden_is_told_better_than_before(checkpoint):
    health = json.loads((checkpoint / "health.json").read_text())
    assert health["after"]["history_item_id"] < health["before"]["history_item_id"]
    assert health["after"]["history_label"] < 0.2 < health["before"]["history_label"], "all labels are 1"
    curve = json.loads((checkpoint / "curve.json").read_text())["history"]
    assert [line["epoch"] for line in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_the_same_seed_gives_the_same_encoder(training_set, checkpoint, tmp_path):
    pretrain(training_set, tmp_path / "again", "srp4ctr", MODEL, SETTINGS, 1)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize("after", [7, 8, 11], ids="batches done: {}".format)
def test_a_killed_pre_training_goes_on_to_the_same_result(training_set, tmp_path, monkeypatch, after):
    """Killed within an epoch, and where one has just ended."""
    batches = 8
    model = MODEL.model_copy(update={"dropout": 0.2})
    settings = SETTINGS.model_copy(update={"epochs": 3, "checkpoint_minutes": 1e-9})
    whole = pretrain(training_set, tmp_path / "whole", "srp4ctr", model, settings, 1)
    step = Pretraining._step

    def killed(self, ids):
        if self.steps == after:
            raise KeyboardInterrupt
        step(self, ids)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pretraining, "_step", killed)
        pretrain(training_set, tmp_path / "parts", "srp4ctr", model, settings, 1)
    (kept,) = (home() / "checkpoints").glob("pretrain-*")
    done = []
    monkeypatch.setattr(Pretraining, "_step", lambda self, ids: done.append(self.steps) or step(self, ids))
    assert pretrain(training_set, tmp_path / "parts", "srp4ctr", model, settings, 1) == whole
    assert done == list(range(after, 3 * batches))
    one, other = (tmp_path / name for name in ("whole", "parts"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    curves = [json.loads((path / "curve.json").read_text())["history"] for path in (one, other)]
    assert [(line["epoch"], line["loss"]) for line in curves[0]] == [
        (line["epoch"], line["loss"]) for line in curves[1]
    ]
    assert not kept.exists()


def test_no_event_from_the_cut_off_on_is_seen(training_set, monkeypatch, tmp_path):
    """Valid and test rows may be anything: they are not read."""
    asked = []
    whole = TrainingSet.arrays
    monkeypatch.setattr(TrainingSet, "arrays", lambda self, part: asked.append(part) or whole(self, part))
    pretrain(training_set, tmp_path / "out", "srp4ctr", MODEL, SETTINGS.model_copy(update={"epochs": 1}), 1)
    assert asked == ["train"]


@pytest.mark.parametrize("frozen", [True, False])
def test_finetune_starts_from_the_encoder_and_keeps_it_if_frozen(training_set, checkpoint, tmp_path, frozen):
    settings = FinetuneSettings(epochs=1, batch_size=64, threads=1, frozen=frozen)
    finetune(training_set, tmp_path / "out", "srp4ctr", "srp4ctr", MODEL, settings, 1, checkpoint)
    before, after = (load_model(path).state_dict() for path in (checkpoint, tmp_path / "out"))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    encoder = {name for name in before if name.startswith("encoder.")}
    assert encoder <= same if frozen else not same & {"encoder.layers.0.key.weight", "encoder.start"}
    assert "embedding.table.weight" not in same


def test_the_items_stream_begins_as_the_pre_trained_layers(training_set, checkpoint):
    """So that its token is one that pre-training has told the behaviour of; and so it is for any head."""
    config = MODEL.model_copy(update={"queries": 3, "cross_attention": "sink"})
    whole, other = load_model(checkpoint), build_backbone("srp4ctr", load_model(checkpoint).layout, config)
    fresh = other.deep[0].weight.clone()
    with pytest.raises(UserError, match="was made for another training set or backbone"):
        continue_from(other, checkpoint)
    pretrain(training_set, checkpoint.with_name("encoder"), "srp4ctr", config.of_encoder(), SETTINGS, 1)
    continue_from(other, checkpoint.with_name("encoder"))
    assert torch.equal(other.deep[0].weight, fresh)
    for model in (whole, other):
        item, layer = model.item_layers[0].state_dict(), model.encoder.layers[0].state_dict()
        assert {name for name in layer if name in item} == set(item) - {"sink"}
        assert all(torch.equal(item[name], layer[name]) for name in set(item) - {"sink"})
    assert torch.equal(
        other.encoder.layers[0].key.weight, load_model(checkpoint.with_name("encoder")).encoder.layers[0].key.weight
    )


def test_what_cannot_be_is_refused_by_name(training_set, tmp_path):
    with pytest.raises(UserError, match="'din' has no sequence to pre-train; write --backbone srp4ctr"):
        pretrain(training_set, tmp_path / "out", "din", MODEL, SETTINGS, 1)
    with pytest.raises(UserError, match=r"write 'split: \{by: time\}' or hash"):
        pretrain(made(tmp_path / "random", split={"by": "random"}), tmp_path / "out", "srp4ctr", MODEL, SETTINGS, 1)
    settings = FinetuneSettings(frozen=True, threads=1)
    finetune(training_set, tmp_path / "a", "a", "dcn", MODEL, settings.model_copy(update={"epochs": 1}), 1, None)
    with pytest.raises(UserError, match=r"finetune\.frozen: the backbone has no pre-trained part"):
        finetune(training_set, tmp_path / "b", "b", "dcn", MODEL, settings, 1, tmp_path / "a")


@pytest.mark.parametrize("sorted_by_time", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_every_event_is_in_one_tile(sorted_by_time, share):
    """Also where the log is in any order, as after a split by users, or where only clicks enter a history."""
    random = np.random.default_rng(0)
    users, enters = random.integers(0, 7, 200), random.random(200) < share
    moments = np.arange(200) if sorted_by_time else random.permutation(200)
    length, seen, rows = 4, {}, tiling_rows(users, moments, enters, 4)
    for row in rows:
        before = [event for event in np.flatnonzero(enters & (users == users[row])) if moments[event] < moments[row]]
        assert before, "a sequence without events teaches nothing"
        for event in sorted(before, key=moments.__getitem__)[-length:]:
            seen.setdefault(int(event), []).append(int(row))
    last = {max(np.flatnonzero(users == user), key=moments.__getitem__) for user in range(7)}
    assert set(seen) == set(np.flatnonzero(enters)) - last, "a user's last impression is in no history"
    twice = [event for event, rows in seen.items() if len(rows) > 1]
    assert len(twice) <= 7 * length, "only the last tile of a user repeats events"
    assert len(rows) <= enters.sum() / length + 7


def test_batches_hold_each_sequence_once_and_little_padding():
    lengths = torch.arange(64) % 16 + 1
    ids = torch.arange(1, 65).reshape(64, 1, 1) * (
        torch.arange(16).flip(0).reshape(1, 16, 1) < lengths.reshape(64, 1, 1)
    )
    found = list(Sequences(ids).batches(8, torch.Generator().manual_seed(2)))
    assert sorted(int(batch.max(1).values[row]) for batch in found for row in range(len(batch))) == list(range(1, 65))
    filled = sum(int((batch != 0).sum()) for batch in found) / sum(batch.numel() for batch in found)
    assert filled > 0.8 > float((ids != 0).float().mean())


def test_every_attribute_is_read_hidden_and_told(tmp_path):
    """Of the item, of the behaviour that the spec names, and of what every event has."""
    history = {"length": LENGTH, "fields": ["genres", "price"], "behaviour": ["device"]}
    data = TrainingSet.open(made(tmp_path / "training_set", with_attributes, history=history))
    encoder = build_backbone("srp4ctr", data.layout, MODEL).encoder
    work = Pretraining(encoder, SETTINGS, 1)
    items, behaviour = ("item_id", "genres", "price"), ("device", "label", "gap", "hour")
    assert [(one.name, one.of_item) for one in work.attributes] == [
        *((f"history_{name}", True) for name in items), *((f"history_{name}", False) for name in behaviour),
    ]  # fmt: skip
    ids = encoder.events.ids(torch.from_numpy(data.arrays("train").ids))
    losses = work.losses(ids, torch.Generator().manual_seed(1))
    assert list(losses) == [one.name for one in work.attributes]
    for one in work.attributes:
        told = torch.autograd.grad(losses[one.name], encoder.table.weight, retain_graph=True)[0]
        masks = torch.tensor([other.offset + MASK for other in work.attributes])
        assert told[one.offset : one.offset + one.size].abs().sum() > 0, one.name
        assert (told[masks].abs().sum(1) > 0).all(), "what is hidden beside it is read as hidden"


def test_without_a_history_before_the_cut_off_there_is_nothing_to_pre_train_on(tmp_path):
    nothing = lambda rows: rows.set_column(  # noqa: E731
        rows.column_names.index("history_item_id"), "history_item_id", pa.array([[]] * len(rows), pa.list_(pa.string()))
    )
    with pytest.raises(UserError, match="no sequence to pre-train on; give more data"):
        pretrain(made(tmp_path / "empty", nothing), tmp_path / "out", "srp4ctr", MODEL, SETTINGS, 1)
