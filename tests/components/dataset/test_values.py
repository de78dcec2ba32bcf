import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.values import as_text, to_strings

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
)


@given(SCALARS)
def test_a_value_is_spelt_alike_alone_and_in_a_column(value):
    assert as_text(value) == to_strings(pa.array([value]))[0].as_py()


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_whole_floats_are_spelt_as_integers(number):
    assert as_text(float(number)) == as_text(number) == str(number)


@pytest.mark.parametrize(
    ("column", "strings"),
    [
        (pa.array([1, None, 3]), ["1", None, "3"]),
        (pa.array([1.0, None, float("nan"), 2.5, -0.0]), ["1", None, None, "2.5", "0"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["", "a", "1.0"]), [None, "a", "1.0"]),
        (pa.array(["a", "", None]).dictionary_encode(), ["a", None, None]),
        (pa.array(["a", "é"], pa.large_string()), ["a", "é"]),
        (pa.array([b"abc"]), ["abc"]),
        (pa.array([decimal.Decimal("1.50")]), ["1.50"]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.int64()), []),
    ],
)
def test_columns_of_every_type(column, strings):
    assert to_strings(column).to_pylist() == strings
    assert to_strings(pa.chunked_array([column, column])).to_pylist() == strings * 2


def test_numpy_scalars():
    assert [as_text(np.int32(7)), as_text(np.float32(7)), as_text(np.float64("nan"))] == ["7", "7", None]
