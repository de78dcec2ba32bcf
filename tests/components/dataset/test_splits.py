import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.errors import UserError
from components.dataset.splits import PARTS, held_out, split_table
from tests.components.dataset.making import spec_of

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def table_of(moments, users=None):
    return pa.table(
        {
            "impression_id": pa.array(range(len(moments)), pa.int64()),
            "user_id": users or [str(m) for m in moments],
            "event_timestamp": pa.array([START + dt.timedelta(hours=m) for m in moments], pa.timestamp("us", "UTC")),
        }
    )


def spec(by, ratios=(0.8, 0.1, 0.1)):
    return spec_of(split={"by": by, "ratios": ratios})


def is_partition(table, parts):
    ids = [i for part in PARTS for i in parts[part]["impression_id"].to_pylist()]
    return sorted(ids) == sorted(table["impression_id"].to_pylist())


@given(st.lists(st.integers(0, 30), min_size=3, max_size=80).filter(lambda m: len(set(m)) >= 3))
def test_split_by_time_is_a_partition_with_the_future_in_later_parts(moments):
    table = table_of(moments)
    parts = split_table(table, spec("time"))
    assert is_partition(table, parts)
    times = [parts[part]["event_timestamp"].to_pylist() for part in PARTS]
    assert all(times)
    assert max(times[0]) < min(times[1]) and max(times[1]) < min(times[2])
    rows = [(row["event_timestamp"], row["impression_id"]) for part in PARTS for row in parts[part].to_pylist()]
    assert rows == sorted(rows)


def test_split_by_time_keeps_the_ratios_where_moments_differ():
    parts = split_table(table_of(range(100)), spec("time"))
    assert [parts[part].num_rows for part in PARTS] == [80, 10, 10]


def test_rows_of_one_moment_stay_together_at_the_nearest_cut():
    moments = [0] * 7 + [1] * 2 + [2] * 1
    parts = split_table(table_of(moments), spec("time", (0.8, 0.1, 0.1)))
    assert [parts[part].num_rows for part in PARTS] == [7, 2, 1]


@pytest.mark.parametrize(("moments", "found"), [([], 0), ([5] * 9, 1), ([5, 6] * 9, 2)])
def test_too_few_moments(moments, found):
    with pytest.raises(
        UserError, match=f"three different moments, but the rows have {found}; write 'split: {{by: random"
    ):
        split_table(table_of(moments), spec("time"))


@given(st.permutations(range(40)))
def test_random_split_has_exact_ratios_and_ignores_the_order_of_the_rows(order):
    table = table_of(range(40))
    parts = split_table(table, spec("random"))
    assert is_partition(table, parts)
    assert [parts[part].num_rows for part in PARTS] == [32, 4, 4]
    shuffled = split_table(table.take(order), spec("random"))
    for part in PARTS:
        assert set(shuffled[part]["impression_id"].to_pylist()) == set(parts[part]["impression_id"].to_pylist())


def test_random_split_is_the_same_everywhere():
    parts = split_table(table_of(range(20)), spec("random"))
    assert parts["test"]["impression_id"].to_pylist() == [0, 13]
    assert parts["valid"]["impression_id"].to_pylist() == [6, 19]


@given(st.integers(0, 10**9), st.integers(60, 100))
def test_hash_split_keeps_each_user_in_one_part(first, users):
    table = table_of(range(300), [str(first + i % users) for i in range(300)])
    parts = split_table(table, spec("hash", (0.4, 0.3, 0.3)))
    assert is_partition(table, parts)
    seen = [set(parts[part]["user_id"].to_pylist()) for part in PARTS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_hash_split_is_the_same_everywhere_and_near_the_ratios():
    table = table_of(range(2000), [f"user {i}" for i in range(2000)])
    parts = split_table(table, spec("hash"))
    assert [parts[part].num_rows for part in PARTS] == [1616, 171, 213]
    assert parts["test"]["user_id"].to_pylist()[:3] == ["user 8", "user 19", "user 32"]


def test_too_few_rows_to_fill_the_parts():
    with pytest.raises(UserError, match="split by random leaves no row for valid and test; give more data"):
        split_table(table_of([1]), spec("random"))
    with pytest.raises(UserError, match="split by hash leaves no row for"):
        split_table(table_of([1, 1, 1]), spec("hash"))


def test_held_out_are_whole_keys_and_about_their_share():
    names = [f"i{number % 500}" for number in range(3000)]
    mask = held_out(pa.table({"item_id": names}), "item_id", 0.2)
    chosen = {name for name, out in zip(names, mask, strict=True) if out}
    assert chosen.isdisjoint({name for name, out in zip(names, mask, strict=True) if not out})
    assert 70 < len(chosen) < 130
    more = held_out(pa.table({"item_id": names[::-1]}), "item_id", 0.4)[::-1]
    assert (more | ~mask).all()
    assert not held_out(pa.table({"item_id": names}), "item_id", 0.0).any()
