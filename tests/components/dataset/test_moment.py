"""What a moment says: the calendar's, the same from Python's integers, NumPy's and SQL's."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.moment import CYCLES, EPOCH, MICROSECOND, request_context
from components.dataset.spec import DatasetSpec
from tests.components.dataset.making import spec_of

moments = st.datetimes(timezones=st.just(UTC))


@given(moment=moments)
def test_it_is_what_the_calendar_says(moment):
    said = request_context({"event_timestamp": [moment, None, moment.replace(tzinfo=None)]})
    hour, weekday = str(moment.hour), str(moment.weekday())
    assert said == {"request_hour": [hour, None, hour], "request_weekday": [weekday, None, weekday]}


@given(moment=moments, offset=st.integers(-14, 14))
def test_it_is_in_utc_wherever_the_moment_was_read(moment, offset):
    from datetime import timezone

    if datetime.min.replace(tzinfo=UTC) + timedelta(days=1) < moment < datetime.max.replace(tzinfo=UTC) - timedelta(1):
        elsewhere = moment.astimezone(timezone(timedelta(hours=offset)))
        assert request_context({"event_timestamp": [elsewhere]}) == request_context({"event_timestamp": [moment]})


@given(drawn=st.lists(moments, min_size=1, max_size=50))
def test_sql_and_numpy_say_the_same(drawn):
    microseconds = [(moment - EPOCH) // MICROSECOND for moment in [*drawn, EPOCH, EPOCH - MICROSECOND]]
    column = ", ".join(f"({value})" for value in microseconds)
    for cycle in CYCLES.values():
        expected = [cycle.at(value) for value in microseconds]
        assert cycle.at(np.array(microseconds)).tolist() == expected
        found = duckdb.sql(f"SELECT {cycle.sql('micros')} FROM (VALUES {column}) AS t(micros)").fetchall()
        assert [value for (value,) in found] == expected


def test_the_spec_knows_every_part():
    (parts, _) = get_args(DatasetSpec.model_fields["moment"].annotation)
    assert set(get_args(parts)) == set(CYCLES)
    spec = spec_of(moment=["weekday", "hour"])
    assert [field.name for field in spec.model_fields_of("context")][-2:] == ["request_weekday", "request_hour"]
    assert "request_hour" not in [field.name for field in spec.fields if field.in_prompt]


def test_a_moment_needs_time_stamps():
    from components.dataset.errors import UserError

    with pytest.raises(UserError, match="no activity and no moment"):
        spec_of(moment=["hour"], keys={"user": "user_id", "item": "item_id"}, split={"by": "random"}, history=None)
