import datetime as dt
import decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.columns import ColumnError, lists, moments, numbers, texts

UTC = dt.UTC


def chunked(values, kind=None):
    """The values in two chunks: columns read from files come in several."""
    whole = pa.array(values, kind)
    middle = len(whole) // 2
    return pa.chunked_array([whole.slice(0, middle), whole.slice(middle)], type=whole.type)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", " 2.5 ", "", None, "NA", "nan", "1e3", "\\N"], [1.0, 2.5, None, None, None, None, 1000.0, None]),
        ([1, None, 3], [1.0, None, 3.0]),
        ([1.5, float("nan"), None], [1.5, None, None]),
        ([True, False, None], [1.0, 0.0, None]),
        ([decimal.Decimal("1.25"), None], [1.25, None]),
        ([2**60 + 1], [float(2**60)]),
        ([None, None], [None, None]),
    ],
)
def test_numbers(values, expected):
    column = numbers(chunked(values))
    assert column.type == pa.float64()
    assert column.to_pylist() == expected


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=50), st.data())
def test_the_first_word_among_numbers_is_named_by_row_and_value(values, data):
    words = [repr(value) for value in values]
    rows = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1))
    for row in rows:
        words[row] = f"word {row}"
    first = min(rows)
    with pytest.raises(ColumnError, match=f"holds 'word {first}' in row {first + 1}, which is no number"):
        numbers(chunked(words))


def test_hints_for_numbers():
    with pytest.raises(ColumnError, match="holds '3,5' in row 2, which is no number; write a decimal point"):
        numbers(chunked(["1", "3,5"]))
    with pytest.raises(ColumnError, match=r"is of type timestamp\[us\], not a number; write kind: category"):
        numbers(chunked([dt.datetime(2024, 1, 1)]))
    with pytest.raises(ColumnError, match=r"is of type list<.*>, not a number"):
        numbers(chunked([[1.0]]))


def test_texts():
    assert texts(chunked(["a", "", None])).to_pylist() == ["a", None, None]
    assert texts(chunked([1.0, None, 3.0])).to_pylist() == ["1", None, "3"]
    with pytest.raises(ColumnError, match="not one value per row; write kind: multi"):
        texts(chunked([["a"], ["b"]]))
    with pytest.raises(ColumnError, match="give one column per value"):
        texts(chunked([{"a": 1}, {"a": 2}]))
    with pytest.raises(ColumnError, match="no longer tell keys apart; write them as strings"):
        texts(chunked([1.0, 2.0**53]))
    with pytest.raises(ColumnError, match="not UTF-8"):
        texts(chunked([b"a", b"\xe9"]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a|b", "c", "", None, "|", " a | b |"], [["a", "b"], ["c"], None, None, None, ["a", "b"]]),
        ([["a", None, ""], [], None, ["b", "b"]], [["a"], None, None, ["b", "b"]]),
        ([[1, 2], [3], None, []], [["1", "2"], ["3"], None, None]),
        ([[1.0, float("nan")], [2.5], None], [["1"], ["2.5"], None]),
        ([7, None, 8], [["7"], None, ["8"]]),
        ([None, None], [None, None]),
    ],
)
def test_lists(values, expected):
    column = lists(chunked(values), "|")
    assert column.type == pa.list_(pa.string())
    assert column.to_pylist() == expected


def test_lists_of_records_are_refused():
    with pytest.raises(ColumnError, match="give one column per value"):
        lists(chunked([[{"a": 1}], [{"a": 2}]]), "|")


