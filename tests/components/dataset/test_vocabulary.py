import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.errors import UserError
from components.dataset.layout import FIRST_VALUE, MISSING, UNKNOWN
from components.dataset.spec import FieldSpec, Kind
from components.dataset.vocabulary import FieldVocabulary, Vocabulary
from tests.components.dataset.making import FIELDS, rows, spec_of

WORDS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "c", "ä", "1", "1.0"]), st.text(max_size=3))
LISTS = st.one_of(st.none(), st.lists(WORDS, max_size=5))
NUMBERS = st.one_of(st.none(), st.floats())


def category(values, **changes):
    return FieldVocabulary("job", "user", Kind.CATEGORY, "job", values=tuple(values), **changes)


def fitted(kind, column, **changes):
    field = FieldSpec(name="f", side="user", kind=kind, **changes)
    return FieldVocabulary.fit(field, column if isinstance(column, pa.Array) else pa.chunked_array([column]))


def columns_of(table):
    return {name: table[name] for name in table.column_names}


@given(st.lists(WORDS), st.lists(WORDS))
def test_category_codes_of_lists_and_arrow_columns_agree(train, values):
    field = fitted(Kind.CATEGORY, pa.array(train, pa.string()))
    of_list, of_arrow = field.encode(values), field.encode(pa.array(values, pa.string()))
    assert of_list.tolist() == of_arrow.tolist()
    assert of_list.dtype == of_arrow.dtype == np.int64
    for value, code in zip(values, of_list, strict=True):
        if not value:
            assert code == MISSING
        elif value in train:
            assert field.values[code - FIRST_VALUE] == value
        else:
            assert code == UNKNOWN


@given(st.lists(LISTS), st.lists(LISTS), st.integers(1, 4))
def test_multi_codes_of_lists_and_arrow_columns_agree(train, values, width):
    kind = pa.list_(pa.string())
    field = fitted(Kind.MULTI, pa.array(train, kind), max_values=width)
    of_list, of_arrow = field.encode(values), field.encode(pa.array(values, kind))
    assert of_list.shape == (len(values), width)
    assert of_list.tolist() == of_arrow.tolist()
    for value, codes in zip(values, of_list, strict=True):
        kept = min(len(value or [None]) or 1, width)
        assert (codes[:kept] >= 0).all() and (codes[kept:] == -1).all()


@pytest.mark.parametrize("values", [["ab"], [["a"], "b"], [None, 7], pa.array(["ab"]), pa.array([1])])
def test_single_values_of_a_multi_field_are_refused_and_not_read_by_letters(values):
    field = fitted(Kind.MULTI, pa.array([["a"], ["b"]]))
    with pytest.raises(UserError, match="field 'f': takes a list of values per row, not"):
        field.encode(values)
    with pytest.raises(UserError, match="field 'f': takes a list of values per row, not"):
        field.encode_history(values, 3)


@given(st.lists(LISTS), st.integers(1, 4))
def test_history_codes_are_the_last_events_padded_on_the_left(values, length):
    field = category(["a", "b"])
    expected = []
    for value in values:
        codes = field.encode((value or [])[-length:]).tolist()
        expected.append([-1] * (length - len(codes)) + codes)
    assert field.encode_history(values, length).tolist() == expected
    assert field.encode_history(pa.array(values, pa.list_(pa.string())), length).tolist() == expected


@given(st.lists(NUMBERS), st.lists(NUMBERS), st.integers(2, 8))
def test_number_codes_follow_the_order_of_the_numbers(train, values, buckets):
    field = fitted(Kind.NUMBER, pa.array(train, pa.float64()), buckets=buckets)
    of_list = field.encode(values)
    assert of_list.tolist() == field.encode(pa.array(values, pa.float64())).tolist()
    assert len(field.edges) < buckets
    known = [(v, c) for v, c in zip(values, of_list, strict=True) if v is not None and not math.isnan(v)]
    assert all(FIRST_VALUE <= code < field.size for _, code in known)
    assert [code for _, code in sorted(known)] == sorted(code for _, code in known)
    assert all(c == MISSING for v, c in zip(values, of_list, strict=True) if v is None or math.isnan(v))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(2, 8))
