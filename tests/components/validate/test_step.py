"""The whole step on good data: what it writes, what it says of it, and what it takes besides the sample."""

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.dataset.errors import UserError
from components.dataset.sources import Tables
from components.run import read_json
from components.validate.settings import ValidateSettings
from components.validate.step import validate
from tests.components.validate.making import ROWS, sample_spec, write


@pytest.fixture
def on_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path / "data"))
    return lambda: validate("sample", tmp_path / "out", tmp_path / "docs", ValidateSettings())


def test_the_sample_is_generated_on_demand_and_is_sound(on_sample, tmp_path):
    summary = on_sample()
    assert summary.failed == ()
    assert summary.worst_severity is None
    tables = Tables.open(tmp_path / "out")
    assert tables.impressions.num_rows == summary.counts["rows"] == 60_000
    assert tables.users.num_rows == 2_500
    assert not any("probability" in table.column_names for table in (tables.impressions, tables.users, tables.items))


def test_the_data_docs_say_the_expectations_in_words(on_sample, tmp_path):
    on_sample()
    pages = list((tmp_path / "docs" / "validations").rglob("*.html"))
    assert len(pages) == 3, "impressions, users and items"
    assert "price is finite [warning]" in "".join(page.read_text() for page in pages)


def test_the_summary_counts_and_profiles(tmp_path, tables):
    summary = validate(write(tmp_path, tables, sample_spec()), tmp_path / "out", tmp_path / "docs", ValidateSettings())
    content = read_json(tmp_path / "out" / "summary.json")
    assert content["rows"] == ROWS
    assert content["label_rate"] == pytest.approx(tables["impressions"]["clicked"].mean())
    assert content["unknown_users"] == content["unknown_items"] == content["dropped_by_label_rule"] == 0
    assert content["worst_severity"] is None
    passed = sum(result["passed"] for result in content["expectations"].values())
    assert passed == len(summary.findings) > 50
    profile = content["profile"]
    assert set(profile) == {field["name"] for field in sample_spec()["fields"] if field["kind"] != "id"}
    assert profile["price"]["mean"] == pytest.approx(tables["items"]["price"].mean())
    assert profile["price"]["quantiles"]["0.5"] == pytest.approx(tables["items"]["price"].median())
    assert profile["price"]["null_share"] == pytest.approx(tables["items"]["price"].isna().mean())
    shares = tables["impressions"]["device"].value_counts(normalize=True)
    assert profile["device"]["top"] == pytest.approx(shares.to_dict())
    tags = tables["items"]["tags"].str.split("|").explode().value_counts() / len(tables["items"])
    assert profile["tags"]["top"] == pytest.approx(tags.head(20).to_dict())
    words = tables["items"]["description"].str.split().str.len().mean()
    assert profile["description"]["mean_words"] == pytest.approx(words)


def test_a_log_without_tables_and_time(tmp_path, tables):
    """The least that a user can bring: one file, no moments; its fields are columns of the impressions."""
    spec = sample_spec()
    spec["sources"] = {"impressions": {}}
    spec["keys"] = {"user": "user", "item": "item"}
    spec["fields"] = [field for field in spec["fields"] if field["kind"] == "id" or field["side"] == "context"]
    spec |= {"split": {"by": "hash"}, "history": None}
    log = tables["impressions"].drop(columns="shown_at")
    summary = validate(
        write(tmp_path, {"impressions": log}, spec), tmp_path / "out", tmp_path / "docs", ValidateSettings()
    )
    assert {finding.table for finding in summary.findings} == {"impressions"}
    assert not (tmp_path / "out" / "users.parquet").exists()


def test_rows_that_the_label_rule_drops_keep_their_numbers(tmp_path, tables):
    tables["impressions"].loc[::3, "clicked"] = 7
    validate(write(tmp_path, tables, sample_spec()), tmp_path / "out", tmp_path / "docs", ValidateSettings())
    written = pq.read_table(tmp_path / "out" / "impressions.parquet")
    assert written["impression_id"].to_pylist() == [row for row in range(ROWS) if row % 3]
    assert read_json(tmp_path / "out" / "summary.json")["dropped_by_label_rule"] == ROWS // 3


def test_users_with_several_dated_rows_are_fine(tmp_path, tables):
    later = tables["users"].assign(joined_at=tables["users"]["joined_at"] + pd.Timedelta(days=3), city="Easton")
    tables["users"] = pd.concat([tables["users"], later])
    summary = validate(write(tmp_path, tables, sample_spec()), tmp_path / "out", tmp_path / "docs", ValidateSettings())
    assert not [finding for finding in summary.failed if finding.severity != "info"]


def test_a_table_larger_than_max_rows_is_looked_at_in_part(tmp_path, tables):
    """Every row is written all the same."""
    settings = ValidateSettings(max_rows=1_000)
    tables["impressions"].loc[1::2, "device"] = "fridge"
    summary = validate(write(tmp_path, tables, sample_spec()), tmp_path / "out", tmp_path / "docs", settings)
    (unknown,) = [finding for finding in summary.failed if finding.column == "device"]
    seen = int(unknown.found.split()[0])
    assert 450 < seen < 550, "half of the thousand"
    assert pq.read_table(tmp_path / "out" / "impressions.parquet").num_rows == ROWS


def test_a_second_run_replaces_the_first(tmp_path, tables):
    for rows in (ROWS, 900):
        part = tables | {"impressions": tables["impressions"].tail(rows)}
        validate(write(tmp_path, part, sample_spec()), tmp_path / "out", tmp_path / "docs", ValidateSettings())
    assert pq.read_table(tmp_path / "out" / "impressions.parquet").num_rows == 900


def test_an_unknown_data_set(tmp_path):
    with pytest.raises(UserError, match="did you mean 'sample'"):
        validate("smaple", tmp_path / "out", tmp_path / "docs", ValidateSettings())


@pytest.mark.parametrize(
    "wrong",
    [{"min_row": 5}, {"max_null_share": 1.5}, {"min_label_rate": 0.95}, {"min_rows": 10**7}, {"stop_on": "info"}],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ValidateSettings(**wrong)


def test_telemetry_is_off():
    import os

    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
