"""What `tandem init` proposes: the files of strangers are understood, and what cannot be told is asked for."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.dataset import survey as surveys
from components.dataset.check import check
from components.dataset.draft import written
from components.dataset.errors import UserError
from components.dataset.guess import identifier, kind_of, label_of, moment_of, spoken
from components.dataset.propose import Chosen, propose
from components.dataset.spec import NAME_PATTERN, Kind, Source, parse_spec
from components.dataset.survey import Seen, survey
from tests.components.dataset import strangers


def proposed(folder, files, **chosen):
    """The proposal for some files, its text, and the spec that the text gives, written to spec.yaml in the folder."""
    paths = {name: str(files[name]) if name in files else None for name in ("impressions", "users", "items")}
    proposal = propose("anyone", **paths, chosen=Chosen(**chosen))
    text = written(proposal, folder / "spec.yaml")
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return proposal, text, parse_spec(yaml.safe_load(text), "spec.yaml")


def kinds(spec):
    return {field.source_column: str(field.kind) for field in spec.fields if field.kind is not Kind.ID}


@pytest.mark.parametrize("stranger", [strangers.web_shop, strangers.news, strangers.ratings])
def test_the_proposal_can_be_run_without_an_edit(tmp_path, stranger):
    proposed(tmp_path, stranger(tmp_path))
    checked = check(str(tmp_path / "spec.yaml"))
    assert checked.errors == 0, checked.findings
    assert checked.tables.summary["rows"] > 1000
    assert 0.2 < checked.tables.summary["label_rate"] < 0.8


def test_a_web_shop_in_packed_nested_json_lines(tmp_path):
    proposal, text, spec = proposed(tmp_path, strangers.web_shop(tmp_path))
    keys = spec.keys
    assert (keys.user, keys.item, keys.timestamp, keys.timestamp_unit) == ("visitor.id", "product.sku", "ts", "ms")
    assert (spec.sources.users.key, spec.sources.items.key) == ("id", "id")
    assert (spec.label.column, spec.label.positive, spec.label.negative) == ("clicked", "== true", "== false")
    assert kinds(spec) == {
        "region": "category",
        "customer_since": "date",
        "birthYear": "number",
        "title": "text",
        "price": "number",
        "colours": "multi",
        "inStock": "category",
        "visitor.agent": "category",
        "product.position": "number",
        "dwell_ms": "number",
    }
    assert [field.name for field in spec.fields if field.known_after_impression] == ["dwell_ms"]
    assert {"url", "session", "schema", "campaign"} == {f.seen.name for f in proposal.fields if f.guess.kind is None}
    assert "'campaign' is empty" in text and "'schema' is constant" in text
    assert spec.history.title == "title"
    assert spec.prompt.item == "This is a product"


def test_news_without_a_user_table(tmp_path):
    _, _, spec = proposed(tmp_path, strangers.news(tmp_path))
    assert spec.sources.users is None
    assert (spec.keys.user, spec.keys.item, spec.keys.timestamp) == ("leser", "artikel", "zeitpunkt")
    assert (spec.label.positive, spec.label.negative) == ("== ja", "== nein")
    assert spec.field("schlagworter").separator == ","
    assert spec.field("uberschrift").spoken == "überschrift"
    assert spec.field("lesedauer").known_after_impression
    assert kinds(spec)["veröffentlicht"] == "date"


def test_ratings_with_semicolons_decimal_commas_and_european_dates(tmp_path):
    _, _, spec = proposed(tmp_path, strangers.ratings(tmp_path))
    log = spec.sources.impressions
    assert (log.delimiter, log.decimal, log.timestamp_format) == (";", ",", "%d.%m.%Y %H:%M")
    assert (spec.label.positive, spec.label.negative) == ("> 3", "< 3")
    assert spec.field("erschienen").format == "%d.%m.%Y"
    assert spec.field("geschlecht").codes == {"m": "male", "w": "female", "d": "diverse"}
    assert spec.field("rezension").known_after_impression
    assert kinds(spec)["Preis €"] == "number"
    assert "Verlag" not in kinds(spec)


def lines(columns, rows):
    return "\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n"


def test_no_tables_and_no_time_stamps(tmp_path):
    rows = [(f"u{n % 9}", n % 7, int(n % 3 == 0), "ab"[n % 2]) for n in range(200)]
    (tmp_path / "log.csv").write_text(lines("user,item,click,device", rows))
    _, text, spec = proposed(tmp_path, {"impressions": tmp_path / "log.csv"})
    assert spec.split.by == "random"
    assert spec.history is None and spec.keys.timestamp is None
    assert kinds(spec) == {"device": "category"}
    assert "No column holds moments" in text
    assert check(str(tmp_path / "spec.yaml")).errors == 0


def test_a_column_filled_only_after_some_clicks_is_a_leak(tmp_path):
    """One click in ten is followed by an order: of all clicks together its value tells little."""
    rows = [(f"u{n % 9}", n % 7, int(n % 3 == 0), "" if n % 30 else n % 8, "ab"[n % 2]) for n in range(1200)]
    (tmp_path / "log.csv").write_text(lines("user,item,click,bonus,device", rows))
    proposal, text, spec = proposed(tmp_path, {"impressions": tmp_path / "log.csv"})
    assert spec.field("bonus").known_after_impression and not spec.field("device").known_after_impression
    assert "'bonus': LEAK: it is filled in 3.3% of the rows, (nearly) all of them positive" in proposal.warnings[0]
    assert "# LEAK: it is filled in 3.3%" in text

    (tmp_path / "spec.yaml").write_text(text.replace(", known_after_impression: true", ""))
    warned = [str(finding) for finding in check(str(tmp_path / "spec.yaml")).findings]
    assert any("field 'bonus'" in line and "is filled in 3.3% of the rows" in line for line in warned), warned


def test_rows_without_a_key_are_told_as_check_tells_them(tmp_path):
    rows = [(f"u{n % 60}" if n % 100 else "", n % 7, n // 60 % 2) for n in range(400)]
    (tmp_path / "log.csv").write_text(lines("user,item,click", rows))
    users = [*((f"u{n}", "ab"[n % 2]) for n in range(60)), ("", "a")]
    (tmp_path / "users.csv").write_text(lines("user,job", users))
    proposal, text, _ = proposed(tmp_path, {"impressions": tmp_path / "log.csv", "users": tmp_path / "users.csv"})
    assert proposal.warnings == [
        "column 'user' of the impressions is empty in 4 rows: fill or drop them",
        "column 'user' of the users is empty in 1 rows: fill or drop them",
    ]
    (tmp_path / "spec.yaml").write_text(text)
    said = [finding.what for finding in check(str(tmp_path / "spec.yaml")).findings if finding.severity == "error"]
    assert len(said) == 2, said
    assert "is empty in row 1 (4 in all)" in said[0] and "is empty in row 61 (1 in all)" in said[1]


def test_moments_of_which_some_are_missing_divide_nothing_and_it_is_said(tmp_path):
    rows = [(f"u{n % 5}", n % 7, f"2024-05-01 {n // 60:02d}:{n % 60:02d}" if n != 30 else "", n % 2) for n in range(90)]
    (tmp_path / "log.csv").write_text(lines("user,item,shown_at,click", rows))
    proposal, text, spec = proposed(tmp_path, {"impressions": tmp_path / "log.csv"})
    assert (proposal.moment, spec.split.by) == (None, "random")
    (said,) = [line for line in proposal.warnings if "shown_at" in line]
    assert said.startswith("column 'shown_at' would divide the rows by time, but is empty in 1: fill or drop them")
    assert said[:60] in text


def test_a_column_of_hardly_any_moments_is_no_course_of_time(tmp_path):
    rows = [(f"u{n % 5}", n % 7, f"2024-05-{1 + n % 3:02d}", n % 2) for n in range(60)]
    (tmp_path / "log.csv").write_text(lines("user,item,date,click", rows))
    _, _, spec = proposed(tmp_path, {"impressions": tmp_path / "log.csv"})
    assert (spec.keys.timestamp, spec.split.by, kinds(spec)) == (None, "random", {"date": "date"})


def test_keys_that_come_back_are_dated(tmp_path):
    log = [(f"u{n % 5}", n % 7, 1_700_000_000 + n, n % 2) for n in range(300)]
    (tmp_path / "log.csv").write_text(lines("user,item,ts,click", log))
    users = [(f"u{n % 5}", "ab"[n // 5 % 2], 1_690_000_000 + n) for n in range(20)]
    (tmp_path / "users.csv").write_text(lines("user,plan,since_ts", users))
    _, _, spec = proposed(tmp_path, {"impressions": tmp_path / "log.csv", "users": tmp_path / "users.csv"})
    assert spec.sources.users.timestamp == "since_ts"
    assert check(str(tmp_path / "spec.yaml")).errors == 0


def test_what_cannot_be_told_is_asked_for(tmp_path):
    rows = [(n % 9, n % 7, n % 4, n) for n in range(100)]
    (tmp_path / "log.csv").write_text(lines("a,b,c,d", rows))
    files = {"impressions": tmp_path / "log.csv"}
    with pytest.raises(UserError, match=r"the user's key; say which: --user COLUMN \(the columns are a, b, c, d\)"):
        proposed(tmp_path, files)
    with pytest.raises(UserError, match="--item COLUMN"):
        proposed(tmp_path, files, user="a")
    with pytest.raises(UserError, match="--label COLUMN"):
        proposed(tmp_path, files, user="a", item="b")
    with pytest.raises(UserError, match=r"--label x: no such column; those of .* are a, b, c, d"):
        proposed(tmp_path, files, user="a", item="b", label="x")
    with pytest.raises(UserError, match="--timestamp a: its values are no moments"):
        proposed(tmp_path, files, user="a", item="b", label="c", timestamp="a")
    _, _, spec = proposed(tmp_path, files, user="a", item="b", label="c")
    assert (spec.label.positive, spec.label.negative) == ("> 2", "< 2")


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(lines("user,item,click", [(f"u{n % 9}", n % 7, n % 2) for n in range(100)]))
    (tmp_path / "users.csv").write_text(lines("user,job", [(f"other{n}", "x") for n in range(9)]))
    with pytest.raises(UserError, match=r"users\.csv: no column holds the values of 'user'"):
        proposed(tmp_path, {"impressions": tmp_path / "log.csv", "users": tmp_path / "users.csv"})


def test_a_file_without_names_of_columns_is_refused(tmp_path):
    (tmp_path / "u.csv").write_text("196\t242\t3\n186\t302\t3\n")
    with pytest.raises(UserError, match=r"its first line holds values \(196, 242, 3\), not names"):
        survey(str(tmp_path / "u.csv"))


def test_a_column_named_twice_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,user\n1,2,3\n")
    with pytest.raises(UserError, match=r"log\.csv: column user stands there twice; rename one of them"):
        survey(str(tmp_path / "log.csv"))


VALUES = {
    "words": st.sampled_from(["a", "b", "", "größe", "N/A"]),
    "several": st.sampled_from(["a|b", "b", "c|a|b", "", "|"]),
    "text": st.text("ab ,;|'\"\n東🎉", max_size=12),
    "whole": st.integers(-5, 10**6).map(str),
    "float": st.floats(allow_nan=False).map(str),
    "comma": st.floats(-1e6, 1e6).map(lambda number: f"{number:.2f}".replace(".", ",")),
    "moment": st.datetimes().map(str),
    "day": st.dates().map(lambda day: f"{day.day:02d}.{day.month:02d}.{day.year:04d}"),
    "epoch": st.integers(1_600_000_000, 1_700_000_000).map(str),
    "nothing": st.sampled_from(["", "NA", "nan"]),
    "same": st.just("x"),
}
NAMES = (
    "price",
    "tags",
    "Größe",
    "x.y",
    "created at",
    "type",
    "1st",
    "date",
    "title",
    "Title",
    "名前",
    "user_name",
    "score",
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(VALUES)), max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    data=st.data(),
)
def test_whatever_the_columns_hold_the_proposal_can_be_run(tmp_path, kinds, delimiter, data):
    rows = []
    for number in range(40):
        row = [data.draw(VALUES[kind]) for kind in kinds.values()]
        rows.append([f"u{number % 7}", str(number % 5), str(number * 7 % 3 // 2), *row])
    with (tmp_path / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["user", "item", "clicked", *kinds], *rows])
    proposed(tmp_path, {"impressions": tmp_path / "log.csv"})
    checked = check(str(tmp_path / "spec.yaml"))
    assert checked.errors == 0, [str(finding) for finding in checked.findings]


# --- guesses -----------------------------------------------------------------------------------------------------


def seen(values, name="column", kind=None):
    column = pa.array(values)
    is_list = pa.types.is_list(column.type)
    types = {kind or ("list" if is_list else "text")}
    sample = column if is_list else column.cast(pa.string())
    flat = pa.array([one for row in values for one in row]) if is_list else sample.drop_null()
    return Seen(name, len(values), column.null_count, frozenset(types), flat.unique(), sample)


@pytest.mark.parametrize(
    ("values", "rules"),
    [
        (["0", "1"] * 9, ("== 1", "== 0")),
        (["True", "False"], ("== True", "== False")),
        (["-1", "1"], ("== 1", "== -1")),
        (["click", "view"] * 5, ("== click", "== view")),
        (["view"] * 9 + ["cart", "purchase"], ("!= view", "== view")),
        (["1", "2", "3", "4", "5"], ("> 3", "< 3")),
        ([str(n) for n in range(1, 11)], ("> 6", "< 6")),
        (["a"] * 9 + ["b"], ("== b", "== a")),
        (["x"] * 5, None),
        ([str(n) for n in range(500)], None),
        (["red", "green", "blue"], None),
    ],
)
def test_label_rules(values, rules):
    found = label_of(seen(values), ".")
    assert (found and (found.positive, found.negative)) == rules


@pytest.mark.parametrize(
    ("values", "unit", "form"),
    [
        (["1700000000", "1700000001.5"], "s", None),
        (["1700000000000"], "ms", None),
        (["1700000000000000"], "us", None),
        (["2024-05-31T18:30:00Z", "2024-05-31"], None, None),
        (["31.05.2024", "01.06.2024"], None, "%d.%m.%Y"),
        (["05/31/2024 18:30"], None, "%m/%d/%Y %H:%M"),
        (["20240531"], None, "%Y%m%d"),
        (["20240531183000"], None, "%Y%m%d%H%M%S"),
        (["31/May/2024:18:30:00 +0200"], None, "%d/%b/%Y:%H:%M:%S %z"),
    ],
)
def test_moments(values, unit, form):
    found = moment_of(seen(values))
    assert (found.unit, found.form) == (unit, form)


def test_what_is_no_moment_and_what_is_in_doubt():
    assert moment_of(seen(["12", "13"])) is None
    assert moment_of(seen(["a2", "b"])) is None
    assert moment_of(seen(["99999999", "12345678"])) is None
    assert "cannot be told" in moment_of(seen(["01/02/2024", "03/04/2024"])).doubt
    assert moment_of(seen(["01/02/2024", "23/04/2024"])).doubt == ""


@pytest.mark.parametrize(
    ("values", "name", "kind", "more"),
    [
        (["a|b", "b|c", "a"] * 40, "genres", Kind.MULTI, {"separator": "|", "max_values": 2}),
        (["a; b", "b", "a; c"] * 40, "tags", Kind.MULTI, {"separator": ";", "max_values": 2}),
        (["Paris, France", "Rome, Italy"] * 40, "city", Kind.CATEGORY, {}),
        ([["a"], ["a", "b"]], "x", Kind.MULTI, {"max_values": 2}),
        (["12345", "54321", "99999"] * 40, "zip_code", Kind.CATEGORY, {}),
        ([str(n * 37 % 1000) for n in range(300)], "brand_id", Kind.CATEGORY, {}),
        ([str(n * 37 % 1000) for n in range(300)], "height", Kind.NUMBER, {}),
        ([str(2.5 * n % 91) for n in range(300)], "weight", Kind.NUMBER, {}),
        ([str(n % 40 if n % 20 else 100_000) for n in range(300)], "n", Kind.NUMBER, {"scale": "log"}),
        (["M", "F", None], "sex", Kind.CATEGORY, {"codes": {"M": "male", "F": "female"}}),
        (["t", "f"] * 3, "sold", Kind.CATEGORY, {"codes": {"f": "no", "t": "yes"}}),
        ([f"The story of number {n}" for n in range(200)], "title", Kind.TEXT, {}),
        (["2024-01-01", "2024-02-01"], "listed", Kind.DATE, {}),
        ([f"{n:032x}" for n in range(200)], "token", None, {}),
        ([f"https://x.y/{n % 5}" for n in range(200)], "link", None, {}),
        (["same"] * 9, "x", None, {}),
    ],
)
def test_kinds(values, name, kind, more):
    found = kind_of(seen(values, name), Source(path="a.csv"))
    assert (found.kind, found.more) == (kind, more), found.why


@given(st.text(max_size=20), st.integers(0, 99))
def test_every_column_has_a_name_for_its_field(name, number):
    assert re.match(NAME_PATTERN, identifier(name, number))
    assert spoken(name) == spoken(name).strip()


# --- the survey --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_large_files_are_counted_whole_and_sampled_evenly(tmp_path, monkeypatch, kind):
    """Every count is exact, although only some rows are kept, and those come from all of the file."""
    monkeypatch.setattr(surveys, "SAMPLE", 100)
    monkeypatch.setattr(surveys, "WAITING", 50)
    monkeypatch.setattr("components.dataset.files.BLOCK", 4000)
    monkeypatch.setattr("components.dataset.files.ROWS", 300)
    count = 5000
    table = pa.table({"n": np.arange(count), "m": [None if n % 4 else f"v{n % 8}" for n in range(count)]})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        path.write_text("n,m\n" + "".join(f"{n},{m or ''}\n" for n, m in zip(*table.to_pydict().values(), strict=True)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    found = survey(str(path))
    assert found.rows == count
    n, m = found.columns["n"], found.columns["m"]
    assert (n.empty, n.different, m.empty, m.different) == (0, count, 3750, 2)
    step = count // len(n.sample) + 1
    assert n.sample.to_pylist() == [str(place) for place in range(0, count, 32)]
    assert 100 <= len(n.sample) <= 200 and step == 32
    assert m.sample.to_pylist() == [f"v{place % 8}" for place in range(0, count, 32)]


def test_more_values_than_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(surveys, "COUNTED", 100)
    monkeypatch.setattr(surveys, "WAITING", 10)
    (tmp_path / "a.csv").write_text("n,m\n" + "".join(f"{n},{n % 100}\n" for n in range(500)))
    found = survey(str(tmp_path / "a.csv")).columns
    assert found["n"].different is None
    assert found["m"].different == 100
