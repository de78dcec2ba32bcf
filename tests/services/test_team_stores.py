"""The team's stores for real: registry in PostgreSQL, online store in Redis, joins in DuckDB."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given

from tests.feature_repo import logs
from tests.feature_repo.test_materialise import (
    shop,
    test_only_what_has_changed_is_written,
    test_values_come_into_force_without_a_new_table,
)
from tests.feature_repo.test_point_in_time import few
from tests.feature_repo.test_store import (
    HISTORY,
    test_end_in_the_future_becomes_now,
    test_materialised_rows_equal_the_tables,
    test_materialising_again_changes_nothing_and_takes_new_values,
    test_views_that_the_spec_no_longer_has_are_removed,
    validated,
)
from tests.services.servers import postgres, redis

pytestmark = [pytest.mark.services, pytest.mark.slow]

__all__ = [
    "shop",
    "test_end_in_the_future_becomes_now",
    "test_materialised_rows_equal_the_tables",
    "test_materialising_again_changes_nothing_and_takes_new_values",
    "test_only_what_has_changed_is_written",
    "test_values_come_into_force_without_a_new_table",
    "test_views_that_the_spec_no_longer_has_are_removed",
    "validated",
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of the two servers, as the environment names them."""
    folder = tmp_path_factory.mktemp("team")
    with postgres() as registry, redis(folder / "redis") as online:
        yield {"TANDEM_FEAST": "team", "TANDEM_FEAST_REGISTRY": registry, "TANDEM_FEAST_REDIS": online}


@pytest.fixture
def store_room(servers, tmp_path, monkeypatch):
    """The module under test with empty servers."""
    import redis as client
    from sqlalchemy import create_engine, text

    from feature_repo import store

    host, port = servers["TANDEM_FEAST_REDIS"].split(":")
    client.Redis(host, int(port)).flushall()
    with create_engine(servers["TANDEM_FEAST_REGISTRY"]).begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    for name, value in (servers | {"TANDEM_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def room(store_room):
    """What materialises, with empty servers: Feast's Redis store would pass over a corrected value."""
    from feature_repo import materialise

    return materialise


@few
@given(log=logs.impressions(), users=logs.tables("users"), items=logs.tables("items"))
def test_the_shared_store_joins_as_the_naive_join_does(store_room, tmp_path, log, users, items):
    """Definitions as they come back from PostgreSQL, not as they were built here."""
    spec = logs.make_spec()
    folder = logs.write(Path(tempfile.mkdtemp(dir=tmp_path)), spec, log, users, items)
    store = store_room.open_store(spec)
    definitions = store_room.apply(store, spec, folder)
    service = store_room.open_store(spec).get_feature_service(definitions.service.name)
    rows = f"SELECT * FROM read_parquet('{folder / 'impressions.parquet'}')"
    table = (
        store.get_historical_features(rows, service, filter_by_created_timestamp=True)
        .to_arrow()
        .sort_by("impression_id")
    )
    columns = list(logs.naive_join(log, users, items, True)[0])
    assert table.select(columns).to_pylist() == logs.naive_join(log, users, items, True)


APPLY = """
import sys
from pathlib import Path
from feature_repo import store
from tests.feature_repo import logs
validated, *names = map(str, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    spec = logs.make_spec(name=name)
    opened = store.open_store(spec)
    store.apply(opened, spec, Path(validated))
    assert logs.materialised(opened, spec) == {"user_profile": 2, "item_profile": 2}
"""


def test_processes_that_apply_at_once_lose_nothing(store_room, validated, tmp_path):
    """They even make the registry's tables at once; without a lock Feast fails there."""
    projects = [["same", "left", "same"], ["same", "right", "same"]]
    command = [sys.executable, "-W", "ignore", "-c", APPLY, str(validated)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, *names], **pipes) for names in projects]
    assert [process.stdout.readline() for process in started] == ["ready\n", "ready\n"]
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    for name in ("same", "left", "right"):
        spec = logs.make_spec(name=name)
        store = store_room.open_store(spec)
        assert {view.name for view in store.list_feature_views()} == {"item_profile", "user_profile"}
        assert store_room.online_rows(store, spec, "item", ["b"])["title"] == ["B"]


READER = """
import sys
for name in ("duckdb", "ibis", "feature_repo"):
    sys.modules[name] = None
from pathlib import Path
from feast import FeatureStore
store = FeatureStore(fs_yaml_file=Path(sys.argv[1]))
print(store.get_online_features(["user_history:history_item_id"], [{"user_id": "a"}]).to_dict()["history_item_id"])
"""


def test_a_reader_takes_the_addresses_from_its_environment(store_room, validated, tmp_path, servers):
    spec = logs.make_spec(history=HISTORY)
    store = store_room.open_store(spec)
    store_room.apply(store, spec, validated)
    logs.materialised(store, spec)
    config = tmp_path / "home" / "feast" / "test_log.yaml"
    assert servers["TANDEM_FEAST_REGISTRY"] not in config.read_text(), "addresses hold passwords"
    command = [sys.executable, "-W", "ignore", "-c", READER, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, env={**os.environ})
    assert done.stdout.strip() == "[['b', 'a']]", done.stderr