def test_no_bin_of_a_number_is_empty_in_the_train_part(train, buckets):
    field = fitted(Kind.NUMBER, pa.array(train, pa.float64()), buckets=buckets)
    codes = set(field.encode(train).tolist())
    assert codes == set(range(FIRST_VALUE, field.size))


def test_values_are_ordered_by_count_then_by_themselves_and_rare_ones_unknown():
    column = pa.array(["b", "c", "a", "b", "c", "rare", None, ""])
    assert fitted(Kind.CATEGORY, column).values == ("b", "c", "a", "rare")
    often = fitted(Kind.CATEGORY, column, min_count=2)
    assert often.values == ("b", "c")
    assert often.encode(["b", "rare", None, "new"]).tolist() == [3, UNKNOWN, MISSING, UNKNOWN]


def test_multi_counts_only_the_values_that_are_encoded():
    field = fitted(Kind.MULTI, pa.array([["a", "b", "c"], ["c"]]), max_values=2)
    assert field.values == ("a", "b", "c")
    assert fitted(Kind.MULTI, pa.array([["a", "b", "z"], ["a"]]), max_values=2).values == ("a", "b")


def test_requests_with_numbers_for_categories_find_the_same_codes():
    field = category(["1", "2", "true"])
    assert field.encode([1, 1.0, np.int64(2), True, float("nan")]).tolist() == [3, 3, 4, 5, MISSING]
    assert field.encode(pa.array([1, 2, None])).tolist() == [3, 4, MISSING]


def test_sliced_and_chunked_columns():
    field = category(["a", "b"])
    column = pa.array(["x", "a", None, "b"])
    assert field.encode(column.slice(1, 2)).tolist() == [3, MISSING]
    assert field.encode(pa.chunked_array([["b"], ["a", "q"], []], pa.string())).tolist() == [4, 3, UNKNOWN]
    multi = dataclasses.replace(field, kind=Kind.MULTI, max_values=2)
    lists = pa.array([["x"], ["a", "b", "a"], None, []])
    assert multi.encode(lists.slice(1)).tolist() == [[3, 4], [MISSING, -1], [MISSING, -1]]
    assert multi.encode(pa.nulls(1)).tolist() == [[MISSING, -1]]


def test_layout_starts_at_one_and_fields_follow_without_gaps():
    layout = Vocabulary.fit(spec_of(), rows()).layout
    assert [slots.name for slots in layout.fields] == [f["name"] for f in FIELDS if f["kind"] != "text"]
    assert layout.fields[0].offset == 1
    for one, next_one in zip(layout.fields, layout.fields[1:], strict=False):
        assert next_one.start == one.stop
        assert next_one.offset == one.offset + one.size
    assert layout.width == 8
    assert layout.vocabulary_size == layout.fields[-1].offset + layout.fields[-1].size


def test_global_ids_lie_in_their_field_and_padding_is_zero():
    vocabulary = Vocabulary.fit(spec_of(), rows())
    ids = vocabulary.encode(columns_of(rows()))
    assert ids.shape == (12, vocabulary.layout.width)
    for slots in vocabulary.layout.fields:
        block = ids[:, slots.start : slots.stop]
        inside = (block >= slots.offset) & (block < slots.offset + slots.size)
        assert (inside | (block == 0)).all()
        assert inside[:, 0].all()
    genres = vocabulary.layout.field("genres")
    assert ids[0, genres.start : genres.stop].tolist() == [genres.offset + MISSING, 0, 0]


def test_tables_and_requests_are_encoded_alike():
    vocabulary = Vocabulary.fit(spec_of(), rows(8))
    table = rows(12)
    lists = {name: table[name].to_pylist() for name in vocabulary.columns}
    assert vocabulary.encode(lists).tolist() == vocabulary.encode(columns_of(table)).tolist()
    one = {name: values[3:4] for name, values in lists.items()}
    assert vocabulary.encode(one).tolist() == vocabulary.encode(columns_of(table))[3:4].tolist()


def test_no_rows():
    vocabulary = Vocabulary.fit(spec_of(), rows())
    assert vocabulary.encode({name: [] for name in vocabulary.columns}).shape == (0, vocabulary.layout.width)
    assert vocabulary.encode(columns_of(rows(0))).shape == (0, vocabulary.layout.width)


