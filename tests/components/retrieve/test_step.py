"""The training set holds each impression once, with what was known at its moment and nothing later."""

import json
import logging
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from components.dataset.window import Window
from components.registry.continuation import ARRIVED_TAG, BEFORE_TAG, END_TAG, LEARNT_TAG, window_tags
from tests.feature_repo import logs

PARTS = ("train", "valid", "test")
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def step(tmp_path, monkeypatch):
    """The module under test, with its state in a folder of its own."""
    from components.retrieve import step  # Feast takes ten seconds to import: only where it is used

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TANDEM_FEAST", raising=False)
    return step


def spec_file(folder, spec):
    path = folder / "spec.yaml"
    path.write_text(spec.to_yaml())
    return str(path)


def thirty_impressions():
    """Ten moments of three impressions: ties in time, the same user, item and second twice."""
    return logs.impression_table([(*[("a", "a"), ("a", "a"), ("b", "ç")][n % 3], n // 3, n % 2) for n in range(30)])


def test_training_set_holds_every_impression_once(step, tmp_path):
    spec = logs.make_spec(history={"length": 3, "fields": ["genres"]})
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    meta = step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out")

    made = TrainingSet.open(tmp_path / "out")
    tables = [made.table(part) for part in PARTS]
    together = pa.concat_tables(tables).sort_by("impression_id")
    assert together["impression_id"].to_pylist() == list(range(30))
    users, items = logs.one_row_tables()
    expected = logs.naive_join(thirty_impressions(), users, items, True)
    of_events = [name for name in together.column_names if name.startswith("history_")]
    assert together.drop_columns(of_events).to_pylist() == expected
    assert together["history_item_id"].to_pylist()[:9:3] == [None, ["a", "a"], ["a", "a", "a"]]
    assert together["history_label"].to_pylist()[:9:3] == [None, [0, 1], [1, 1, 0]]
    assert made.arrays("valid").ids.shape == (3, made.layout.width)

    assert meta["rows"] == {"train": 24, "valid": 3, "test": 3}
    assert meta["cut_offs"] == {"valid": "2020-01-01T00:00:08+00:00", "test": "2020-01-01T00:00:09+00:00"}
    assert meta["label_rate"]["train"] == 0.5
    assert meta["new_users"] == meta["new_items"] == {"valid": 0.0, "test": 0.0}
    assert meta["feature_service"] == "ctr_test_log"
    assert {len(meta[name]) for name in ("feature_service_hash", "spec_digest", "dataset_digest")} == {64}
    assert made.meta.items() >= json.loads(json.dumps(meta)).items()


def test_the_same_input_gives_the_same_training_set(step, tmp_path):
    spec = logs.make_spec()
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    metas = [step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / name) for name in ("one", "two")]
    assert metas[0] == metas[1]
    for name in ("train.parquet", "meta.json", "vocabulary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_share_of_new_users_and_items(step, tmp_path):
    rows = [("a", "a", second, 1) for second in range(8)] + [("b", "a", 8, 0), ("ç", "ç", 9, 1)]
    spec = logs.make_spec()
    validated = logs.write(tmp_path / "validated", spec, logs.impression_table(rows), *logs.one_row_tables())
    meta = step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out")
    assert meta["new_users"] == {"valid": 1.0, "test": 1.0}
    assert meta["new_items"] == {"valid": 0.0, "test": 1.0}
    assert meta["label_rate"] == {"train": 1.0, "valid": 0.0, "test": 1.0}


def test_without_time_stamps_the_last_values_count(step, tmp_path):
    users, items = logs.one_row_tables()
    later = {"user_id": "a", "event_timestamp": logs.BASE, "created_timestamp": logs.moment(90)}
    later |= {"country_y": "newest", "tags": ["q"]}
    users = pa.concat_tables([users, pa.Table.from_pylist([later], schema=users.schema)])
    spec = logs.make_spec(timed=False)
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), users, items)
    meta = step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out")
    table = TrainingSet.open(tmp_path / "out").table("train")
    assert "event_timestamp" not in table.column_names
    assert set(table["country_y"].to_pylist()) == {"newest", None}
    assert meta["cut_offs"] == {}


def test_no_tables_at_all(step, tmp_path):
    sources = {"impressions": {"path": "i.parquet"}}
    fields = [
        {"name": "user_id", "side": "user", "kind": "id"},
        {"name": "item_id", "side": "item", "kind": "id"},
        {"name": "page", "side": "context", "kind": "category"},
    ]
    spec = logs.make_spec(sources=sources, fields=fields)
    validated = tmp_path / "validated"
    validated.mkdir()
    pq.write_table(thirty_impressions(), validated / "impressions.parquet")
    assert sum(step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out")["rows"].values()) == 30
    spec = logs.make_spec(sources=sources, fields=fields, history={"length": 2})
    step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "history")
    assert TrainingSet.open(tmp_path / "history").table("test")["history_item_id"][0].as_py() == ["a", "a"]


def test_a_window_holds_its_rows_with_features_of_the_whole_log(step, tmp_path):
    """Rows 9 to 23; what happened before the window is in their histories."""
    spec = logs.make_spec(history={"length": 30})
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    window = Window(start=logs.moment(3), end=logs.moment(8))
    meta = step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out", window)
    step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "whole")
    some, whole = (TrainingSet.open(tmp_path / name) for name in ("out", "whole"))
    rows, every = (
        pa.concat_tables([made.table(part) for part in PARTS]).sort_by("impression_id") for made in (some, whole)
    )
    assert rows["impression_id"].to_pylist() == list(range(9, 24))
    assert rows.to_pylist() == every.slice(9, 15).to_pylist()
    assert len(rows["history_item_id"][0].as_py()) == 6
    assert meta["window"]["start"] == logs.moment(3).isoformat()
    assert meta["window"]["end"] == logs.moment(8).isoformat()
    assert meta["window"]["learnt_until"] == meta["cut_offs"]["valid"]