def at(*parts):
    return dt.datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1_700_000_000, None], "s", [at(2023, 11, 14, 22, 13, 20), None]),
        ([1_700_000_000_123], "ms", [at(2023, 11, 14, 22, 13, 20, 123000)]),
        ([1_700_000_000_123_456], "us", [at(2023, 11, 14, 22, 13, 20, 123456)]),
        ([1_700_000_000.5, float("nan")], "s", [at(2023, 11, 14, 22, 13, 20, 500000), None]),
        (["1700000000", "", None], "s", [at(2023, 11, 14, 22, 13, 20), None, None]),
        (["1700000000.25", "1700000000"], "s", [at(2023, 11, 14, 22, 13, 20, 250000), at(2023, 11, 14, 22, 13, 20)]),
        ([-1], "s", [at(1969, 12, 31, 23, 59, 59)]),
        (["2024-05-31", "2024-05-31 18:30:00"], "s", [at(2024, 5, 31), at(2024, 5, 31, 18, 30)]),
        (
            ["2024-05-31T18:30:00Z", "2024-05-31T18:30:00.5Z"],
            "s",
            [at(2024, 5, 31, 18, 30), at(2024, 5, 31, 18, 30, 0, 500000)],
        ),
        (
            ["2024-05-31T18:30:00+02:00", "2024-05-31 18:30:00-0530", "2024-05-31 18:30:00", "2024-05-31", None],
            "s",
            [at(2024, 5, 31, 16, 30), at(2024, 6, 1), at(2024, 5, 31, 18, 30), at(2024, 5, 31), None],
        ),
        (["2024-05-31 18:30:00 UTC"], "s", [at(2024, 5, 31, 18, 30)]),
        (["2024-05-31T18:30:00.123456789Z"], "s", [at(2024, 5, 31, 18, 30, 0, 123456)]),
        ([dt.date(2024, 5, 31)], "s", [at(2024, 5, 31)]),
        ([dt.datetime(2024, 5, 31, 18, 30)], "s", [at(2024, 5, 31, 18, 30)]),
        ([decimal.Decimal("1700000000.5")], "s", [at(2023, 11, 14, 22, 13, 20, 500000)]),
    ],
)
def test_moments(values, unit, expected):
    column = moments(chunked(values), unit)
    assert column.type == pa.timestamp("us", "UTC")
    assert column.to_pylist() == expected


def test_moments_of_other_zones_and_finer_units():
    berlin = pa.array([1_700_000_000], pa.timestamp("s", "Europe/Berlin"))
    fine = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    days = pa.array([19_874], pa.date32())
    assert moments(berlin, "s").to_pylist() == [at(2023, 11, 14, 22, 13, 20)]
    assert moments(fine, "s").to_pylist() == [at(2023, 11, 14, 22, 13, 20, 123456)]
    assert moments(days, "s").to_pylist() == [at(2024, 5, 31)]
    assert moments(pa.array(["2024-05-31", None]).dictionary_encode(), "s").to_pylist() == [at(2024, 5, 31), None]


@given(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_iso_strings_with_any_zone_name_the_same_moment(naive, minutes):
    moment = naive.replace(tzinfo=dt.timezone(dt.timedelta(minutes=minutes)))
    assert moments(chunked(["2024-05-31", moment.isoformat()]), "s").to_pylist()[1] == moment.astimezone(UTC)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["2024-05-31", "31.05.2024"],
            "holds '31.05.2024' in row 2, which is no moment; write it as 2024",
        ),
        (["2024-05-31T00:00:00Z", "soon"], "holds 'soon' in row 2, which is no moment"),
        (["1700000000", "2024-05-31"], "holds '2024-05-31' in row 2, which is no moment"),
        (["2024-05-31", "1700000000"], "holds '1700000000' in row 2, which is no moment"),
        ([0, 1_700_000_000_000], "holds 1700000000000 in row 2, .* unit 's'; write 'keys.timestamp_unit: ms'"),
        (["0", "1700000000000000"], "holds 1.7e.15 in row 2, .* unit 's'; write 'keys.timestamp_unit: us'"),
        ([1e300], "holds 1e.300 in row 1, .*; correct it"),
        (
            ["2024-05-31", "9999-12-31"],
            "holds 9999-12-31 00:00:00.000000Z in row 2, which is not between 1678",
        ),
        ([True], "is of type bool, not a moment"),
        ([[1]], "is of type list<.*>, not a moment"),
    ],
)
def test_what_is_no_moment(values, message):
    with pytest.raises(ColumnError, match=message):
        moments(chunked(values), "s")
