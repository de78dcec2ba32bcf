"""The stores for scale for real: joins and aggregates on Spark (local mode), PostgreSQL registry, Redis."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from components.dataset.training_set import TrainingSet
from tests.benchmarks import retrieval
from tests.feature_repo import logs
from tests.feature_repo.test_point_in_time import retrieved, see_activity, see_history
from tests.feature_repo.test_store import HISTORY, test_materialised_rows_equal_the_tables, validated
from tests.services.servers import needed, postgres, redis
from tests.services.test_team_stores import store_room

pytestmark = [pytest.mark.services, pytest.mark.slow]

__all__ = ["retrieved", "store_room", "test_materialised_rows_equal_the_tables", "validated"]

SPARK = {"TANDEM_SPARK_MASTER": "local[2]", "TANDEM_SPARK_PARTITIONS": "2", "TANDEM_SPARK_DRIVER_MEMORY": "1g"}
JVM = {
    # A test's queries are over before the second compiler is done with them.
    "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "PYSPARK_SUBMIT_ARGS": "--conf spark.driver.maxResultSize=1m pyspark-shell",
    "SPARK_LOCAL_IP": "127.0.0.1",
}


#: What Spark makes in the folder in which it is started, unless it is told otherwise.
LEFT_BEHIND = {"spark-warehouse", "metastore_db", "derby.log"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of the two servers, and one Spark for all tests of this module."""
    pyspark = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    needed("java")
    folder = tmp_path_factory.mktemp("scale")
    here = Path.cwd()
    before = set(here.iterdir())
    with postgres() as registry, redis(folder / "redis") as online, pytest.MonkeyPatch.context() as patch:
        for name, value in JVM.items():
            patch.setenv(name, value)
        yield {"TANDEM_FEAST": "scale", "TANDEM_FEAST_REGISTRY": registry, "TANDEM_FEAST_REDIS": online, **SPARK}
        if started := pyspark.SparkSession.getActiveSession():
            started.stop()
        assert not {path.name for path in set(here.iterdir()) - before} & LEFT_BEHIND


@pytest.fixture(autouse=True)
def at_scale(servers, monkeypatch):
    for name, value in servers.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("created", [True, False])
def test_profiles_equal_the_naive_join(retrieved, created):
    log, users, items = logs.crowd(1)
    if not created:
        # Without creation times a table has one row for each key and moment; the last one counts.
        users, items = (_once(table, key) for table, key in ((users, "user_id"), (items, "item_id")))
    table = retrieved(logs.make_spec(created=created), log, users, items)
    assert table.to_pylist() == logs.naive_join(log, users, items, created)


def test_expired_values_are_missing(retrieved):
    log, users, items = logs.crowd(2)
    ttl = timedelta(seconds=3)
    table = retrieved(logs.make_spec(ttl=ttl), log, users, items)
    expected = logs.naive_join(log, users, items, True, ttl)
    assert table.to_pylist() == expected
    assert expected != logs.naive_join(log, users, items, True), "some values have expired"


@pytest.mark.parametrize(("events", "delay"), [("all", None), ("positive", 8), ("per_label", 8)])
def test_history_equals_the_naive_one(retrieved, events, delay):
    log, users, items = logs.crowd(3, delay=delay)
    history = {"length": 4, "events": events, "fields": ["genres", "price"], "behaviour": ["page"], "title": "title"}
    spec = logs.make_spec(history=history, sources=_sources(delay))
    see_history(retrieved(spec, log, users, items), spec, log, items, True)


@pytest.mark.parametrize("delay", [None, 8])
def test_activity_equals_the_naive_one(retrieved, delay):
    log, users, items = logs.crowd(4, delay=delay)
    spec = logs.make_spec(activity={"windows": ["1s", "4s", "1h"]}, sources=_sources(delay))
    see_activity(retrieved(spec, log, users, items), spec, log)


def _sources(delay):
    sources = logs.make_spec().sources.model_dump()
    return sources if delay is None else sources | {"impressions": sources["impressions"] | {"created": "c"}}


def _once(table, key):
    rows = {(row[key], row["event_timestamp"]): row for row in table.to_pylist()}
    return pa.Table.from_pylist(list(rows.values()), schema=table.schema)