def test_the_whole_log_ends_behind_its_newest_row(step, tmp_path):
    spec = logs.make_spec()
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    meta = step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out")
    assert meta["window"]["end"] == (logs.moment(9) + timedelta(microseconds=1)).isoformat()


#: Rows of a log by the night in which they came: half of the second night's are dated well before it.
NIGHTS = [[("a", "a", n, n % 2) for n in range(20)], [("b", "ç", n, n % 2) for n in (*range(10), *range(20, 30))]]


def nights(folder, count, arrivals):
    """The log after so many nights, with or without its rows' moments of arrival; the data set and its folder."""
    source = {"path": "i.parquet"} | ({"created": "c"} if arrivals else {})
    tables = {"path": "t.parquet", "timestamp": "t", "created": "c"}
    spec = logs.make_spec(sources={"impressions": source, "users": tables, "items": tables})
    rows = [row for night in NIGHTS[:count] for row in night]
    log = logs.impression_table(rows)
    if arrivals:
        came = [logs.moment(20 + 10 * night) for night in range(count) for _ in NIGHTS[night]]
        log = log.append_column("created_timestamp", pa.array(came, log["event_timestamp"].type))
    return spec_file(folder, spec), logs.write(folder / f"night-{count}", spec, log, *logs.one_row_tables())


def following(meta):
    """The window that follows a run, as the registry remembers what it says of itself."""
    tags = window_tags(meta)
    learnt, end = (datetime.fromisoformat(tags[name]) for name in (LEARNT_TAG, END_TAG))
    arrived = datetime.fromisoformat(tags[ARRIVED_TAG]) if ARRIVED_TAG in tags else None
    return Window(learnt, seen=end, arrived=arrived, before=int(tags[BEFORE_TAG]))


def test_rows_that_come_late_are_learnt_where_the_log_says_when_they_came(step, tmp_path):
    first = step.retrieve(*nights(tmp_path, 1, arrivals=True), tmp_path / "first")
    window = following(first)
    second = step.retrieve(*nights(tmp_path, 2, arrivals=True), tmp_path / "second", window)
    assert (first["window"]["late"], second["window"]["late"]) == (0, 10)
    made = TrainingSet.open(tmp_path / "second")
    train, valid, test = (made.table(part)["event_timestamp"].to_pylist() for part in PARTS)
    assert train[:10] == [logs.moment(n) for n in range(10)]
    timely = [logs.moment(n) for n in range(30) if logs.moment(n) >= window.start]
    assert [*train[10:], *valid, *test] == timely, "none is left out, and no other is learnt again"
    # The cut-offs are those of the rows that came in time.
    parts = [round(len(timely) * share) for share in (0.8, 0.1, 0.1)]
    assert abs(len(train) - 10 - parts[0]) <= 1
    assert second["window"]["start"] == window.start.isoformat()
    third = following(second)
    assert not third.holds(*(pa.chunked_array([[at]]) for at in (logs.moment(5), logs.moment(30)))).to_pylist()[0]


def test_rows_that_come_late_are_counted_where_the_log_does_not_say_when(step, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tandem"), "propagate", True)
    window = following(step.retrieve(*nights(tmp_path, 1, arrivals=False), tmp_path / "first"))
    assert window.arrived is None
    assert "late" not in caplog.text
    second = step.retrieve(*nights(tmp_path, 2, arrivals=False), tmp_path / "second", window)
    assert second["window"]["late"] == 10
    assert "10 impressions dated before the window have come late, and are not learnt; name the column" in caplog.text
    assert min(TrainingSet.open(tmp_path / "second").table("train")["event_timestamp"].to_pylist()) == window.start


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(start=logs.moment(3), seen=logs.moment(10)), "nothing new: the newest impression is of"),
        (Window(start=logs.moment(20)), "the window holds no impression; they lie between"),
        (Window(end=logs.moment(0)), "the window holds no impression"),
    ],
)
def test_a_window_with_nothing_to_learn_is_refused(step, tmp_path, window, message):
    spec = logs.make_spec()
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    with pytest.raises(UserError, match=message):
        step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out", window)
    assert not (tmp_path / "out").exists()


