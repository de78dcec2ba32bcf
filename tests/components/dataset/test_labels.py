import pyarrow as pa
import pytest

from components.dataset.columns import ColumnError
from components.dataset.labels import labels
from components.dataset.spec import LabelSpec


def labelled(values, positive, negative):
    return labels(pa.chunked_array([values]), LabelSpec(column="y", positive=positive, negative=negative)).to_pylist()


@pytest.mark.parametrize(
    ("values", "positive", "negative", "expected"),
    [
        ([5, 3, 1, None], "> 3", "< 3", [1, None, 0, None]),
        (["5", "3", "1", ""], "> 3", "< 3", [1, None, 0, None]),
        ([4.0, 3.5], ">= 4", "<= 3.5", [1, 0]),
        ([True, False], "== 1", "== 0", [1, 0]),
        ([True, False], "== true", "== false", [1, 0]),
        (["click", "view", None, "skip"], "== click", "== view", [1, 0, None, None]),
        (["click", "view", None], "== click", "!= click", [1, 0, None]),
        ([1, 0, 2], "== 1", "!= 1", [1, 0, 0]),
    ],
)
def test_rules(values, positive, negative, expected):
    assert labelled(values, positive, negative) == expected


@pytest.mark.parametrize(
    ("values", "positive", "negative", "message"),
    [
        (
            ["yes", "no"],
            "== 1",
            "== 0",
            "holds 'yes' in row 1, which is no number, but 'label.positive: == 1' compares numbers",
        ),
        (["click", "view"], "== click", "== 0", "holds 'click' in row 1.* but 'label.negative: == 0' compares numbers"),
        ([1, 2, 3], "> 1", "< 3", "holds 2, for which both rules hold: 'positive: > 1' and 'negative: < 3'"),
        ([1, 1, 2], "== 1", "== 0", "holds values such as 1, 2: no row is negative under"),
        ([0, 0], "== 1", "== 0", "holds values such as 0: no row is positive under"),
        ([7, 8], "== 1", "== 0", "holds values such as 7, 8: all rows are dropped under"),
    ],
)
def test_rules_that_do_not_fit(values, positive, negative, message):
    with pytest.raises(ColumnError, match=message):
        labelled(values, positive, negative)
