"""What materialising writes, and what it finds when it comes back: new, late, corrected, pushed and lost values."""

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tests.feature_repo import logs

DAY = 86_400


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The module under test, with its state in a folder of its own."""
    from feature_repo import materialise  # Feast takes ten seconds to import: only where it is used

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TANDEM_FEAST", raising=False)
    return materialise


def users_table(rows):
    """Rows (user, second from which they hold, second at which they were known, country)."""
    types = [("user_id", pa.string()), ("event_timestamp", logs.MOMENT), ("created_timestamp", logs.MOMENT)]
    columns = {
        "user_id": [row[0] for row in rows],
        "event_timestamp": [logs.moment(row[1]) for row in rows],
        "created_timestamp": [logs.moment(row[2]) for row in rows],
        "country_y": [row[3] for row in rows],
        "tags": [None] * len(rows),
    }
    return pa.table(columns, schema=pa.schema([*types, *logs.TABLES["users"]]))


@pytest.fixture
def shop(room, tmp_path):
    """Apply a table of users, with one impression of user u3 long ago, and give the store."""
    from feature_repo import store

    def apply(rows, **changes):
        spec = logs.make_spec(**changes)
        log = logs.impression_table([("u3", "a", 1, 1), ("u3", "a", 2, 0)])
        folder = logs.write(tmp_path / "validated", spec, log, users_table(rows), logs.one_row_tables()[1])
        opened = store.open_store(spec)
        store.apply(opened, spec, folder)
        return opened, spec

    return apply


FIRST = [(f"u{n}", n, n, "x") for n in range(10)]


def countries(store, spec, users):
    from feature_repo.store import online_rows

    return online_rows(store, spec, "user", users)["country_y"]


def test_only_what_has_changed_is_written(room, shop):
    """A corrected value has the old time stamp, a late one an older: a watermark would pass over both."""
    opened, spec = shop(FIRST)
    assert room.materialise(opened, spec)["user_profile"] == room.Materialised(10, 10, logs.moment(9))
    assert room.materialise(opened, spec)["user_profile"].written == 0
    corrected, late, new = ("u1", 1, 50, "y"), ("v", -DAY, 51, "z"), ("u2", 60, 60, "w")
    opened, spec = shop([*FIRST, corrected, late, new])
    assert room.materialise(opened, spec)["user_profile"] == room.Materialised(11, 3, logs.moment(60))
    assert countries(opened, spec, ["u1", "v", "u2", "u3"]) == ["y", "z", "w", "x"]
    assert room.materialise(opened, spec, full=True)["user_profile"].written == 11


def test_values_come_into_force_without_a_new_table(room, shop):
    opened, spec = shop([("u1", 1, 1, "x"), ("u1", 100, 1, "y"), ("u2", 1, 1, "x")])
    assert room.materialise(opened, spec, end=logs.moment(50))["user_profile"].written == 2
    assert room.materialise(opened, spec, end=logs.moment(99))["user_profile"].written == 0
    assert room.materialise(opened, spec, end=logs.moment(100))["user_profile"].written == 1
    assert countries(opened, spec, ["u1"]) == ["y"]


def test_what_was_interrupted_is_finished(room, shop, monkeypatch):
    opened, spec = shop(FIRST)
    monkeypatch.setattr(room, "PIECE", 3)
    write, pieces = room.pq.write_table, []

    def fail_at(number):
        def written(rows, path):
            if len(pieces) == number:
                raise KeyboardInterrupt
            pieces.append(rows["user_id" if "user_id" in rows.column_names else "item_id"].to_pylist())
            write(rows, path)

        return written

    monkeypatch.setattr(room.pq, "write_table", fail_at(3))
    with pytest.raises(KeyboardInterrupt):
        room.materialise(opened, spec)
    monkeypatch.setattr(room.pq, "write_table", fail_at(None))
    done = room.materialise(opened, spec)
    users = [key for keys in pieces for key in keys if key.startswith("u")]
    assert sorted(users) == sorted(f"u{n}" for n in range(10)), "each key once, over both attempts"
    assert done["user_profile"].keys == 10
    assert countries(opened, spec, [f"u{n}" for n in range(10)]) == ["x"] * 10


def test_pieces_of_a_table_that_is_gone_are_not_trusted(room, shop, monkeypatch):
    opened, spec = shop(FIRST)
    room.materialise(opened, spec)
    changed = [(f"u{n}", n, 20, "y") for n in range(10)]
    opened, spec = shop([*FIRST, *changed])
    monkeypatch.setattr(room, "PIECE", 3)
    write, count = room.pq.write_table, iter(range(9))

    def written(rows, path):
        if next(count) == 2:
            raise KeyboardInterrupt
        write(rows, path)

    monkeypatch.setattr(room.pq, "write_table", written)
    with pytest.raises(KeyboardInterrupt):
        room.materialise(opened, spec)
    monkeypatch.setattr(room.pq, "write_table", write)
    opened, spec = shop(FIRST)
    assert room.materialise(opened, spec)["user_profile"].written == 10
    assert countries(opened, spec, [f"u{n}" for n in range(10)]) == ["x"] * 10


def test_an_online_store_that_lost_its_rows_is_filled_again(room, shop, tmp_path):
    opened, spec = shop(FIRST)
    room.materialise(opened, spec)
    opened.teardown()
    opened, spec = shop(FIRST)
    assert room.materialise(opened, spec)["user_profile"].written == 10
    assert countries(opened, spec, ["u1"]) == ["x"]


def test_the_age_is_that_of_the_data(room, shop, tmp_path):
    """Undated tables have none; a count's age is that of the last event and not of the last that fell out."""
    sources = logs.make_spec().sources.model_dump()
    sources["items"]["timestamp"] = None
    opened, spec = shop(FIRST, sources=sources, history={"length": 2}, activity={"windows": ["1h"]})
    room.materialise(opened, spec, end=logs.moment(DAY))
    ages = room.data_age(spec, logs.moment(DAY))
    assert ages.pop("item_profile") is None
    assert ages.pop("user_profile") == DAY - 9
    assert all(DAY - 2 - 1e-5 < age < DAY - 1 for age in ages.values()), ages
    assert set(ages) == {"user_history", "user_activity", "item_statistics"}
    room.materialise(opened, spec, full=True)
    age = room.data_age(spec)["user_activity"]
    assert timedelta(seconds=age) > datetime.now(UTC) - logs.moment(10), "materialising anew makes no data younger"
    said = json.loads((tmp_path / "home" / "feast" / "test_log-age.json").read_text())
    assert said["user_activity"]["keys"] == 1 and said["user_activity"]["newest"].startswith("2020-01-01T00:00:02")


def test_counts_are_those_of_the_end(room, shop):
    from feature_repo.store import online_rows

    opened, spec = shop(FIRST, activity={"windows": ["10s"]})
    for second, count in ((2, 1.0), (3, 2.0), (11, 1.0), (12, 0.0)):
        room.materialise(opened, spec, end=logs.moment(second))
        row = online_rows(opened, spec, "user", ["u3", "stranger"])
        assert row["user_impressions_10s"] == [count, None], second
    assert row["user_positive_rate_10s"] == [None, None]