def test_a_window_needs_time_stamps(step, tmp_path):
    spec = logs.make_spec(timed=False)
    validated = logs.write(tmp_path / "validated", spec, thirty_impressions(), *logs.one_row_tables())
    with pytest.raises(UserError, match="a window needs time stamps"):
        step.retrieve(spec_file(tmp_path, spec), validated, tmp_path / "out", Window(end=logs.moment(3)))


def test_the_champions_vocabulary_is_kept_and_grown(step, tmp_path):
    """A user and an item that the window does not show keep their codes, and count as known."""
    spec = logs.make_spec()
    rows = [("a", "a", n, n % 2) for n in range(10)] + [("b", "ç", n, n % 2) for n in range(10, 20)]
    validated = logs.write(tmp_path / "validated", spec, logs.impression_table(rows), *logs.one_row_tables())
    arguments = spec_file(tmp_path, spec), validated
    step.retrieve(*arguments, tmp_path / "one", Window(end=logs.moment(10)))
    known = tmp_path / "one" / "vocabulary.json"
    step.retrieve(*arguments, tmp_path / "two", Window(start=logs.moment(10)), known)
    grown = TrainingSet.open(tmp_path / "two").vocabulary
    values = {field.name: field.values for field in grown.fields}
    assert values["user_id"] == ("a", "b")
    assert values["item_id"] == ("a", "ç")
    step.retrieve(*arguments, tmp_path / "anew", Window(start=logs.moment(10)))
    assert {field.name: field.values for field in TrainingSet.open(tmp_path / "anew").vocabulary.fields}["user_id"] == (
        "b",
    )


def test_missing_impressions_are_named(step, tmp_path):
    with pytest.raises(UserError, match=r"impressions\.parquet: no such file; give the folder"):
        step.retrieve(spec_file(tmp_path, logs.make_spec()), tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ([1, 2], "3 impressions went in, 2 rows came out"),
        ([1, 2, 3, 3], "3 impressions went in, 4 rows came out"),
        ([1, 2, 2], "not those of the impressions"),
        ([1, 2, 4], r"not those of the impressions \(1 unknown ids\)"),
    ],
)
def test_lost_doubled_and_invented_rows_are_noticed(step, got, message):
    asked = pa.chunked_array([[3, 1], [2]])
    step.check_rows(asked, pa.chunked_array([[1, 2, 3]]))
    with pytest.raises(RuntimeError, match=message):
        step.check_rows(asked, pa.chunked_array([got]))


def rewritten_future(table, now, change):
    """The table with every row that happened or became known after `now` changed."""
    rows = table.to_pylist()
    times = [name for name in ("event_timestamp", "created_timestamp") if name in table.column_names]
    changed = [row | change if any(row[time] > now for time in times) else row for row in rows]
    return pa.Table.from_pylist(changed, schema=table.schema)


@few
@given(
    log=logs.impressions(), users=logs.tables("users"), items=logs.tables("items"), second=st.integers(0, 9),
    created=st.booleans(),
)  # fmt: skip
def test_time_machine(step, tmp_path, log, users, items, second, created):
    """Whatever happens after T, no row up to T changes."""
    now = logs.moment(second)
    spec = logs.make_spec(created=created, history={"length": 3, "fields": ["genres", "price"]})
    if not created:
        users, items = users.drop_columns(["created_timestamp"]), items.drop_columns(["created_timestamp"])
    perturbed = (
        rewritten_future(log, now, {"user_id": "a", "item_id": "b", "label": 1, "page": "other"}),
        rewritten_future(users, now, {"country_y": "other", "tags": ["other"]}),
        rewritten_future(items, now, {"title": "other", "price": 99.0, "genres": ["other"]}),
    )
    before, after = (
        rows_until(step, spec, Path(tempfile.mkdtemp(dir=tmp_path)), tables, now)
        for tables in ((log, users, items), perturbed)
    )
    assert before == after


def rows_until(step, spec, folder, tables, now):
    from feature_repo.definitions import build
    from feature_repo.publish import publish

    log, users, items = tables
    folder.mkdir(exist_ok=True)
    for name, table in (("impressions", log), ("users", users), ("items", items)):
        pq.write_table(table, folder / f"{name}.parquet")
    table = step.joined(spec, build(spec, publish(spec, folder)), folder / "impressions.parquet")
    # As text, since a missing price in a history is NaN, which does not equal itself.
    return [str(row) for row in table.to_pylist() if row["event_timestamp"] <= now]
