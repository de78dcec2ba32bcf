"""The joins of the feature store equal the naive ones, row for row."""

import math
import tempfile
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.feature_repo import logs

few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def retrieved(tmp_path, monkeypatch):
    """Join generated tables through Feast, each time in a fresh folder."""
    from components.retrieve.step import joined  # Feast takes ten seconds to import: only where it is used
    from feature_repo.definitions import build
    from feature_repo.publish import publish

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))

    def run(spec, log, users, items):
        folder = logs.write(Path(tempfile.mkdtemp(dir=tmp_path)), spec, log, users, items)
        return joined(spec, build(spec, publish(spec, folder)), folder / "impressions.parquet")

    return run


@few
@given(log=logs.impressions(), users=logs.tables("users"), items=logs.tables("items"), created=st.booleans())
def test_profiles_equal_the_naive_join(retrieved, log, users, items, created):
    table = retrieved(logs.make_spec(created=created), log, users, items)
    assert table.to_pylist() == logs.naive_join(log, users, items, created)


@few
@given(log=logs.impressions(), users=logs.tables("users"), items=logs.tables("items"), seconds=st.integers(1, 5))
def test_expired_values_are_missing(retrieved, log, users, items, seconds):
    ttl = timedelta(seconds=seconds)
    table = retrieved(logs.make_spec(ttl=ttl), log, users, items)
    assert table.to_pylist() == logs.naive_join(log, users, items, True, ttl)


MOMENT = ["hour", "weekday"]


@few
@given(seconds=st.lists(st.integers(-(10**10), 10**9), min_size=1, max_size=20), alone=st.booleans())
def test_request_time_context_equals_the_calendar(retrieved, seconds, alone):
    """Long before 1970 too, and where there is no other view."""
    log = logs.impression_table([("a", "b", second, 0) for second in seconds])
    users, items = logs.one_row_tables()
    spec = logs.make_spec(moment=MOMENT)
    if alone:
        fields = [field.model_dump() for field in spec.fields if field.side == "context"]
        spec = logs.make_spec(moment=MOMENT, fields=fields)
    table = retrieved(spec, log, users, items)
    columns = (table[f"request_{part}"].to_pylist() for part in MOMENT)
    assert list(zip(*columns, strict=True)) == logs.naive_context(log)


EVENT = ("item_id", "genres", "price", "page", "label", "timestamp")


@few
@given(
    log=logs.impressions(), items=logs.tables("items"), length=st.integers(1, 6), created=st.booleans(),
    events=st.sampled_from(["all", "positive", "per_label"]), late=st.booleans(),
    delays=st.lists(st.integers(0, 4), min_size=25, max_size=25),
)  # fmt: skip
def test_history_equals_the_naive_one(retrieved, log, items, length, created, events, delays, late):
    """With ties in time, repetitions, and events that become known long after they happened."""
    history = {
        "length": length,
        "events": events,
        "fields": ["genres", "price"],
        "behaviour": ["page"],
        "title": "title",
    }
    sources = logs.make_spec(created=created).sources.model_dump()
    if late:
        sources["impressions"]["created"] = "c"
        stamps = zip(log["event_timestamp"].to_pylist(), delays, strict=False)
        known = [stamp + timedelta(seconds=delay) for stamp, delay in stamps]
        log = log.append_column("created_timestamp", pa.array(known, logs.MOMENT))
    spec = logs.make_spec(history=history, sources=sources)
    users = pa.table({"user_id": ["a"], "event_timestamp": pa.array([logs.BASE], logs.MOMENT)})
    users = users.append_column("created_timestamp", users["event_timestamp"])
    users = users.append_column("country_y", pa.array(["x"])).append_column("tags", pa.array([["p"]]))
    see_history(retrieved(spec, log, users, items), spec, log, items, created)


def see_history(table, spec, log, items, created):
    lists = {name: table[f"history_{name}"].to_pylist() for name in EVENT}
    found = [list(zip(*[lists[name][row] or [] for name in EVENT], strict=True)) for row in range(table.num_rows)]
    found = [[(*event[:2], _known(event[2]), *event[3:]) for event in events] for events in found]
    expected = logs.naive_history(spec, log, items, created)
    assert found == [row["history"] for row in expected]
    assert [titles or [] for titles in table["liked_title"].to_pylist()] == [row["liked_title"] for row in expected]


def _known(price):
    return None if math.isnan(price) else price


def test_late_events_enter_the_history_when_they_are_known(retrieved):
    log = logs.impression_table([("a", "a", 0, 1), ("a", "b", 1, 1), ("a", "ç", 2, 0), ("a", "ç", 9, 0)])
    known = pa.array([logs.moment(s) for s in (5, 1, 2, 9)], logs.MOMENT)
    sources = logs.make_spec().sources.model_dump()
    sources["impressions"]["created"] = "c"
    spec = logs.make_spec(history={"length": 5}, sources=sources)
    table = retrieved(spec, log.append_column("created_timestamp", known), *logs.one_row_tables())
    assert table["history_item_id"].to_pylist() == [None, None, ["b"], ["b", "ç", "a"]]
    assert table["history_label"].to_pylist() == [None, None, [1], [1, 0, 1]]
    assert "created_timestamp" not in table.column_names


@few
@given(log=logs.impressions(), delays=st.lists(st.integers(-2, 8), min_size=25, max_size=25), late=st.booleans())
def test_activity_equals_the_naive_one(retrieved, log, delays, late):
    """Ties in time, labels of the same moment, events that are entered late, or after their window has passed."""
    sources = logs.make_spec().sources.model_dump()
    if late:
        sources["impressions"]["created"] = "c"
        known = [row["event_timestamp"] + timedelta(seconds=s) for row, s in zip(log.to_pylist(), delays, strict=False)]
        log = log.append_column("created_timestamp", pa.array(known, logs.MOMENT))
    spec = logs.make_spec(activity={"windows": ["1s", "4s", "1h"]}, sources=sources)
    see_activity(retrieved(spec, log, *logs.one_row_tables()), spec, log)


def see_activity(table, spec, log):
    for side in ("user", "item"):
        names = [field.name for field in spec.activity_fields(side)]
        assert names[:3] == [f"{side}_impressions_1s", f"{side}_positives_1s", f"{side}_positive_rate_1s"]
        found = [[row[name] for name in names] for row in table.select(names).to_pylist()]
        assert found == logs.naive_activity(log, f"{side}_id", (1, 4, 3600))


def test_a_frame_of_entities_gives_the_same_as_sql(retrieved, tmp_path):
    from feature_repo.definitions import build
    from feature_repo.publish import publish
    from feature_repo.store import training_store

    spec = logs.make_spec(moment=MOMENT)
    log = logs.impression_table([("a", "a", 3, 1), ("b", "ç", 3, 0), ("a", "a", 3, 1)])
    users, items = logs.one_row_tables()
    expected = retrieved(spec, log, users, items)
    folder = logs.write(tmp_path / "frame", spec, log, users, items)
    definitions = build(spec, publish(spec, folder))
    with training_store(spec, definitions) as store:
        service = store.get_feature_service(definitions.service.name)
        job = store.get_historical_features(log.to_pandas(), service, full_feature_names=True)
        frame = job.to_df()
    assert frame["user_profile__country_y"].tolist() == expected["country_y"].to_pylist()
    assert frame["item_profile__price"].isna().tolist() == [value is None for value in expected["price"].to_pylist()]
    assert frame["request_context__request_weekday"].tolist() == ["2"] * 3, "2020 began on a Wednesday"
    assert job.full_feature_names
    assert sorted(job.metadata.keys) == ["item_id", "user_id"]
