"""Publishing, the definitions, the online store and its registry."""

import os
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.dataset.errors import UserError
from tests.feature_repo import logs

HISTORY = {"length": 2, "fields": ["genres", "price"], "title": "title"}


@pytest.fixture
def store_room(tmp_path, monkeypatch):
    """The module under test, with its state in a folder of its own."""
    from feature_repo import store  # Feast takes ten seconds to import: only where it is used

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TANDEM_FEAST", raising=False)
    return store


@pytest.fixture
def validated(tmp_path):
    """Two users, two items; user 'a' has a later row, item 'b' one from the far future."""
    log = logs.impression_table([("a", "a", 1, 1), ("a", "b", 2, 1), ("a", "a", 3, 1), ("b", "a", 4, 0)])
    users, items = logs.one_row_tables()
    later = {"event_timestamp": logs.moment(5), "created_timestamp": logs.moment(5)}
    users = _with(users, {"user_id": "a", **later, "country_y": None, "tags": []})
    users = _with(users, {"user_id": "b", **later, "country_y": "zoë", "tags": None})
    future = {"event_timestamp": logs.moment(10**10), "created_timestamp": logs.moment(10**10)}
    items = _with(items, {"item_id": "b", **later, "title": "B", "price": 0.2, "genres": ["p", "q"]})
    items = _with(items, {"item_id": "b", **future, "title": "not yet", "price": None, "genres": None})
    return logs.write(tmp_path / "validated", logs.make_spec(), log, users, items)


def _with(table, row):
    return pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])


def test_materialised_rows_equal_the_tables(store_room, validated):
    spec = logs.make_spec(history=HISTORY)
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    assert logs.materialised(store, spec) == {"user_profile": 2, "item_profile": 2, "user_history": 2}

    users = store_room.online_rows(store, spec, "user", ["a", "nobody", "b"])
    assert users["user_id"] == ["a", "nobody", "b"]
    assert users["country_y"] == [None, None, "zoë"], "the latest row counts, with its missing values"
    assert [value or [] for value in users["tags"]] == [[], [], []]
    assert users["history_item_id"] == [["b", "a"], None, ["a"]]
    assert users["history_genres"] == [["", "q"], None, ["q"]], "item b had no row yet when it was clicked"
    assert users["history_label"] == [[1, 1], None, [0]]
    since_1970 = [int(logs.moment(second).timestamp()) * 1_000_000 for second in (2, 3, 4)]
    assert users["history_timestamp"] == [since_1970[:2], None, since_1970[2:]]
    assert [titles or [] for titles in users["liked_title"]] == [["", "A film"], [], []]
    items = store_room.online_rows(store, spec, "item", ["b", "a"])
    assert items == {
        "item_id": ["b", "a"],
        "title": ["B", "A film"],
        "price": [0.2, 0.1],
        "genres": [["p", "q"], ["q"]],
    }, "values from the future are not served"
    assert store_room.online_rows(store, spec, "item", [])["title"] == []


def test_materialising_again_changes_nothing_and_takes_new_values(store_room, validated):
    spec = logs.make_spec()
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    counts = logs.materialised(store, spec, end=logs.moment(2))
    assert counts == {"user_profile": 1, "item_profile": 1}
    assert store_room.online_rows(store, spec, "user", ["a", "b"])["country_y"] == ["x", None]
    assert logs.materialised(store, spec, end=logs.moment(10**9)) == logs.materialised(store, spec)
    assert store_room.online_rows(store, spec, "user", ["a", "b"])["country_y"] == [None, "zoë"]


def test_end_in_the_future_becomes_now(store_room, validated):
    spec = logs.make_spec()
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    logs.materialised(store, spec, end=logs.moment(10**10))
    assert store_room.online_rows(store, spec, "item", ["b"])["title"] == ["B"]
    until = max(end for view in store.list_feature_views() for _, end in view.materialization_intervals)
    assert until < logs.moment(10**10)


def test_a_value_that_did_not_arrive_is_noticed(store_room, validated, tmp_path):
    spec = logs.make_spec()
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    with sqlite3.connect(tmp_path / "home" / "feast" / "online.db") as database:
        database.execute(
            "CREATE TRIGGER lose AFTER INSERT ON test_log_item_profile BEGIN DELETE FROM test_log_item_profile"
            " WHERE feature_name = 'price'; END"
        )
    with pytest.raises(RuntimeError, match=r"item_profile\.price of item_id '.' is None, but the table says 0\.[12]"):
        logs.materialised(store, spec)


def test_views_that_the_spec_no_longer_has_are_removed(store_room, validated):
    store = store_room.open_store(logs.make_spec())
    store_room.apply(store, logs.make_spec(history=HISTORY), validated)
    assert {view.name for view in store.list_feature_views()} == {"user_profile", "item_profile", "user_history"}
    store_room.apply(store, logs.make_spec(), validated)
    assert {view.name for view in store.list_feature_views()} == {"user_profile", "item_profile"}
    assert [service.name for service in store.list_feature_services()] == ["ctr_test_log"]