def test_the_shared_store_joins_a_frame_in_its_order(store_room, tmp_path):
    """Definitions as they come back from PostgreSQL; names of columns as Feast makes them long."""
    spec = logs.make_spec(moment=["hour", "weekday"])
    log, users, items = logs.crowd(5, rows=200)
    folder = logs.write(tmp_path / "validated", spec, log, users, items)
    store = store_room.open_store(spec)
    definitions = store_room.apply(store, spec, folder)
    service = store_room.open_store(spec).get_feature_service(definitions.service.name)
    options = {"full_feature_names": True, "filter_by_created_timestamp": True}
    frame = store.get_historical_features(log.to_pandas(), service, **options).to_df()
    expected = logs.naive_join(log, users, items, True)
    assert frame["impression_id"].tolist() == [row["impression_id"] for row in expected]
    context = zip(frame["request_context__request_hour"], frame["request_context__request_weekday"], strict=True)
    assert list(context) == logs.naive_context(log)
    countries = frame["user_profile__country_y"]
    assert countries.where(countries.notna(), None).tolist() == [row["country_y"] for row in expected]


def test_feast_materialises_by_itself(store_room, validated):
    """As `feast materialize` does, from Spark's files through Spark."""
    spec = logs.make_spec(history=HISTORY)
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    store.materialize(logs.BASE, logs.moment(60), feature_views=["user_history", "item_profile"])
    assert store_room.online_rows(store, spec, "item", ["b"])["title"] == ["B"]
    assert store_room.online_rows(store, spec, "user", ["a"])["history_item_id"] == [["b", "a"]]


def test_no_rows_come_to_the_driver(retrieved, tmp_path):
    """Spark stops a job whose result is larger than a megabyte: what it joins is far larger."""
    from feature_repo.asof import scan
    from feature_repo.engine import engine_of
    from feature_repo.environment import offline_store

    spec = logs.make_spec()
    log, users, items = logs.crowd(6)
    words = ["".join(map(str, range(row, row + 2000))) for row in range(log.num_rows)]
    log = log.set_column(log.column_names.index("page"), "page", pa.array(words))
    assert retrieved(spec, log, users, items)["page"].to_pylist() == words
    pq.write_table(log, tmp_path / "log.parquet")
    with pytest.raises(Exception, match="maxResultSize"):
        engine_of(offline_store(spec)).table(f"SELECT * FROM {scan(tmp_path / 'log.parquet')}")


@pytest.mark.parametrize("by", ["time", "hash"])
def test_the_retrieve_step_writes_the_same_training_set(tmp_path, monkeypatch, by):
    """Each part by Spark's own tasks, in the order in which DuckDB writes it."""
    from components.retrieve.step import retrieve

    retrieval.generate(tmp_path, rows=3000, users=300, items=100)
    shutil.rmtree(tmp_path / "spill", ignore_errors=True)
    spec = retrieval.SPEC | {
        "history": {"length": 5, "fields": ["category", "price"]},
        "activity": {"windows": ["1d", "7d"]},
        "moment": ["hour", "weekday"],
        "split": {"by": by},
    }
    (tmp_path / "generated.yaml").write_text(json.dumps(spec))
    meta = {}
    for environment in ("laptop", "scale"):
        monkeypatch.setenv("TANDEM_FEAST", environment)
        monkeypatch.setenv("TANDEM_HOME", str(tmp_path / environment))
        meta[environment] = retrieve(str(tmp_path / "generated.yaml"), tmp_path, tmp_path / f"{environment}-set")
    assert meta["scale"] == meta["laptop"]
    here, there = (TrainingSet.open(tmp_path / f"{name}-set") for name in ("laptop", "scale"))
    for part in ("train", "valid", "test"):
        assert there.table(part).equals(here.table(part)), part
        assert (there.path / f"{part}.parquet").is_dir() and (here.path / f"{part}.parquet").is_file()
        batches = list(there.batches(part, ["impression_id", "genres"], 100))
        assert pa.concat_tables(batches).equals(here.table(part, ["impression_id", "genres"])), part
    assert (tmp_path / "laptop-set/vocabulary.json").read_text() == (tmp_path / "scale-set/vocabulary.json").read_text()
    (published,) = (tmp_path / "scale" / "offline").glob("*/*/history.parquet")
    assert ds.dataset(published).count_rows() == 3000
