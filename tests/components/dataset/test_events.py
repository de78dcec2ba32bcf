"""What an event of a history says: label, gap and hour, the same from a table and from a request."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.events import DERIVED, Events, derived_codes, gap_bucket, hour_of_day, moments_of
from components.dataset.layout import FIRST_VALUE, MISSING
from components.dataset.moment import EPOCH
from components.dataset.vocabulary import Vocabulary
from tests.components.dataset.making import spec_of
from tests.components.dataset.test_vocabulary import rows

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
DAY = 86_400


def microseconds(moment):
    return (moment - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-5, 0), (0, 0), (0.999999, 0), (1, 1), (1.9, 1), (2, 2), (3, 2), (4, 3), (3600, 12), (DAY, 17), (10**10, 30)],
)
def test_gaps_double(seconds, bucket):
    assert gap_bucket(np.array([int(seconds * 1_000_000)])).tolist() == [bucket]


@given(st.lists(st.integers(0, 2**31), min_size=1))
def test_a_longer_gap_is_in_no_lower_bucket(seconds):
    buckets = gap_bucket(np.sort(np.array(seconds, dtype=np.int64)) * 1_000_000)
    assert (np.diff(buckets) >= 0).all()
    assert buckets.max() < DERIVED["gap"]


@given(st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)))
def test_hour_is_that_of_the_clock_in_utc(moment):
    assert hour_of_day(np.array([microseconds(moment.replace(tzinfo=UTC))])).tolist() == [moment.hour]


@given(st.lists(st.none() | st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))))
def test_moments_are_the_same_from_a_table_and_from_a_request(moments):
    of_request = [column.tolist() for column in moments_of(moments)]
    of_table = [column.tolist() for column in moments_of(pa.array(moments, pa.timestamp("us", "UTC")))]
    assert of_request == of_table
    known = [moment for moment in moments if moment is not None]
    assert [since for since, there in zip(*of_table, strict=True) if there] == [microseconds(m) for m in known]


def columns():
    """A row without events, one with two, one whose own moment is not known."""
    moments = [None, [microseconds(NOW) - DAY * 1_000_000, microseconds(NOW) - 1_000_000], [microseconds(NOW)]]
    return {"event_timestamp": [NOW, NOW, None], "history_timestamp": moments, "history_label": [None, [0, 1], [1]]}


def test_derived_codes_end_with_the_most_recent_event():
    assert derived_codes("label", columns(), 3).tolist() == [[-1, -1, -1], [-1, 3, 4], [-1, -1, 4]]
    assert derived_codes("hour", columns(), 3)[1].tolist() == [-1, FIRST_VALUE + 12, FIRST_VALUE + 11]
    gaps = derived_codes("gap", columns(), 3).tolist()
    assert gaps == [[-1, -1, -1], [-1, FIRST_VALUE + 17, FIRST_VALUE + 1], [-1, -1, MISSING]]
    assert derived_codes("gap", columns(), 1)[1].tolist() == [FIRST_VALUE + 1]


def table_of():
    made, given = rows(3), columns()
    place = made.column_names.index("event_timestamp")
    made = made.set_column(place, "event_timestamp", pa.array(given["event_timestamp"], pa.timestamp("us", "UTC")))
    for name in ("history_timestamp", "history_label"):
        made = made.append_column(name, pa.array(given[name], pa.list_(pa.int64())))
    seen = pa.array([None, ["m1", "m2"], ["?"]], pa.list_(pa.string()))
    stars = pa.array([None, ["5", "1"], ["4"]], pa.list_(pa.string()))
    made = made.append_column("history_movie", seen).append_column("history_stars", stars)
    return made.append_column("stars", pa.array(["5", "1", "4"]))


def spec_with_history():
    stars = {"name": "stars", "side": "context", "kind": "category", "known_after_impression": True}
    fields = [field.model_dump() for field in spec_of().fields]
    return spec_of(fields=[*fields, stars], history={"length": 3, "behaviour": ["stars"]})


def test_behaviour_has_ids_of_its_own_behind_those_of_the_fields():
    vocabulary = Vocabulary.fit(spec_with_history(), table_of())
    layout = vocabulary.layout
    assert [slots.name for slots in layout.history] == [
        f"history_{name}" for name in ("movie", "stars", "label", "gap", "hour")
    ]
    movie, *own = layout.history
    assert movie.offset == layout.field("movie").offset
    first = layout.without_history().vocabulary_size
    for slots in own:
        assert slots.offset == first
        first += slots.size
    assert layout.vocabulary_size == first
    assert "stars" not in [slots.name for slots in layout.fields], "it is known after the impression only"


def test_tables_and_requests_with_history_are_encoded_alike():
    vocabulary = Vocabulary.fit(spec_with_history(), table_of())
    table = table_of()
    of_table = vocabulary.encode({name: table[name] for name in vocabulary.columns})
    of_request = vocabulary.encode({name: table[name].to_pylist() for name in vocabulary.columns})
    assert of_table.tolist() == of_request.tolist()
    for slots in vocabulary.layout.history:
        block = of_table[:, slots.start : slots.stop]
        assert ((block == 0) | ((block >= slots.offset) & (block < slots.offset + slots.size))).all()
        assert (block[0] == 0).all()


def test_a_model_without_history_reads_the_same_fields_and_no_more_columns(tmp_path):
    vocabulary = Vocabulary.fit(spec_with_history(), table_of())
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    alone = vocabulary.without_history()
    assert alone.layout == vocabulary.layout.without_history()
    assert not [name for name in alone.columns if name.startswith("history_") or name == "event_timestamp"]
    table = table_of()
    whole = vocabulary.encode({name: table[name] for name in vocabulary.columns})
    short = alone.encode({name: table[name] for name in alone.columns})
    assert short.tolist() == whole[:, : alone.layout.width].tolist()


def test_the_requests_part_holds_the_history_with_ids_of_its_own():
    vocabulary, table = Vocabulary.fit(spec_with_history(), table_of()), table_of()
    part = vocabulary.of({"user", "context"})
    assert part.layout == vocabulary.layout.of({"user", "context"})
    assert vocabulary.of({"item"}).layout == vocabulary.layout.of({"item"})
    whole = vocabulary.encode({name: table[name] for name in vocabulary.columns})
    alone = part.encode({name: table[name] for name in part.columns})
    assert alone.tolist() == vocabulary.layout.ids_of({"user", "context"}, whole).tolist()
    assert "movie" not in [slots.name for slots in part.layout.fields]
    assert part.layout.field("history_movie").size == vocabulary.layout.field("movie").size


def test_events_of_lists():
    events = Events.of(pa.array([["a"], None, [], ["b", "c"]]), "tags")
    assert (events.count, events.rows.tolist(), events.place.tolist()) == (4, [0, 3, 3], [0, 0, 1])
    assert events.recent(np.array([7, 8, 9]), 1).tolist() == [[7], [-1], [-1], [9]]
