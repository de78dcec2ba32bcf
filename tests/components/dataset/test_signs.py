import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.signs import association, auc, only_for_positives, useless
from components.dataset.spec import Kind


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 1)), min_size=2))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    scores, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.int8)
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    if pairs:
        assert auc(scores, labels) == pytest.approx(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))


LABELS = np.array([0, 1, 1, 0] * 250, np.int8)
NOISE = np.random.default_rng(3).normal(size=1000)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.where(LABELS, "bought", "left"), Kind.CATEGORY),
        (np.where(LABELS, 5 + NOISE % 1, 1 + NOISE % 1), Kind.NUMBER),
        (np.abs(np.where(LABELS, NOISE % 1, 3 + NOISE % 1) - 1.5), Kind.NUMBER),
        ([None if label else 3.5 for label in LABELS], Kind.NUMBER),
        (["2024-01-01" if label else None for label in LABELS], Kind.DATE),
        (["a long review" if label else None for label in LABELS], Kind.TEXT),
        ([["x", "y"] if label else ["x"] for label in LABELS], Kind.MULTI),
    ],
)
def test_what_gives_the_label_away_is_seen(values, kind):
    assert association(pa.chunked_array([pa.array(values)]), LABELS, kind) > 0.99


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"id{number}" for number in range(1000)], Kind.CATEGORY),
        (NOISE, Kind.NUMBER),
        (["x"] * 1000, Kind.CATEGORY),
        (pa.nulls(1000, pa.float64()), Kind.NUMBER),
        ([[f"t{number % 7}"] for number in range(1000)], Kind.MULTI),
    ],
)
def test_what_does_not_is_not(values, kind):
    assert association(pa.chunked_array([pa.array(values)]), LABELS, kind) == pytest.approx(0.5, abs=0.07)


FEW = np.flatnonzero(LABELS)[::10]


def filled(places, value):
    return pa.chunked_array([pa.array([value if row in places else None for row in range(1000)])])


@pytest.mark.parametrize("value", [12.5, "returned", ["gift"]])
def test_a_column_filled_only_for_positives_is_seen_whatever_its_auc(value):
    column = filled(set(FEW), value)
    kind = {float: Kind.NUMBER, str: Kind.CATEGORY, list: Kind.MULTI}[type(value)]
    assert association(column, LABELS, kind) < 0.6
    assert only_for_positives(column, LABELS) == 0.05


@pytest.mark.parametrize(
    "places",
    [set(range(1000)), set(range(0, 1000, 7)), set(FEW[:9]), set(), {*FEW, 0}, set(np.flatnonzero(LABELS == 0)[::10])],
)
def test_a_column_filled_for_others_too_or_for_hardly_any_is_not(places):
    assert only_for_positives(filled(places, 12.5), LABELS) is None


def test_where_nearly_all_are_positive_so_is_what_is_filled():
    mostly = np.ones(1000, np.int8)
    mostly[::50] = 0
    assert only_for_positives(filled(set(range(1, 200, 3)) - set(range(0, 200, 50)), "x"), mostly) is None
    assert only_for_positives(pa.chunked_array([pa.array([[], ["x"]] * 500)]), LABELS) is None


def test_too_few_rows_tell_nothing():
    column = pa.chunked_array([pa.array(["a"] * 1000)])
    assert association(column.slice(0, 99), LABELS[:99], Kind.CATEGORY) is None
    assert association(column, np.zeros(1000, np.int8), Kind.CATEGORY) is None


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        (["a", "a", None], Kind.CATEGORY, "is constant ('a')"),
        ([["a"], ["a", "a"]], Kind.MULTI, "is constant"),
        ([None, None], Kind.CATEGORY, "is empty"),
        (["a", "b"] + [None] * 98, Kind.CATEGORY, "is empty in 98.0% of the rows"),
        ([str(number) for number in range(200)], Kind.CATEGORY, "has a value of its own in 100%"),
        ([str(number) for number in range(200)], Kind.TEXT, None),
        ([float(number) for number in range(200)], Kind.NUMBER, None),
        (["a", "b", None], Kind.CATEGORY, None),
    ],
)
def test_what_nothing_can_be_learnt_from(values, kind, said):
    found = useless(pa.chunked_array([pa.array(values)]), kind)
    assert found is None if said is None else found.startswith(said)
