"""Pushed events make of a history what materialising the whole log would have made of it."""

import pytest

from components.dataset.errors import UserError
from tests.feature_repo import logs

HISTORY = {"length": 3, "fields": ["genres", "price"], "behaviour": ["page"], "title": "title"}
ROWS = [("a", "a", 1, 1), ("a", "b", 2, 0), ("b", "a", 3, 1), ("a", "a", 5, 0), ("a", "a", 7, 1), ("ç", "b", 8, 1)]


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The module under test."""
    from feature_repo import live  # Feast takes ten seconds to import: only where it is used

    monkeypatch.delenv("TANDEM_FEAST", raising=False)
    return live


def online_after(tmp_path, monkeypatch, spec, rows, home):
    """A store whose online rows are those of a log, in a home of its own."""
    from feature_repo import store

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / home))
    folder = logs.write(tmp_path / f"validated-{home}", spec, logs.impression_table(rows), *logs.one_row_tables())
    opened = store.open_store(spec)
    store.apply(opened, spec, folder)
    logs.materialised(opened, spec)
    return opened


def events_of(room, rows):
    return [
        room.Event(user_id=user, item_id=item, label=label, event_timestamp=logs.moment(second),
                   context={"page": f"page{label}"})
        for user, item, second, label in rows
    ]  # fmt: skip


def histories(opened, spec):
    from feature_repo.store import online_rows

    rows = online_rows(opened, spec, "user", ["a", "b", "ç"])
    return {name: [str(value or []) for value in values] for name, values in rows.items()}


@pytest.mark.parametrize(("events", "length"), [("all", 3), ("positive", 3), ("per_label", 1)])
def test_pushed_histories_equal_materialised_ones(room, tmp_path, monkeypatch, events, length):
    spec = logs.make_spec(history=HISTORY | {"events": events, "length": length})
    expected = histories(online_after(tmp_path, monkeypatch, spec, ROWS, "whole"), spec)
    opened = online_after(tmp_path, monkeypatch, spec, ROWS[:3], "live")
    assert histories(opened, spec) != expected
    pushed = events_of(room, ROWS[3:])
    written = [room.push_events(opened, spec, [event]) for event in pushed[::-1]]
    assert written == [int(event.label == 1 or events != "positive") for event in pushed[::-1]]
    assert histories(opened, spec) == expected
    assert room.push_events(opened, spec, pushed) == 0, "they are there already"
    assert room.push_events(opened, spec, events_of(room, ROWS[:1])) == 0, "there, or older than all that is"
    assert histories(opened, spec) == expected


def test_a_pushed_event_stays_until_the_tables_know_it(room, tmp_path, monkeypatch):
    spec = logs.make_spec(history=HISTORY)
    opened = online_after(tmp_path, monkeypatch, spec, ROWS[:3], "live")
    room.push_events(opened, spec, events_of(room, ROWS[3:]))
    expected = histories(opened, spec)
    corrected = [("a", "b", 1, 0), *ROWS[1:3]]
    opened = online_after(tmp_path, monkeypatch, spec, corrected, "live")
    assert histories(opened, spec) == expected, "what the log says of earlier events is older"
    opened = online_after(tmp_path, monkeypatch, spec, [*corrected, *ROWS[3:]], "live")
    found = histories(opened, spec)
    assert found["history_item_id"][0] == "['b', 'a', 'a']"
    assert found["history_item_id"] == expected["history_item_id"]


def test_what_is_no_event_is_named(room):
    line = '{"user_id": "a", "item_id": 7, "label": 1, "event_timestamp": "2026-05-31T18:30:00Z"}'
    (event,) = room.read_events([line, ""])
    assert (event.item_id, event.microseconds) == ("7", 1_780_252_200_000_000)
    with pytest.raises(UserError, match="line 2 is no event: label: Input should be less than or equal to 1"):
        room.read_events([line, line.replace(": 1,", ": 2,")])
    with pytest.raises(UserError, match="data set 'test-log' has no history"):
        room.push_events(None, logs.make_spec(), [event])


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("number", 2, "2.0"), ("number", "2.5", "2.5"), ("number", "many", "nan"), ("number", [1], "nan"),
        ("number", None, "nan"), ("category", 7, "7"), ("category", None, ""), ("multi", ["a", "b"], "a"),
        ("multi", [], ""), ("multi", "word", "word"),
    ],
)  # fmt: skip
def test_what_a_caller_reports_of_the_context_fits_its_list(room, kind, value, expected):
    from components.dataset.spec import Kind
    from feature_repo.history import HistoryColumn

    event = room.Event(user_id="a", item_id="b", label=1, event_timestamp=logs.moment(1), context={"dwell": value})
    assert str(room._value(HistoryColumn("history_dwell", "dwell", Kind(kind)), event, {"b": {}})) == expected