def test_missing_and_uneven_columns_are_named():
    vocabulary = Vocabulary.fit(spec_of(), rows())
    lists = {name: rows()[name].to_pylist() for name in vocabulary.columns}
    with pytest.raises(UserError, match="columns are missing: job, genres"):
        vocabulary.encode({name: values for name, values in lists.items() if name not in {"job", "genres"}})
    with pytest.raises(UserError, match="differ in length"):
        vocabulary.encode({**lists, "job": ["a"]})


def with_history(table):
    lists = pa.array([[str(j % 3) for j in range(i)] for i in range(table.num_rows)], pa.list_(pa.string()))
    ages = pa.array([["x"] * i for i in range(table.num_rows)], pa.list_(pa.string()))
    return table.append_column("history_movie", lists).append_column("history_genres", ages)


def test_history_shares_the_rows_of_its_field():
    spec = spec_of(history={"length": 4, "fields": ["genres", "title"]})
    table = with_history(rows())
    vocabulary = Vocabulary.fit(spec, table)
    layout = vocabulary.layout
    assert [slots.name for slots in layout.history] == ["history_movie", "history_genres"]
    for slots, name in zip(layout.history, ("movie", "genres"), strict=True):
        assert (slots.offset, slots.size) == (layout.field(name).offset, layout.field(name).size)
        assert slots.width == 4
    assert layout.width == 16
    ids = vocabulary.encode(columns_of(table))
    shown = ids[:, layout.field("movie").start]
    seen = ids[:, layout.field("history_movie").start : layout.field("history_movie").stop]
    assert seen[0].tolist() == [0, 0, 0, 0]
    assert seen[2].tolist() == [0, 0, shown[0], shown[1]]
    assert seen[6].tolist() == [shown[2], shown[0], shown[1], shown[2]]
    lists = {name: table[name].to_pylist() for name in vocabulary.columns}
    assert vocabulary.encode(lists).tolist() == ids.tolist()


def test_without_history_columns_the_spec_alone_adds_no_history():
    assert Vocabulary.fit(spec_of(history={"length": 4}), rows()).layout.history == ()
    assert Vocabulary.fit(spec_of(), with_history(rows())).layout.history == ()


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary.fit(spec_of(history={"length": 2}), with_history(rows()))
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest
    assert loaded.layout == vocabulary.layout
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "vocabulary.json").read_bytes()


def test_digest_depends_on_the_values_and_not_on_the_order_of_the_rows():
    vocabulary = Vocabulary.fit(spec_of(), rows())
    backwards = rows().take(list(range(11, -1, -1)))
    assert Vocabulary.fit(spec_of(), backwards).digest == vocabulary.digest
    assert Vocabulary.fit(spec_of(), rows(11)).digest != vocabulary.digest


def test_unknown_format_is_refused(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"format": 99, "fields": [], "history": [], "behaviour": []}))
    with pytest.raises(UserError, match="vocabulary format 99 is not 2; run retrieve again"):
        Vocabulary.load(path)


def test_a_million_values_come_back(tmp_path):
    vocabulary = Vocabulary((category(str(i) for i in range(1_000_000)),))
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.encode({"job": ["999999"]})[0, 0] == 1 + FIRST_VALUE + 999_999


def test_a_grown_vocabulary_keeps_codes_and_bins_and_adds_what_is_new():
    old = Vocabulary.fit(spec_of(), rows(4))
    new = Vocabulary.fit(spec_of(), rows(12))
    grown = new.grown_from(old)
    for before, mine, after in zip(old.fields, new.fields, grown.fields, strict=True):
        assert after.values[: len(before.values)] == before.values
        assert set(after.values) == {*before.values, *mine.values}
        assert len(set(after.values)) == len(after.values)
        assert after.edges == before.edges
    assert grown.grown_from(grown) == grown
    table = rows(4)
    codes = [one.encode(table[one.column]).tolist() for one in old.fields]
    assert codes == [one.encode(table[one.column]).tolist() for one in grown.fields]


def test_a_vocabulary_of_other_fields_does_not_grow():
    old = Vocabulary.fit(spec_of(), rows())
    other = Vocabulary.fit(spec_of(fields=FIELDS[:-1]), rows())
    with pytest.raises(UserError, match=r"other fields.*warm_start: false"):
        other.grown_from(old)
