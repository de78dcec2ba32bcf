"""Missing and stale inputs against plain Python, and what the degradation table says of a linear model."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pytest

from components.dataset.layout import FIRST_VALUE, MISSING, UNKNOWN
from components.evaluate import degradation as room
from components.evaluate.inputs import Log, Timeline, views, whole_rows, without
from components.evaluate.settings import EvaluateSettings
from components.training.metrics import auc
from tests.components.evaluate.logs import linear, spec_of, table, training_set, weights_of

SETTINGS = EvaluateSettings(degradation_rows=100_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("degradation") / "set")


@pytest.fixture(scope="module")
def scorer(data):
    return linear(weights_of(data))


@pytest.fixture(scope="module")
def found(data, scorer):
    return room.degradation(data, data.arrays("test"), scorer, SETTINGS)


def line(found, kind, name, lag=None):
    return next(one for one in found["table"] if (one["kind"], one["name"], one["lag"]) == (kind, name, lag))


def stale_of(found):
    return {(one["kind"], one["name"]) for one in found["table"] if one["as"] == "stale"}


def test_missing_is_encoded_as_the_service_encodes_null(data):
    test = data.table("test")
    ids = data.arrays("test").ids
    for name in ("age", "genres", "price", "device", "history_item_id"):
        gone = test.set_column(test.column_names.index(name), name, pa.nulls(len(test), test[name].type))
        expected = data.vocabulary.encode({column: gone[column] for column in gone.column_names})
        assert (without(data.layout, ids, (data.layout.field(name),)) == expected).all()


def test_a_missing_key_is_an_unknown_one(data):
    test = data.table("test")
    strangers = test.set_column(test.column_names.index("user_id"), "user_id", pa.array(["nobody"] * len(test)))
    expected = data.vocabulary.encode({column: strangers[column] for column in strangers.column_names})
    slots = data.layout.field("user_id")
    assert (without(data.layout, data.arrays("test").ids, (slots,)) == expected).all()
    assert expected[0, slots.start] == slots.offset + UNKNOWN != slots.offset + MISSING


def test_views_and_whole_rows_name_their_fields(data):
    named = {name: [slots.name for slots in members] for name, members in views(data).items()}
    assert named == {
        "user_profile": ["age"],
        "item_profile": ["genres", "price"],
        "user_history": ["history_item_id"],
        "context": ["device"],
    }
    rows = {name: [slots.name for slots in members] for name, members in whole_rows(data.layout).items()}
    assert rows == {"user": ["user_id", "age", "history_item_id"], "item": ["item_id", "genres", "price"]}


def test_counts_are_views_of_their_own_and_can_be_stale(tmp_path):
    rows = table(rows=300)
    spec = spec_of(activity={"windows": ["1h", "7d"]})
    random = np.random.default_rng(3)
    for field in spec.activity_fields():
        rows = rows.append_column(field.name, pa.array(random.integers(0, 9, len(rows)).astype(float)))
    data = training_set(tmp_path / "set", spec, rows)
    named = {name: [slots.name for slots in members] for name, members in views(data).items()}
    assert named["item_statistics"] == [field.name for field in spec.activity_fields("item")]
    assert named["user_activity"][:3] == ["user_impressions_1h", "user_positives_1h", "user_positive_rate_1h"]
    assert named["user_profile"] == ["age"]
    found = room.degradation(data, data.arrays("test"), linear(weights_of(data)), SETTINGS)
    stale = stale_of(found)
    assert {("view", "user_activity"), ("view", "item_statistics"), ("row", "user"), ("row", "item")} <= stale
    assert {("feature", field.name) for field in spec.activity_fields()} <= stale
    whole, view = (line(found, kind, name, "day") for kind, name in (("row", "user"), ("view", "user_activity")))
    assert whole["fields"] == ["history_item_id", *view["fields"]]
    assert whole["changed"] >= view["changed"] > 0


def test_a_stale_row_is_all_of_its_views_as_of_then(data, scorer, found):
    """The whole row of the user, of which here the history alone can change, and one feature of two in plain NumPy."""
    assert line(found, "row", "user", "day")["auc"] == line(found, "view", "user_history", "day")["auc"]
    test, log = data.arrays("test"), Log.read(data)
    here = np.arange(len(log.ids) - len(test.ids), len(log.ids))
    slots, ids = data.layout.history[0], test.ids.copy()
    earlier = log.ids[log.timeline("user").first_after(here, room.LAGS["week"] * room.MICROSECONDS)]
    ids[:, slots.start : slots.stop] = earlier[:, slots.start : slots.stop]
    assert line(found, "row", "user", "week")["auc"] == pytest.approx(auc(test.labels, scorer(ids)), abs=1e-12)


@pytest.mark.parametrize("lag", [1, 7, 30, 1000])
def test_first_after_equals_a_naive_search(lag):
    random = np.random.default_rng(lag)
    keys, moments = random.integers(0, 8, 300), np.sort(random.integers(0, 100, 300))
    rows = np.arange(150, 300)
    found = Timeline.of(keys, moments).first_after(rows, lag)
    for row, source in zip(rows, found, strict=True):
        mine = [n for n in range(300) if keys[n] == keys[row] and moments[n] > moments[row] - lag]
        assert keys[source] == keys[row]
        assert moments[source] == min(moments[n] for n in mine)


def test_a_stale_history_is_the_history_as_of_then(data):
    """Against plain Python: the user's last positive items at or before the row's moment less a day."""
    rows = [row for part in ("train", "valid", "test") for row in data.table(part).to_pylist()]
    first = len(rows) - len(data.table("test"))
    log = Log.read(data)
    source = log.timeline("user").first_after(np.arange(first, len(rows)), room.LAGS["day"] * room.MICROSECONDS)
    changed = 0
    for row, other in zip(rows[first:], source, strict=True):
        then = row["event_timestamp"] - dt.timedelta(days=1)
        liked = [
            one["item_id"]
            for one in rows
            if one["user_id"] == row["user_id"] and one["label"] and one["event_timestamp"] <= then
        ]
        assert rows[other]["history_item_id"] == liked[-3:]
        changed += rows[other]["history_item_id"] != row["history_item_id"]
    assert changed > 50


def test_a_line_is_the_auc_of_the_changed_rows(data, scorer, found):
    test = data.arrays("test")
    slots = data.layout.field("genres")
    expected = auc(test.labels, scorer(without(data.layout, test.ids, (slots,))))
    assert line(found, "feature", "genres")["auc"] == pytest.approx(expected, abs=1e-12)
    assert found["complete"]["auc"] == pytest.approx(auc(test.labels, scorer(test.ids)), abs=1e-12)
    assert line(found, "feature", "genres")["auc_loss"] == pytest.approx(found["complete"]["auc"] - expected)


def test_the_table_has_every_case_the_dearest_first(data, found):
    losses = [one["auc_loss"] for one in found["table"]]
    assert losses == sorted(losses, reverse=True)
    kinds = [one["kind"] for one in found["table"] if one["lag"] is None]
    assert kinds.count("feature") == len(data.layout.fields)
    assert kinds.count("view") == len(views(data))
    assert kinds.count("row") == 2
    aged = [(one["kind"], one["name"], one["lag"]) for one in found["table"] if one["lag"]]
    old = ("view", "user_history"), ("row", "user")
    assert sorted(aged) == sorted((*one, lag) for one in old for lag in room.LAGS)
    assert line(found, "feature", "user_id")["as"] == "unknown"
    assert line(found, "row", "item")["auc_loss"] > line(found, "feature", "device")["auc_loss"]
    assert found["rows"] == len(data.table("test"))
    json.dumps(found, allow_nan=False)


def test_what_never_changes_is_not_stale(found):
    hour, day = (line(found, "view", "user_history", lag) for lag in ("hour", "day"))
    assert 0 < hour["changed"] < day["changed"]
    assert stale_of(found) == {("view", "user_history"), ("row", "user")}


def test_a_model_that_does_not_read_the_history_cannot_see_it_grow_stale(data):
    weights, history = weights_of(data), data.layout.history[0]
    found = room.degradation(data, data.arrays("test"), lambda ids: linear(weights)(ids[:, : history.start]), SETTINGS)
    assert room.UNREAD_NOTE + "user_history" in found["notes"]
    assert line(found, "view", "user_history")["auc_loss"] == 0
    assert not stale_of(found)


def test_a_profile_that_changes_can_be_stale(tmp_path):
    """Prices rise by one in the middle of the test part: the rows just after see the old price a day ago."""
    rows = table()
    price = np.array([np.nan if one is None else one for one in rows["price"].to_pylist()])
    risen = pa.array(np.where(np.arange(len(price)) >= 2850, price + 1, price), from_pandas=True)
    rows = rows.set_column(rows.column_names.index("price"), "price", risen)
    sources = {"items": {"path": "items.parquet", "timestamp": "since"}}
    data = training_set(tmp_path / "set", spec_of(sources=spec_of().model_dump()["sources"] | sources), rows)
    found = room.degradation(data, data.arrays("test"), linear(weights_of(data)), SETTINGS)
    day, week = (line(found, "view", "item_profile", lag)["changed"] for lag in ("day", "week"))
    assert 0 < day < week < 0.5
    assert {name for kind, name in stale_of(found) if kind == "feature"} == {"price"}, "genres never change"
    assert line(found, "feature", "price", "week")["auc"] == line(found, "view", "item_profile", "week")["auc"]
    assert found["notes"] == [room.STALE_NOTE, room.CONSTANT_NOTE + "user_profile"]


def test_a_table_whose_rows_never_change_is_constant(tmp_path, found):
    sources = {"items": {"path": "items.parquet", "timestamp": "since"}}
    data = training_set(tmp_path / "set", spec_of(sources=spec_of().model_dump()["sources"] | sources))
    again = room.degradation(data, data.arrays("test"), linear(weights_of(data)), SETTINGS)
    assert again["notes"] == found["notes"] == [room.STALE_NOTE, room.CONSTANT_NOTE + "item_profile, user_profile"]
    assert again["table"] == found["table"]


def test_defaults_take_the_better_auc_on_valid(data, scorer, found):
    valid = data.arrays("valid")
    assert set(found["defaults"]) == {"age", "genres", "price", "device"}
    for name, chosen in found["defaults"].items():
        field, slots = data.vocabulary.field(name), data.layout.field(name)
        ids = without(data.layout, valid.ids, (slots,))
        missing = auc(valid.labels, scorer(ids))
        ids[:, slots.start] = slots.offset + int(np.ravel(field.encode([room.most_frequent(field)]))[0])
        filled = auc(valid.labels, scorer(ids))
        assert chosen["auc_missing"] == pytest.approx(missing, abs=1e-12)
        assert chosen["auc_most_frequent"] == pytest.approx(filled, abs=1e-12)
        assert chosen["default"] == ("most_frequent" if filled > missing else "missing")
        assert (chosen["value"] is None) == (chosen["default"] == "missing")


def test_a_better_default_is_its_raw_value(data):
    """A model that ranks upside down where the age is missing wants the most frequent age instead."""
    weights, slots = weights_of(data), data.layout.field("age")

    def scorer(ids):
        sign = np.where(ids[:, slots.start] == slots.offset + MISSING, -1, 1)
        return 1 / (1 + np.exp(-sign * weights[ids].sum(axis=1)))

    chosen = room.defaults(data, scorer, SETTINGS)["age"]
    assert chosen["default"] == "most_frequent"
    assert chosen["value"] == data.vocabulary.field("age").values[0]
    assert data.vocabulary.field("age").encode([chosen["value"]])[0] == FIRST_VALUE


def test_rows_are_drawn_once_and_the_same_again(data, scorer):
    few = EvaluateSettings(degradation_rows=100)
    first, second = (room.degradation(data, data.arrays("test"), scorer, few) for _ in range(2))
    assert first["rows"] == 100
    assert first == second


def test_without_time_stamps_nothing_is_stale(tmp_path):
    rows = table(rows=400).drop_columns(["event_timestamp", "history_item_id"])
    spec = spec_of(keys={"user": "user_id", "item": "item_id"}, split={"by": "random"}, history=None)
    data = training_set(tmp_path / "set", spec, rows)
    found = room.degradation(data, data.arrays("test"), linear(weights_of(data)), SETTINGS)
    assert not stale_of(found)
    assert found["notes"] == [room.NO_TIME_NOTE]


def test_one_class_is_null_and_sorted(tmp_path):
    rows = table(rows=400)
    rows = rows.set_column(rows.column_names.index("label"), "label", pa.array(np.zeros(400, dtype=np.int8)))
    data = training_set(tmp_path / "set", rows=rows)
    found = room.degradation(data, data.arrays("test"), linear(np.zeros(data.layout.vocabulary_size)), SETTINGS)
    assert {one["auc"] for one in found["table"]} == {None}
    assert {one["default"] for one in found["defaults"].values()} == {"missing"}
    json.dumps(found, allow_nan=False)
