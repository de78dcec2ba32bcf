"""The table of items' parts: what is computed when, and what is forgotten."""

import threading

import numpy as np
import pytest

from serving.parts import PartTable


class Computed:
    """Parts that say what they were made from: the row's value, and a flag for odd ones."""

    def __init__(self):
        self.asked = []

    def __call__(self, keys, rows, options):
        self.asked += keys
        values = np.array([row["value"] for row in rows], dtype=np.float32)
        return [np.stack([values, -values], 1), values % 2 == 1]


#: Bytes of one item's parts.
EACH = 9


def rows_of(keys, offset=0):
    return {key: {"value": int(key[1:]) + offset} for key in keys}


def check(table, keys, rows):
    (parts,), cold = table.parts(keys, rows)
    values = np.array([rows[key]["value"] for key in keys], dtype=np.float32)
    np.testing.assert_array_equal(parts, np.stack([values, -values], 1))
    np.testing.assert_array_equal(cold, values % 2 == 1)


def test_an_item_is_computed_once_for_each_row():
    compute = Computed()
    table = PartTable(compute, EACH * 100)
    keys = [f"i{number}" for number in (3, 1, 2)]
    rows = rows_of(keys)
    for _ in range(3):
        check(table, [*keys, "i3"], rows)
    assert compute.asked == keys
    renewed = {**rows, "i1": {"value": 1}}
    check(table, keys, renewed)
    assert compute.asked == [*keys, "i1"]
    assert len(table) == 3


def test_items_are_ready_until_their_moment_and_in_their_epoch_alone():
    table = PartTable(Computed(), EACH * 5)
    keys = ["i0", "i1"]
    rows = rows_of(keys)
    assert table.ready(keys, 0, 0) is None
    table.parts(keys, rows)
    assert table.ready(keys, 0, 0) is None, "nobody said until when"
    table.parts(keys, rows, {"i0": 10.0, "i1": 20.0})
    (found,), cold = table.ready(["i1", "i0", "i1"], 9, 0)
    np.testing.assert_array_equal(found, [[1, -1], [0, 0], [1, -1]])
    np.testing.assert_array_equal(cold, [True, False, True])
    assert table.row("i1") is rows["i1"]
    assert table.ready(keys, 10, 0) is None
    assert table.ready(["i1"], 10, 0) is not None
    assert table.ready(["i1", "i9"], 10, 0) is None
    assert table.ready(["i1"], 10, 1) is None, "the rows were doubted"
    table.parts(keys, rows, {"i1": 20.0}, epoch=0)
    assert table.ready(["i1"], 10, 1) is None, "what was true before the doubt"
    table.parts(keys, rows, {"i1": 20.0}, epoch=1)
    assert table.ready(["i1"], 10, 1) is not None
    table.parts(["i1"], {"i1": {"value": 5}})
    assert table.ready(["i1"], 10, 1) is None, "another row"
    table.parts([f"i{number}" for number in range(2, 8)], rows_of([f"i{number}" for number in range(2, 8)]))
    assert table.ready(["i1"], 10, 1) is None, "it made room"


def test_the_items_computed_longest_ago_make_room():
    compute = Computed()
    table = PartTable(compute, EACH * 4)
    rows = rows_of([f"i{number}" for number in range(10)])
    for keys in (["i0", "i1", "i2"], ["i3", "i4"], ["i1", "i2", "i5"], ["i0", "i5", "i1", "i4"]):
        check(table, keys, rows)
        assert len(table) <= 4
    compute.asked.clear()
    check(table, ["i0", "i5", "i1", "i4"], rows)
    assert compute.asked == []


def test_a_request_larger_than_the_table_is_answered():
    compute = Computed()
    table = PartTable(compute, EACH * 4)
    keys = [f"i{number}" for number in range(9)]
    check(table, keys, rows_of(keys))
    check(table, ["i1", "i8"], rows_of(keys))
    assert len(table) == 2


@pytest.mark.parametrize("capacity", [40, 5000])
def test_any_sequence_of_requests_gives_each_items_own_parts(capacity):
    random = np.random.default_rng(0)
    table = PartTable(Computed(), EACH * capacity)
    rows = rows_of([f"i{number}" for number in range(3000)])
    for _ in range(60):
        if random.random() < 0.3:
            rows |= rows_of(random.choice(list(rows), 20).tolist(), offset=1000)
        check(table, random.choice(list(rows), 37).tolist(), rows)


def test_threads_do_not_see_each_others_rows():
    table = PartTable(Computed(), EACH * 30)
    failures = []

    def work(offset):
        rows = rows_of([f"i{number}" for number in range(100)], offset)
        random = np.random.default_rng(offset)
        try:
            for _ in range(100):
                check(table, random.choice(list(rows), 20, replace=False).tolist(), rows)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
