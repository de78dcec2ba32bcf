import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.layout import FIRST_VALUE, MASK, MISSING, RESERVED_CODES, UNKNOWN, FieldSlots, InputLayout
from components.dataset.vocabulary import Vocabulary
from tests.components.dataset.making import rows, spec_of

NAMES = st.text(min_size=1, max_size=8)
SIZES = st.integers(0, 2**31)
SLOTS = st.builds(FieldSlots, NAMES, st.sampled_from(["user", "item", "context"]), NAMES, SIZES, SIZES, SIZES, SIZES)


@given(st.lists(SLOTS, min_size=1, max_size=5), st.lists(SLOTS, max_size=3))
def test_json_round_trip(fields, history):
    layout = InputLayout(tuple(fields), tuple(history))
    assert InputLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_width_and_vocabulary_size_count_history_columns_but_not_its_rows():
    movie = FieldSlots("movie", "item", "id", 0, 1, 1, 13)
    genres = FieldSlots("genres", "item", "multi", 1, 3, 14, 8)
    history = FieldSlots("history_movie", "user", "id", 4, 20, 1, 13)
    layout = InputLayout((movie, genres), (history,))
    assert layout.width == 24
    assert layout.vocabulary_size == 22
    assert layout.field("genres").stop == 4
    assert layout.field("history_movie") is history
    with pytest.raises(KeyError, match="colour"):
        layout.field("colour")


def test_reserved_codes_come_first():
    assert (UNKNOWN, MISSING, MASK) == RESERVED_CODES == (0, 1, 2)
    assert FIRST_VALUE == 3


def test_a_sides_layout_is_that_of_its_vocabulary():
    train = rows(60)
    vocabulary = Vocabulary.fit(spec_of(), train)
    whole = vocabulary.encode({name: train[name] for name in vocabulary.columns})
    for sides in ({"user", "context"}, {"item"}):
        part = vocabulary.of(sides)
        assert part.layout == vocabulary.layout.of(sides)
        assert {field.side for field in part.fields} == {slots.side for slots in part.layout.fields} <= sides
        alone = part.encode({name: train[name] for name in part.columns})
        np.testing.assert_array_equal(vocabulary.layout.ids_of(sides, whole), alone)


def test_the_parts_of_whole_rows_make_them_up_again():
    train = rows(60)
    vocabulary = Vocabulary.fit(spec_of(), train)
    whole = vocabulary.encode({name: train[name] for name in vocabulary.columns})
    parts = [vocabulary.layout.part(sides) for sides in ({"user", "context"}, {"item"})]
    taken = [part.taken(whole) for part in parts]
    np.testing.assert_array_equal(sum(part.spread(ids) for part, ids in zip(parts, taken, strict=True)), whole)
    one_request = parts[0].spread(taken[0][:1]) + parts[1].spread(taken[1])
    np.testing.assert_array_equal(parts[1].taken(one_request), taken[1])
    np.testing.assert_array_equal(parts[0].taken(one_request), np.repeat(taken[0][:1], len(whole), axis=0))
