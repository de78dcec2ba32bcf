"""Which rows fall into which slice, against the definitions in plain Python."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from components.evaluate.slices import long_tail_count, slices
from tests.components.evaluate.logs import spec_of, table, training_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("slices") / "set")


@pytest.fixture(scope="module")
def masks(data):
    return slices(data, "test", data.arrays("test"), values=10)


def test_fixed_slices_follow_the_train_part(data, masks):
    train, test = data.table("train").to_pylist(), data.table("test").to_pylist()
    users, items = (Counter(row[key] for row in train) for key in ("user_id", "item_id"))
    bucket = {
        "interactions_0": lambda n: n == 0,
        "interactions_1_5": lambda n: 1 <= n <= 5,
        "interactions_6_20": lambda n: 6 <= n <= 20,
        "interactions_over_20": lambda n: n > 20,
    }
    for i, row in enumerate(test):
        seen = users[row["user_id"]]
        new_user, new_item = seen == 0, items[row["item_id"]] == 0
        assert (masks["new_users"][i], masks["new_items"][i]) == (new_user, new_item)
        assert (masks["cold"][i], masks["warm"][i]) == (new_user or new_item, not (new_user or new_item))
        assert [name for name in bucket if masks[name][i]] == [name for name, rule in bucket.items() if rule(seen)]
    assert masks["cold"].any() and masks["warm"].any() and masks["interactions_1_5"].any()


def test_the_long_tail_is_the_rarest_fifth_of_the_items(data, masks):
    items = Counter(data.table("train")["item_id"].to_pylist())
    tail = {item for item, count in items.items() if count <= long_tail_count(np.array(list(items.values())))}
    assert 0 < len(tail) <= 0.2 * len(items)
    assert min(items[item] for item in items.keys() - tail) > max(items[item] for item in tail)
    expected = [item in tail for item in data.table("test")["item_id"].to_pylist()]
    assert masks["long_tail"].tolist() == expected


@pytest.mark.parametrize(
    ("counts", "bound"),
    [([1, 2, 3, 4, 5], 1), ([5, 4, 3, 2, 1, 1, 9, 9, 9, 9], 1), ([1, 1, 1, 7], 1), ([3], 3), ([1, 2, *[8] * 8], 2)],
)
def test_items_of_one_count_are_in_or_out_together(counts, bound):
    assert long_tail_count(np.array(counts)) == bound


def test_slices_by_a_category_a_list_and_a_number(data, masks):
    test = data.table("test").to_pylist()
    for name, mask in masks.items():
        field, _, value = name.partition("=")
        if field == "age":
            assert mask.tolist() == [row["age"] == value for row in test]
        elif field == "genres":
            assert mask.tolist() == [value in row["genres"] for row in test]
    assert {name for name in masks if name.startswith("age=")} == {"age=young", "age=old"}
    assert masks["genres=film"].all()
    prices = [mask for name, mask in masks.items() if name.startswith("price=")]
    assert (np.sum(prices, axis=0) == 1).all()
    assert masks["price=missing"].tolist() == [row["price"] is None for row in test]
    low = next(name for name in masks if name.startswith("price=.."))
    assert masks[low].any()
    assert max(row["price"] for row, inside in zip(test, masks[low], strict=True) if inside) < float(low.split("..")[1])


def test_only_the_most_frequent_values_are_reported(data):
    masks = slices(data, "test", data.arrays("test"), values=1)
    assert [name for name in masks if name.startswith("genres=")] == ["genres=film"]


def test_missing_values_are_a_slice(tmp_path):
    rows = table(rows=100)
    gaps = np.arange(100) % 3 == 0
    genres = [None if n % 6 == 0 else [] if n % 6 == 3 else ["drama", None] for n in range(100)]
    ages = pa.array(["young"] * 100, mask=gaps)
    rows = rows.set_column(rows.column_names.index("age"), "age", ages)
    rows = rows.set_column(rows.column_names.index("genres"), "genres", pa.array(genres, pa.list_(pa.string())))
    data = training_set(tmp_path / "set", rows=rows)
    masks = slices(data, "test", data.arrays("test"), values=10)
    assert masks["age=missing"].tolist() == gaps[90:].tolist()
    assert masks["genres=drama"].tolist() == (~gaps[90:]).tolist()
    assert masks["genres=missing"].all()


def test_a_field_that_is_always_missing(tmp_path):
    rows = table(rows=100)
    for name, kind in (("age", pa.string()), ("price", pa.float64()), ("genres", pa.list_(pa.string()))):
        rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(100, kind))
    data = training_set(tmp_path / "set", spec_of(), rows)
    masks = slices(data, "test", data.arrays("test"), values=10)
    assert all(masks[f"{name}=missing"].all() for name in ("age", "price", "genres"))