def test_the_context_of_a_request_is_in_the_registry_by_name_alone(store_room, validated):
    from feature_repo.context import IMPORT

    spec = logs.make_spec(moment=["hour", "weekday"])
    store = store_room.open_store(spec)
    definitions = store_room.apply(store, spec, validated)
    assert definitions.features[-2:] == ("request_hour", "request_weekday")
    (view,) = store.registry.proto().on_demand_feature_views
    function = view.spec.feature_transformation.user_defined_function
    assert (function.name, function.body, function.body_text) == ("request_context", b"", IMPORT)
    store_room.apply(store_room.open_store(spec), spec, validated)

    row = {"event_timestamp": logs.moment(3 * 3600)}
    features = ["request_context:request_hour", "request_context:request_weekday"]
    found = store.get_online_features(features, [row]).to_dict()
    assert (found["request_hour"], found["request_weekday"]) == (["3"], ["2"]), "Feast's own answer"

    plain = logs.make_spec()
    store_room.apply(store, plain, validated)
    assert not store.registry.proto().on_demand_feature_views


BOMB = "from pathlib import Path\nPath({!r}).touch()\ndef request_context(request):\n    return request"


@pytest.mark.parametrize("kind", ["on_demand_feature_views", "feature_views"])
def test_a_registry_that_holds_code_is_refused_and_served_without_running_it(store_room, validated, tmp_path, kind):
    from feast import FeatureStore
    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.protos.feast.core.Transformation_pb2 import UserDefinedFunctionV2

    from serving.online import OnlineStore

    spec = logs.make_spec(moment=["hour"])
    store = store_room.open_store(spec)
    digest = store_room.apply(store, spec, validated).digest
    config, went_off = tmp_path / "home" / "feast" / "test_log.yaml", tmp_path / "went-off"
    path = config.with_name("registry.db")
    registry = Registry.FromString(path.read_bytes())
    (view, *_) = getattr(registry, kind)
    bomb = UserDefinedFunctionV2(name="request_context", body_text=BOMB.format(str(went_off)), mode="python")
    view.spec.feature_transformation.user_defined_function.CopyFrom(bomb)
    path.write_bytes(registry.SerializeToString())

    assert OnlineStore(config, "ctr_test_log", 10).registered(refresh=True).digest == digest
    with pytest.raises(UserError, match=f"view '{view.spec.name}' holds code, and Tandem writes none"):
        store_room.open_store(spec)
    with pytest.raises(UserError, match="holds code"):
        store_room.apply(store, spec, validated)
    assert not went_off.exists()
    FeatureStore(fs_yaml_file=config).registry.get_any_feature_view(view.spec.name, "test_log")
    assert went_off.exists(), "Feast itself runs it"


def test_publishing_is_idempotent_and_named_by_content(store_room, validated, tmp_path):
    spec = logs.make_spec()
    folder = store_room.publish(spec, validated)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert store_room.publish(spec, validated) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert set(before) == {"users.parquet", "items.parquet"}
    assert pq.read_schema(folder / "users.parquet").field("event_timestamp").type == logs.MOMENT

    users = pq.read_table(validated / "users.parquet")
    pq.write_table(users.slice(1), validated / "users.parquet")
    changed = store_room.publish(spec, validated)
    assert changed != folder and folder.is_dir()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")], "no drafts are left"


def test_nanoseconds_become_microseconds(store_room, validated):
    items = pq.read_table(validated / "items.parquet").slice(0, 2)
    place = items.column_names.index("event_timestamp")
    items = items.set_column(place, "event_timestamp", items["event_timestamp"].cast(pa.timestamp("ns", tz="UTC")))
    pq.write_table(items, validated / "items.parquet")
    folder = store_room.publish(logs.make_spec(), validated)
    published = pq.read_table(folder / "items.parquet")
    assert published.schema.field("event_timestamp").type == logs.MOMENT
    assert published["event_timestamp"].to_pylist() == [logs.BASE, logs.moment(5)]


def test_a_missing_table_is_named(store_room, validated):
    (validated / "items.parquet").unlink()
    with pytest.raises(UserError, match=r"items\.parquet: no such file; give the folder that the validate step wrote"):
        store_room.publish(logs.make_spec(), validated)


def test_hash_of_the_features_follows_their_meaning_only(store_room):
    from feature_repo.definitions import build, feature_service_hash

    spec = logs.make_spec()
    assert feature_service_hash(spec) == build(spec, Path("/elsewhere")).digest
    hashes = {
        feature_service_hash(spec),
        feature_service_hash(logs.make_spec(created=False)),
        feature_service_hash(logs.make_spec(history=HISTORY)),
        feature_service_hash(logs.make_spec(history=HISTORY | {"length": 3})),
        feature_service_hash(logs.make_spec(moment=["hour"])),
        feature_service_hash(logs.make_spec(moment=["hour", "weekday"])),
        feature_service_hash(logs.make_spec(ttl=timedelta(days=1))),
    }
    assert len(hashes) == 7


