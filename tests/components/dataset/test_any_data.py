"""Whatever a user brings becomes the same tables and ids: one test for each thing that data sets differ in."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.errors import UserError
from components.dataset.layout import FIRST_VALUE, MISSING, UNKNOWN
from components.dataset.sources import validated_tables
from components.dataset.spec import FieldSpec, Kind, parse_spec, read_spec
from components.dataset.splits import split_table
from components.dataset.vocabulary import FieldVocabulary, Vocabulary
from components.prompt_transform.words import words_of
from tests.components.dataset.making import write_parquet

IDS = [{"name": "user_id", "side": "user", "kind": "id"}, {"name": "item_id", "side": "item", "kind": "id"}]


def tables_of(folder, log, fields=(), users=None, items=None, keys=None, how=None, **changes):
    """The validated tables of sources given as text (CSV) or as rows (JSON lines); `how` is said of every source."""
    sources = {}
    for name, rows in (("impressions", log), ("users", users), ("items", items)):
        if rows is not None:
            path = folder / f"{name}.{'csv' if isinstance(rows, str) else 'jsonl'}"
            lines = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
            path.write_text(lines + "\n", encoding="utf-8")
            sources[name] = {"path": path.name, **(how or {}).get(name, {})}
    content = {
        "name": "any",
        "sources": sources,
        "keys": keys or {"user": "user", "item": "item", "timestamp": "at"},
        "label": {"column": "click"},
        "fields": [*IDS, *fields],
        **changes,
    }
    (folder / "any.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    spec = read_spec(folder / "any.yaml")
    return spec, validated_tables(spec)


LOG = [{"user": f"u{n % 5}", "item": n % 7, "at": 1000 + n, "click": int(n % 3 == 0)} for n in range(60)]


def test_ids_of_many_different_values(tmp_path):
    count = 200_000
    log = "user,item,at,click\n" + "".join(f"u{n},{count - n},{n},{n % 2}\n" for n in range(count))
    spec, tables = tables_of(tmp_path, log)
    vocabulary = Vocabulary.fit(spec, tables.impressions)
    ids = vocabulary.encode({name: tables.impressions[name] for name in vocabulary.columns})
    assert [len(np.unique(column)) for column in ids.T] == [count, count]
    assert vocabulary.layout.vocabulary_size == 1 + 2 * (FIRST_VALUE + count)


@pytest.mark.parametrize("users", [[{"user": 7, "job": "a"}], [{"user": "7", "job": "a"}], [{"user": 7.0, "job": "a"}]])
def test_ids_are_the_same_as_strings_and_as_integers(tmp_path, users):
    job = {"name": "job", "side": "user", "kind": "category"}
    log = "user,item,at,click\n" + "".join(f"7,{n % 2},{n},{n % 2}\n" for n in range(4))
    _, tables = tables_of(tmp_path, log, [job], users=users)
    assert tables.users["user_id"].to_pylist() == ["7"]
    assert tables.summary["unknown_users"] == 0


def test_keys_by_another_name(tmp_path):
    job = {"name": "job", "side": "user", "kind": "category"}
    rows = [{"id": f"u{n}", "job": "a"} for n in range(5)]
    _, tables = tables_of(tmp_path, LOG, [job], users=rows, how={"users": {"key": "id"}})
    assert tables.users["user_id"].to_pylist() == [f"u{n}" for n in range(5)]


def test_several_values(tmp_path):
    fields = [{"name": "tags", "side": "item", "kind": "multi", "separator": ";", "max_values": 2}]
    items = "item,tags\n0,a; b ;c\n1,\n2,;b\n"
    spec, tables = tables_of(tmp_path, LOG, fields, items=items, max_unknown_share=1.0)
    assert tables.items["tags"].to_pylist() == [["a", "b", "c"], None, ["b"]]
    codes = FieldVocabulary.fit(spec.field("tags"), tables.items["tags"]).encode(tables.items["tags"])
    assert codes.tolist() == [[FIRST_VALUE + 1, FIRST_VALUE], [MISSING, -1], [FIRST_VALUE, -1]]


def test_decimal_commas_and_thousands(tmp_path):
    fields = [{"name": "price", "side": "item", "kind": "number"}]
    items = "item;price\n0;1.234,50\n1;0,5\n2;\n3;-1.000.000\n4;12\n"
    how = {"items": {"delimiter": ";", "decimal": ","}}
    _, tables = tables_of(tmp_path, LOG, fields, items=items, how=how, max_unknown_share=1.0)
    assert tables.items["price"].to_pylist() == [1234.5, 0.5, None, -1_000_000.0, 12.0]
    with pytest.raises(UserError, match="write a decimal point, or 'decimal: \",\"' under its source"):
        tables_of(tmp_path, LOG, fields, items='item,price\n0,"1,5"\n', max_unknown_share=1.0)


def test_a_rating_with_a_decimal_comma(tmp_path):
    log = "user;item;at;click\n" + "".join(
        f"u{n % 3};{n % 4};{n};{n % 9 / 2:.1f}\n".replace(".", ",") for n in range(45)
    )
    label = {"column": "click", "positive": "> 2.5", "negative": "< 2.5"}
    _, tables = tables_of(tmp_path, log, how={"impressions": {"delimiter": ";", "decimal": ","}}, label=label)
    assert tables.summary["rows"] == 40
    assert tables.summary["positives"] == 15


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), st.sampled_from(["quantile", "linear", "log"]))
def test_bins_of_every_scale_keep_the_order_and_are_never_empty(numbers, scale):
    spec = FieldSpec(name="f", side="item", kind="number", buckets=8, scale=scale)
    field = FieldVocabulary.fit(spec, pa.array(numbers))
    codes = field.encode(pa.array(numbers))
    assert len(field.edges) < 8
    assert set(codes) == set(range(FIRST_VALUE, field.size))
    assert np.all(np.diff(codes[np.argsort(numbers, kind="stable")]) >= 0)


def test_scales_differ_as_they_should():
    prices = pa.array([float(2**power) for power in range(11)] + [1.0] * 100)
    edges = {
        scale: FieldVocabulary.fit(
            FieldSpec(name="f", side="item", kind="number", buckets=4, scale=scale), prices
        ).edges
        for scale in ("quantile", "linear", "log")
    }
    assert edges["quantile"] == ()
    assert edges["linear"] == (512.0, 1024.0)
    assert edges["log"] == (16.0, 64.0, 256.0)


def test_free_text(tmp_path):
    fields = [{"name": "title", "side": "item", "kind": "text"}]
    items = 'item,title\n0,"A ""long"" title,\nof two lines"\n1,\n'
    spec, tables = tables_of(tmp_path, LOG, fields, items=items, max_unknown_share=1.0)
    assert tables.items["title"].to_pylist() == ['A "long" title,\nof two lines', None]
    assert [field.name for field in spec.model_fields_of()] == ["user_id", "item_id"]
    said = words_of(spec.field("title"), tables.items["title"].combine_chunks())
    assert said.to_pylist() == ['A "long" title, of two lines', None]


def test_dates(tmp_path):
    fields = [
        {"name": "born", "side": "user", "kind": "date", "format": "%d.%m.%Y", "buckets": 2},
        {"name": "joined", "side": "user", "kind": "date"},
    ]
    users = "user,born,joined\nu0,31.12.1980,2024-05-31T23:00:00-02:00\nu1,1.2.2001,2024-06-01\nu2,,\n"
    spec, tables = tables_of(tmp_path, LOG, fields, users=users, max_unknown_share=1.0)
    assert tables.users["born"].to_pylist() == ["1980-12-31", "2001-02-01", None]
    assert tables.users["joined"].to_pylist() == ["2024-06-01", "2024-06-01", None]
    field = FieldVocabulary.fit(spec.field("born"), tables.users["born"])
    assert field.encode(tables.users["born"]).tolist() == [FIRST_VALUE, FIRST_VALUE + 1, MISSING]
    requests = ["1970-01-01", "2024-01-01", "no day", "", None, 7]
    assert field.encode(requests).tolist() == [FIRST_VALUE, FIRST_VALUE + 1, *[MISSING] * 4]
    said = words_of(spec.field("born"), tables.users["born"].combine_chunks())
    assert said.to_pylist() == ["31 December 1980", "1 February 2001", None]
    with pytest.raises(UserError, match=r"column 'born' holds '1980' in row 1, which is not of the form '%d.%m.%Y'"):
        tables_of(tmp_path, LOG, fields, users="user,born,joined\nu0,1980,\n", max_unknown_share=1.0)
    with pytest.raises(UserError, match="'format' is of dates"):
        parse_spec(
            {**yaml.safe_load((tmp_path / "any.yaml").read_text()), "fields": [{**fields[0], "kind": "text"}]}, "a"
        )


@pytest.mark.parametrize(
    ("form", "written"),
    [("%d.%m.%Y %H:%M", "31.05.2024 18:30"), ("%Y%m%d%H%M%S", "20240531183000"), ("%d/%b/%Y:%H:%M:%S %z", None)],
)
def test_time_stamps_of_any_form(tmp_path, form, written):
    words = written or "31/May/2024:20:30:00 +0200"
    log = f"user,item,at,click\nu0,0,{words},1\nu1,0,{words},0\n"
    _, tables = tables_of(tmp_path, log, how={"impressions": {"timestamp_format": form}})
    moment = dt.datetime(2024, 5, 31, 18, 30, tzinfo=dt.UTC)
    assert tables.impressions["event_timestamp"].to_pylist() == [moment, moment]


def test_time_stamps_that_are_whole_numbers_of_digits(tmp_path):
    write_parquet(tmp_path / "log.parquet", user=["a", "b"], item=[1, 2], day=[20240531, 20240601], click=[0, 1])
    source = {"path": str(tmp_path / "log.parquet"), "timestamp_format": "%Y%m%d"}
    keys = {"user": "user", "item": "item", "timestamp": "day"}
    spec = {
        "name": "any",
        "sources": {"impressions": source},
        "keys": keys,
        "label": {"column": "click"},
        "fields": IDS,
    }
    stamps = validated_tables(parse_spec(spec, "any")).impressions["event_timestamp"].to_pylist()
    assert [stamp.isoformat()[:10] for stamp in stamps] == ["2024-05-31", "2024-06-01"]


def test_missing_values(tmp_path):
    fields = [
        {"name": "job", "side": "user", "kind": "category"},
        {"name": "age", "side": "user", "kind": "number"},
        {"name": "tags", "side": "user", "kind": "multi"},
    ]
    users = [
        {"user": "u0", "job": "x", "age": 3, "tags": ["t"]},
        {"user": "u1", "job": None, "tags": []},
        {"user": "u2"},
    ]
    spec, tables = tables_of(tmp_path, LOG, fields, users=users, max_unknown_share=1.0)
    for field in fields:
        column = tables.users[field["name"]]
        assert column.null_count == 2
        codes = FieldVocabulary.fit(spec.field(field["name"]), column).encode(column)
        assert codes.reshape(3, -1)[:, 0].tolist() == [FIRST_VALUE, MISSING, MISSING]


def test_unicode(tmp_path):
    fields = [{"name": "stadt", "side": "user", "kind": "category", "column": "Straße 🏠"}]
    users = "user,Straße 🏠\n" + "ünï,Köln\n東京,大阪\n"
    log = "user,item,at,click\nünï,é,1,1\n東京,e\u0301,2,0\n東京,é,3,0\n"
    spec, tables = tables_of(tmp_path, log, fields, users=users)
    assert tables.users["stadt"].to_pylist() == ["Köln", "大阪"]
    assert tables.impressions["item_id"].to_pylist() == ["é", "e\u0301", "é"]
    vocabulary = Vocabulary.load(_saved(tmp_path, Vocabulary.fit(spec, _joined(tables))))
    assert vocabulary.field("user_id").encode(["東京", "ünï", "nobody"]).tolist() == [
        FIRST_VALUE,
        FIRST_VALUE + 1,
        UNKNOWN,
    ]


def _joined(tables):
    return tables.impressions.append_column("stadt", pa.array(["Köln", "大阪", "大阪"]))


def _saved(folder, vocabulary):
    vocabulary.save(folder / "vocabulary.json")
    return folder / "vocabulary.json"


def test_records_in_json_lines_and_parquet(tmp_path):
    rows = [{"who": {"id": n % 3, "geo": {"land": "de"}}, "what": {"id": n}, "at": n, "click": n % 2} for n in range(6)]
    field = {"name": "land", "side": "context", "kind": "category", "column": "who.geo.land"}
    keys = {"user": "who.id", "item": "what.id", "timestamp": "at"}
    _, tables = tables_of(tmp_path, [*rows, {**rows[0], "who": {"id": 9, "geo": None}}], [field], keys=keys)
    assert tables.impressions["user_id"].to_pylist() == ["0", "1", "2", "0", "1", "2", "9"]
    assert tables.impressions["land"].to_pylist() == [*["de"] * 6, None]
    write_parquet(tmp_path / "log.parquet", **pa.Table.from_pylist(rows).to_pydict())
    spec = yaml.safe_load((tmp_path / "any.yaml").read_text())
    spec["sources"]["impressions"]["path"] = str(tmp_path / "log.parquet")
    again = validated_tables(parse_spec(spec, "any")).impressions
    assert again["land"].to_pylist() == ["de"] * 6


@pytest.mark.parametrize("absent", ["users", "items"])
def test_no_user_or_no_item_table(tmp_path, absent):
    sides = {"users": ("user", [f"u{n}" for n in range(5)]), "items": ("item", list(range(7)))}
    (name, (key, values)) = next((name, side) for name, side in sides.items() if name != absent)
    rows = [{key: value, "colour": "red"} for value in values]
    field = {"name": "colour", "side": key, "kind": "category"}
    spec, tables = tables_of(tmp_path, LOG, [field], **{name: rows})
    assert getattr(tables, absent) is None
    assert getattr(tables, name)["colour"].to_pylist() == ["red"] * len(values)
    assert set(tables.impressions.column_names) >= {"user_id", "item_id", "label"}
    assert {part: rows.num_rows for part, rows in split_table(tables.impressions, spec).items()}["train"] == 48


def test_no_time_stamps(tmp_path):
    log = [{name: value for name, value in row.items() if name != "at"} for row in LOG]
    spec, tables = tables_of(tmp_path, log, keys={"user": "user", "item": "item"}, split={"by": "random"})
    assert "event_timestamp" not in tables.impressions.column_names
    assert sum(part.num_rows for part in split_table(tables.impressions, spec).values()) == 60
    assert Kind.ID in {field.kind for field in spec.fields}
