"""Online vectors equal the offline point-in-time vectors as of now, feature by feature, bit for bit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from components.dataset.moment import request_context
from components.monitor.skew import offline, same
from serving.features import OnlineFeatures
from serving.settings import ServeSettings
from tests.feature_repo import logs

COUNT = 1000
NUMBERS = [0.1 + 0.2, -0.0, 0.0, 5e-324, -1.7976931348623157e308, 1 / 3, 1e16 + 2, None]
WORDS = ["x", "zoë", "😀", "a|b", "  ", "\t", "0", "NaN", "ﬁ", None]
LISTS = [["p"], ["q", "p"], ["p", "p", "zoë"], [], None, [""]]


def draws(values, count, seed):
    places = np.random.default_rng(seed).integers(0, len(values), count)
    return [values[place] for place in places]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[tuple]:
    """A data set of a thousand users and items, some with several rows in time; materialised."""
    from feature_repo import store

    folder = tmp_path_factory.mktemp("skew")
    users, items = [f"u{n}" for n in range(COUNT)], [f"i{n}" for n in range(COUNT)]
    spec = logs.make_spec(history={"length": 3, "fields": ["genres", "price"]}, moment=["hour", "weekday"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder / "home"))
        patch.delenv("TANDEM_FEAST", raising=False)
        path = logs.write(folder / "validated", spec, impressions(users, items), *profiles(users, items))
        opened = store.open_store(spec)
        store.apply(opened, spec, path)
        try:
            from feature_repo.materialise import materialise
        except ImportError:
            materialise = store.materialise
        materialise(opened, spec)
        yield spec, folder / "home" / "feast" / f"{spec.identifier}.yaml", users, items


def impressions(users, items):
    draw = np.random.default_rng(1)
    rows = [
        (users[draw.integers(COUNT)], items[draw.integers(COUNT)], int(draw.integers(1000)), int(draw.integers(2)))
        for _ in range(5000)
    ]
    return logs.impression_table(rows)


def profiles(users, items):
    """Two thirds of the keys have a second row later; the last ten have none at all."""
    made = []
    for number, (name, keys) in enumerate((("users", users), ("items", items))):
        ids = [*keys[:-10], *keys[: 2 * COUNT // 3]]
        moments = [logs.moment(place if place < COUNT - 10 else 5000 + place) for place in range(len(ids))]
        columns = {logs.KEY_OF[name]: ids, "event_timestamp": moments, "created_timestamp": moments}
        kinds = {pa.string(): WORDS, pa.float64(): NUMBERS, pa.list_(pa.string()): LISTS}
        for place, (field, kind) in enumerate(logs.TABLES[name]):
            columns[field] = draws(kinds[kind], len(ids), 10 * number + place)
        types = [(logs.KEY_OF[name], pa.string()), ("event_timestamp", logs.MOMENT), ("created_timestamp", logs.MOMENT)]
        made.append(pa.table(columns, schema=pa.schema([*types, *logs.TABLES[name]])))
    return made


def test_a_thousand_users_and_items_have_the_same_features_online_and_offline(world):
    from serving.online import OnlineStore

    spec, config, users, items = world
    features = OnlineFeatures(OnlineStore(config, f"ctr_{spec.identifier}", 10), ServeSettings(feature_deadline=60))
    now = datetime.now(UTC)
    joined = offline(spec, pa.array(users), pa.array(items), pa.array([now] * COUNT, logs.MOMENT))
    features.want(joined.views)
    gathered = asyncio.run(features.gather(users, items))
    context = {name: values[0] for name, values in request_context({"event_timestamp": [now]}).items()}
    names = set(joined.views)
    assert {"country_y", "tags", "title", "price", "genres", "history_item_id", "history_price"} | set(context) <= names
    compared = 0
    for place in range(COUNT):
        online = {**gathered.users[users[place]], **gathered.items[items[place]], **context}
        for name in names:
            known, expected = online.get(name), joined.table[name][place].as_py()
            assert same(known, expected), f"{name} of {users[place]}, {items[place]}: {known!r}, but {expected!r}"
            compared += known not in (None, [])
    assert compared > 6 * COUNT
    assert gathered.degraded == {("user_profile", "missing"): 10, ("item_profile", "missing"): 10}
    prices = [row["price"] for row in gathered.items.values() if row.get("price") == 0]
    assert {math.copysign(1, price) for price in prices} == {-1.0, 1.0}, "the comparison had signed zeros to tell apart"


@pytest.mark.parametrize("hours", [23, 25])
def test_rows_that_the_data_set_lets_expire_are_stale_when_the_join_leaves_them_out(tmp_path, monkeypatch, hours):
    from feature_repo import store
    from serving.online import OnlineStore

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TANDEM_FEAST", raising=False)
    spec, now = logs.make_spec(ttl=timedelta(days=1)), logs.BASE + timedelta(hours=hours)
    rows = logs.impression_table([("a", "a", 1, 1)])
    opened = store.open_store(spec)
    store.apply(opened, spec, logs.write(tmp_path / "validated", spec, rows, *logs.one_row_tables()))
    logs.materialised(opened, spec)
    source = OnlineStore(tmp_path / "home" / "feast" / f"{spec.identifier}.yaml", f"ctr_{spec.identifier}", 10)
    features = OnlineFeatures(source, ServeSettings(feature_deadline=60), now=now.timestamp)
    features.want(["country_y", "title"])
    gathered = asyncio.run(features.gather(["a"], ["a"]))
    joined = offline(spec, pa.array(["a"]), pa.array(["a"]), pa.array([now], logs.MOMENT)).table
    if hours < 24:
        assert (gathered.users, gathered.items) == ({"a": {"country_y": "x"}}, {"a": {"title": "A film"}})
        assert (joined["country_y"][0].as_py(), joined["title"][0].as_py()) == ("x", "A film")
        assert not gathered.degraded
    else:
        assert (gathered.users, gathered.items) == ({"a": {}}, {"a": {}})
        assert (joined["country_y"][0].as_py(), joined["title"][0].as_py()) == (None, None)
        assert gathered.degraded == {("user_profile", "stale"): 1, ("item_profile", "stale"): 1}


def test_the_served_features_are_known_to_be_those_of_the_definitions(world):
    """The digest that the service computes from the registry is the one that training wrote down."""
    from feature_repo.definitions import feature_service_hash
    from serving.online import OnlineStore

    spec, config, *_ = world
    assert OnlineStore(config, f"ctr_{spec.identifier}", 10).registered().digest == feature_service_hash(spec)
