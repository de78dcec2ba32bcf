"""Spoiled data are caught by name: as a UserError, or by an expectation of the right severity."""

import numpy as np
import pandas as pd
import pytest

from components.dataset.errors import UserError, ValidationStoppedError
from components.run import read_json
from components.validate.checkpoint import SEVERITIES
from components.validate.settings import ValidateSettings
from components.validate.step import validate
from tests.components.validate.making import every, sample_spec, write

NEXT_CENTURY = pd.Timestamp("2100-01-01", tz="UTC")


def run(place, tables, spec=None, **settings):
    ref = write(place, tables, spec or sample_spec())
    return validate(ref, place / "out", place / "docs", ValidateSettings(**settings))


def put(name, column, share, value):
    """A spoiler: the given share of a column's rows gets a value."""

    def spoil(tables, spec):
        table = tables[name]
        tables[name][column] = table[column].mask(pd.Series(every(table, share), table.index), value)

    return spoil


def shift(name, column, days):
    def spoil(tables, spec):
        tables[name][column] += pd.Timedelta(days=days)

    return spoil


def drop_column(name, column):
    def spoil(tables, spec):
        tables[name] = tables[name].drop(columns=column)

    return spoil


def repeat(name, rows):
    def spoil(tables, spec):
        tables[name] = pd.concat([tables[name], tables[name].head(rows)])

    return spoil


def keep(name, rows):
    def spoil(tables, spec):
        tables[name] = tables[name].head(rows)

    return spoil


def label_rule(**rules):
    def spoil(tables, spec):
        spec["label"] |= rules

    return spoil


def labels_at_rate(rate):
    def spoil(tables, spec):
        tables["impressions"]["clicked"] = every(tables["impressions"], rate).astype(np.int8)

    return spoil


def written_in(scale, read_as):
    """Integer time stamps of `scale` a second, which the spec takes for another unit."""

    def spoil(tables, spec):
        moments = tables["impressions"]["shown_at"].dt.as_unit("us").astype("int64")
        tables["impressions"]["shown_at"] = moments // (10**6 // scale)
        spec["keys"]["timestamp_unit"] = read_as

    return spoil


def one_moment(tables, spec):
    tables["impressions"]["shown_at"] = tables["impressions"]["shown_at"].max()


def price_in_words(tables, spec):
    tables["items"]["price"] = "about " + tables["items"]["price"].astype(str)


def no_parquet(tables, spec):
    spec["sources"]["users"] = {"path": "spec.yaml", "format": "parquet", "timestamp": "joined_at"}
    del tables["users"]


def no_file(tables, spec):
    spec["sources"]["items"]["path"] = "elsewhere.parquet"
    del tables["items"]


def latin_1(tables, spec):
    tables["items"]["title"] = [b"caf\xe9"] * len(tables["items"])


def two_rows_a_moment(tables, spec):
    tables["users"] = pd.concat([tables["users"], tables["users"].head(2).assign(city="Elsewhere")])


def every_user_once(tables, spec):
    spec["sources"].pop("users")
    spec["fields"] = [field for field in spec["fields"] if field["side"] != "user" or field["kind"] == "id"]
    tables["impressions"]["user"] = [f"visitor {row}" for row in range(len(tables["impressions"]))]