def test_a_side_without_fields_has_no_view(store_room):
    from feature_repo.definitions import build

    fields = [{"name": "item_id", "side": "item", "kind": "id"}, {"name": "tags", "side": "user", "kind": "multi"}]
    definitions = build(logs.make_spec(fields=fields), Path())
    assert [view.name for view in definitions.views] == ["user_profile"]
    assert definitions.features == ("tags",)
    assert [entity.join_key for entity in definitions.entities] == ["user_id", "item_id"]


def test_two_projects_applied_at_once_are_both_kept(store_room, validated, tmp_path):
    """Feast alone reads, changes and rewrites the registry in place: the last writer would win."""
    specs = [logs.make_spec(name=f"log-{number}") for number in range(4)]
    stores = [store_room.open_store(spec) for spec in specs]
    faults = []

    def work(spec, store):
        try:
            for _ in range(3):
                store_room.apply(store, spec, validated)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(specs, stores, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    fresh = [store_room.open_store(spec) for spec in specs]
    assert [len(store.list_feature_views()) for store in fresh] == [2, 2, 2, 2]


READER = """
import sys
for name in ("duckdb", "ibis", "feature_repo"):
    sys.modules[name] = None
from pathlib import Path
from feast import FeatureStore
store = FeatureStore(fs_yaml_file=Path(sys.argv[1]))
print(store.get_online_features(["item_profile:title"], [{"item_id": "b"}]).to_dict()["title"])
"""


def test_the_online_store_opens_without_duckdb_and_without_us(store_room, validated, tmp_path):
    spec = logs.make_spec()
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    logs.materialised(store, spec)
    feast = tmp_path / "home" / "feast"
    assert (feast / "test_log.yaml").read_text() == (feast / "feature_store.yaml").read_text()
    command = [sys.executable, "-c", READER, str(feast / "feature_store.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env={**os.environ})
    assert done.stdout.strip() == "['B']", done.stderr


def test_environments_are_filled_in(monkeypatch, tmp_path):
    from feature_repo.environment import render

    spec = logs.make_spec()
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    assert render(spec)["online_store"]["path"] == f"{tmp_path}/feast/online.db"
    monkeypatch.setenv("TANDEM_FEAST", "team")
    monkeypatch.delenv("TANDEM_FEAST_REGISTRY", raising=False)
    with pytest.raises(UserError, match=r"team\.yaml needs the environment variable TANDEM_FEAST_REGISTRY"):
        render(spec)
    monkeypatch.setenv("TANDEM_FEAST_REGISTRY", "postgresql+psycopg://u:p#${x}@db/feast")
    monkeypatch.setenv("TANDEM_FEAST_REDIS", "redis:6379")
    team = render(spec)
    assert team["registry"]["path"] == "postgresql+psycopg://u:p#${x}@db/feast", "values are not filled in again"
    assert (team["project"], team["online_store"]["type"]) == ("test_log", "redis")


def test_a_reader_at_scale_needs_no_spark(monkeypatch, tmp_path):
    from feature_repo.environment import write_config

    monkeypatch.setenv("TANDEM_FEAST", "scale")
    write_config(logs.make_spec(), tmp_path / "reader.yaml")
    told = yaml.safe_load((tmp_path / "reader.yaml").read_text())
    assert told["offline_store"] == "feature_repo.spark.SparkAsofOfflineStore", (
        "named, so imported only when it is used"
    )
    assert told["registry"]["path"] == "${TANDEM_FEAST_REGISTRY}"


def test_what_spark_lacks_is_said(monkeypatch, tmp_path):
    from feature_repo import environment

    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"offline_store": {"type": environment.SPARK}}))
    monkeypatch.setenv("TANDEM_FEAST", str(own))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match=r"mine\.yaml joins on Spark, and (PySpark is not installed|there is no Java)"):
        environment.render(logs.make_spec())


def test_an_environment_of_ones_own_is_a_file(monkeypatch, tmp_path):
    from feature_repo.environment import render

    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"project": "${PROJECT}", "list": ["${MINE:-a}", 3]}))
    monkeypatch.setenv("TANDEM_FEAST", str(own))
    assert render(logs.make_spec()) == {"project": "test_log", "list": ["a", 3]}
    monkeypatch.setenv("TANDEM_FEAST", "laptpo")
    with pytest.raises(UserError, match="TANDEM_FEAST=laptpo: no such environment; write laptop, scale, team, or"):
        render(logs.make_spec())
