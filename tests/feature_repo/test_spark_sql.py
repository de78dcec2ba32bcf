"""Queries in Spark's dialect; that they mean the same is seen on Spark, in tests/services."""

from datetime import timedelta

import pytest

from feature_repo.asof import FeatureTable, asof_query
from feature_repo.spark_sql import to_spark


def profile(name, key):
    return FeatureTable(f"/data/{name}.parquet", {key: key}, [f"{name} a"], "event_timestamp", ttl=timedelta(days=1))


def test_one_window_for_all_tables_of_a_key():
    tables = [profile("users", "user_id"), profile("items", "item_id"), profile("visits", "user_id")]
    query = to_spark(asof_query("SELECT * FROM read_parquet('/data/log.parquet')", "event_timestamp", tables))
    assert query.count("WINDOW before AS") == 2
    assert "ASOF" not in query
    assert "parquet.`file:/data/visits.parquet`" in query
    assert "`visits a`" in query
    assert "INTERVAL '86400000000' MICROSECOND" in query


def test_an_index_beyond_the_end_is_null():
    assert to_spark("SELECT names[1] FROM t") == "SELECT GET(names, 0) FROM t"


@pytest.mark.parametrize("condition", ["l.k = r.k AND l.t > r.t", "l.k = r.k", "r.k = l.k AND l.t >= r.t"])
def test_other_asof_joins_are_refused(condition):
    with pytest.raises(ValueError, match="no ASOF left join on equal keys"):
        to_spark(f"SELECT l.*, r.x FROM l ASOF LEFT JOIN r ON {condition}")
