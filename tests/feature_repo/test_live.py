"""Pushed events make of a history, and of counts, what the tables of the whole log would have made of them."""

import pyarrow as pa
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


def crowded(delay):
    """A log of 16 users without repetitions, with what is known of each row and when, and the tables of both sides."""
    log, users, items = logs.crowd(7, users=16, rows=300, delay=delay)
    seen = {(row["user_id"], row["item_id"], row["event_timestamp"]): row for row in log.to_pylist()[::-1]}
    return pa.Table.from_pylist(list(seen.values())[::-1], schema=log.schema), users, items


def read(opened, spec, users):
    from feature_repo.store import online_rows

    found = online_rows(opened, spec, "user", users)
    names = [field.name for field in spec.activity_fields("user")]
    return {user: [repr(found[name][place]) for name in names] for place, user in enumerate(users)}


@pytest.mark.parametrize("delay", [None, 8])
def test_pushed_counts_equal_the_offline_join_bit_for_bit(room, tmp_path, monkeypatch, delay):
    """What is online after a push against what an impression at that moment would get of the whole log."""
    from components.retrieve.step import joined
    from feature_repo import store
    from feature_repo.definitions import build

    sources = logs.make_spec().sources.model_dump()
    sources["impressions"] |= {} if delay is None else {"created": "c"}
    spec = logs.make_spec(history={"length": 4}, activity={"windows": ["3s", "7s", "1h"]}, sources=sources)
    log, users, items = crowded(delay)
    rows = log.to_pylist()
    base, new = ([row for row in rows if (row["event_timestamp"] > logs.moment(12)) == late] for late in (False, True))
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "live"))
    opened = store.open_store(spec)
    folder = logs.write(tmp_path / "base", spec, pa.Table.from_pylist(base, schema=log.schema), users, items)
    store.apply(opened, spec, folder)
    logs.materialised(opened, spec, end=logs.moment(20))
    pushes = ((logs.moment(21), new[::2]), (logs.moment(23), new[1::2]))
    moments = {}
    for now, some in pushes:
        events = [
            room.Event(**{name: row[name] for name in ("user_id", "item_id", "label", "event_timestamp")})
            for row in some
        ]
        assert room.push_events(opened, spec, events, now) == len({row["user_id"] for row in some})
        assert room.push_events(opened, spec, events, now) == 0, "they are there already"
        moments |= {row["user_id"]: now for row in some}
        for row in some:
            row |= {"created_timestamp": now} if delay is not None else {}
    assert len(set(moments.values())) == 2, "some users' last push is the first"

    probes = [
        {**rows[0], "user_id": user, "event_timestamp": now, "created_timestamp": now} for user, now in moments.items()
    ]
    whole = [
        {**row, "impression_id": number} for number, row in enumerate([*base, *pushes[0][1], *pushes[1][1], *probes])
    ]
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "offline"))
    folder = logs.write(tmp_path / "whole", spec, pa.Table.from_pylist(whole, schema=log.schema), users, items)
    table = (
        joined(spec, build(spec, store.publish(spec, folder)), folder / "impressions.parquet")
        .slice(len(whole) - len(probes))
        .to_pylist()
    )
    names = [field.name for field in spec.activity_fields("user")]
    offline = {row["user_id"]: [repr(row[name]) for name in names] for row in table}
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "live"))
    assert read(opened, spec, list(moments)) == offline
    assert len({value for row in offline.values() for value in row}) > 10
    found = store.online_rows(opened, spec, "user", list(moments))
    for name in ("history_timestamp", "history_label"):
        assert found[name] == [row[name] for row in table], name


def test_pushed_counts_stay_until_the_log_knows_the_events(room, tmp_path, monkeypatch):
    """A window from long ago until today: the materialisation is as of now."""
    spec = logs.make_spec(activity={"windows": ["1s", "20000d"]})
    opened = online_after(tmp_path, monkeypatch, spec, ROWS[:3], "live")
    assert read(opened, spec, ["a", "ç"]) == {"a": ["0.0", "0.0", "None", "2.0", "1.0", "0.5"], "ç": ["None"] * 6}
    assert room.push_events(opened, spec, events_of(room, ROWS[3:])) == 2
    expected = {"a": ["0.0", "0.0", "None", "4.0", "2.0", "0.5"], "ç": ["0.0", "0.0", "None", "1.0", "1.0", "1.0"]}
    assert read(opened, spec, ["a", "ç"]) == expected
    logged = [("a", "b", 4, 0), ("ç", "a", 5, 0)]
    opened = online_after(tmp_path, monkeypatch, spec, [*ROWS[:3], *logged], "live")
    expected = {"a": [*expected["a"][:3], "5.0", "2.0", "0.4"], "ç": [*expected["ç"][:3], "2.0", "1.0", "0.5"]}
    assert read(opened, spec, ["a", "ç"]) == expected, "the log has more of these users, and not what was pushed"
    assert room.PushedEvents(spec).users() == ["a", "ç"]
    opened = online_after(tmp_path, monkeypatch, spec, [*ROWS, *logged], "live")
    assert read(opened, spec, ["a", "ç"]) == expected
    assert room.PushedEvents(spec).users() == []
    assert room.push_events(opened, spec, [room.Event(user_id="b", item_id="b", label=0,
                                                      event_timestamp=logs.moment(9))]) == 1  # fmt: skip
    assert read(opened, spec, ["b"]) == {"b": ["0.0", "0.0", "None", "2.0", "1.0", "0.5"]}


def test_without_the_tables_no_counts_are_pushed(room, tmp_path, monkeypatch, caplog):
    import shutil

    spec = logs.make_spec(history=HISTORY, activity={"windows": ["1s", "20000d"]})
    opened = online_after(tmp_path, monkeypatch, spec, ROWS[:3], "live")
    before = read(opened, spec, ["a"])
    shutil.rmtree(tmp_path / "live" / "offline")
    assert room.push_events(opened, spec, events_of(room, ROWS[3:4])) == 1, "its history is"
    assert read(opened, spec, ["a"]) == before
    assert "users' counts wait for a materialisation" in caplog.text


def test_what_is_no_event_is_named(room):
    line = '{"user_id": "a", "item_id": 7, "label": 1, "event_timestamp": "2026-05-31T18:30:00Z"}'
    (event,) = room.read_events([line, ""])
    assert (event.item_id, event.microseconds) == ("7", 1_780_252_200_000_000)
    with pytest.raises(UserError, match="line 2 is no event: label: Input should be less than or equal to 1"):
        room.read_events([line, line.replace(": 1,", ": 2,")])
    late = line.replace("18:30:00Z", "20:31:00+02:00")
    assert len(room.read_events([late], now=event.moment)) == 1, "clocks differ by a minute"
    with pytest.raises(UserError, match=r"line 2 is no event: event_timestamp: .*20:31:01.* has not happened"):
        room.read_events([line, late.replace(":31:00+", ":31:01+")], now=event.moment)
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