UNREADABLE = [
    ("empty key", put("impressions", "user", 0.01, None), r"impressions\.parquet: column 'user' is empty in row"),
    ("empty item key", put("items", "item", 0.01, None), r"items\.parquet: column 'item' is empty in row"),
    ("empty time", put("impressions", "shown_at", 0.01, pd.NaT), "column 'shown_at' is empty in row"),
    ("no label column", drop_column("impressions", "clicked"), r"impressions\.parquet: no column 'clicked'"),
    ("no field column", drop_column("users", "city"), r"users\.parquet: no column 'city'"),
    ("no file", no_file, r"elsewhere\.parquet: no such file"),
    ("no Parquet", no_parquet, r"spec\.yaml: is no Parquet file"),
    ("no UTF-8", latin_1, r"items\.parquet: column 'title' holds bytes that are not UTF-8"),
    ("words as a number", price_in_words, r"items\.parquet: column 'price' holds 'about"),
    ("key twice", two_rows_a_moment, r"users\.parquet: column 'user' has keys in more than one row"),
    ("all labels dropped", put("impressions", "clicked", 1, 2), "all rows are dropped"),
    ("no positive", put("impressions", "clicked", 1, 0), "no row is positive"),
    ("no negative", label_rule(positive=">= 0", negative="== -1"), "no row is negative"),
    ("strangers", put("impressions", "user", 0.7, "nobody"), r"70\.\d% of the rows name users"),
    ("milliseconds as seconds", written_in(1_000, "s"), r"'shown_at' holds \d+ in row 1.*timestamp_unit: ms"),
    ("empty table", keep("impressions", 0), r"impressions\.parquet: holds no rows"),
]
CRITICAL = [
    ("too few rows", keep("impressions", 50), "impressions: expected that there are at least 100 rows"),
    ("all in the future", shift("impressions", "shown_at", 50_000), "event_timestamp is not in the future"),
    ("one in the future", put("impressions", "shown_at", 0.001, NEXT_CENTURY), "event_timestamp is not in the future"),
    ("long ago", shift("impressions", "shown_at", -16_000), "event_timestamp is not before 1990"),
    ("seconds as milliseconds", written_in(1, "ms"), "impressions: expected that event_timestamp is not before 1990"),
    ("users of the future", shift("users", "joined_at", 50_000), "users: expected that event_timestamp is not in the"),
    ("one moment", one_moment, "event_timestamp has at least 10 different values"),
]
WARNING = [
    ("repeated rows", repeat("impressions", 300), "repeat user, item and moment"),
    ("some strangers", put("impressions", "item", 0.3, "nobody"), "items without a row"),
    ("rows dated too late", shift("items", "listed_at", 60), "before their item's first row"),
    ("nearly all positive", labels_at_rate(0.95), "share of positives is between 0.001 and 0.9"),
    ("hardly any positive", labels_at_rate(0.0007), "share of positives is between"),
    ("unknown code", put("impressions", "device", 0.1, "fridge"), "device has only values with words"),
    ("many empty values", put("users", "city", 0.5, None), "at most 20% of city are empty"),
    ("an empty field", put("users", "city", 1, None), "city has at least 2 different values"),
    ("an empty number", put("items", "price", 1, None), "at most 20% of price are empty"),
    ("an empty multi", put("items", "tags", 1, None), "at most 20% of tags are empty"),
    ("one value", put("users", "occupation", 1, "cook"), "occupation has at least 2 different values"),
    ("infinite number", put("items", "price", 0.02, np.inf), "price is finite"),
    ("stray spaces", put("items", "maker", 0.1, "Aldine "), "maker neither begins nor ends with a space"),
    ("stray space in a key", put("impressions", "user", 0.01, "u0001 "), "user_id neither begins nor ends"),
    ("one user", put("impressions", "user", 1, "u0001"), "user_id has at least 2 different values"),
]
INFO = [
    ("no words", put("items", "description", 0.3, "-"), "description is mostly longer"),
    ("users never come back", every_user_once, "users come back"),
]


def cases(found):
    return pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in found], ids=[case[0] for case in found])


@cases(UNREADABLE)
def test_unreadable_data_are_refused_by_name(tmp_path, tables, spoil, words):
    spec = sample_spec()
    spoil(tables, spec)
    with pytest.raises(UserError, match=words):
        run(tmp_path, tables, spec)
    assert not (tmp_path / "out").exists()


@cases(CRITICAL)
def test_a_critical_failure_stops_the_run(tmp_path, tables, spoil, words):
    spec = sample_spec()
    spoil(tables, spec)
    with pytest.raises(ValidationStoppedError) as caught:
        run(tmp_path, tables, spec)
    lines = [line for line in str(caught.value).splitlines() if words in line]
    assert len(lines) == 1, str(caught.value)
    assert lines[0].startswith("  critical: ")
    assert "index.html" in str(caught.value)
    assert (tmp_path / "docs" / "index.html").is_file(), "the Data Docs are written all the same"
    assert not (tmp_path / "out").exists(), "what has not passed is not handed on"


@pytest.mark.parametrize(
    ("severity", "spoil", "words"),
    [(severity, *case[1:]) for severity, found in (("warning", WARNING), ("info", INFO)) for case in found],
    ids=[case[0] for case in WARNING + INFO],
)
def test_a_lesser_failure_is_told_by_its_severity(tmp_path, tables, severity, spoil, words):
    spec = sample_spec()
    spoil(tables, spec)
    summary = run(tmp_path, tables, spec)
    failed = read_json(tmp_path / "out" / "summary.json")["expectations"][severity]["failed"]
    assert len([sentence for sentence in failed if words in sentence]) == 1, [f.sentence for f in summary.failed]
    assert SEVERITIES.index(summary.worst_severity) >= SEVERITIES.index(severity)
    assert (tmp_path / "docs" / "index.html").is_file()


def test_the_untouched_log_passes(tmp_path, tables):
    """Else every case above could pass for nothing."""
    assert run(tmp_path, tables).failed == ()


def test_a_warning_stops_the_run_where_asked(tmp_path, tables):
    tables["users"]["city"] = None
    with pytest.raises(ValidationStoppedError, match=r"warning: users: expected that at most 20% of city are empty"):
        run(tmp_path, tables, stop_on="warning")
    assert not (tmp_path / "out").exists()
