"""Features in every weather: read once, kept, renewed, and left out where they cannot be used."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from serving.features import ItemTable, OnlineFeatures
from serving.online import Stored, impatient
from serving.settings import ServeSettings
from tests.serving.stores import NOW, MemoryStore
from tests.serving.test_breaker import Clock

WANTED = ("gender", "city", "history_item_id", "price")


@pytest.fixture
def store():
    return MemoryStore()


def make_features(store, **settings):
    features = OnlineFeatures(store, ServeSettings(**settings), now=lambda: NOW)
    features.want(WANTED)
    return features


def gather(features, users, items):
    return asyncio.run(features.gather(users, items))


def test_each_key_is_read_once(store):
    features = make_features(store)
    gathered = gather(features, ["u1", "u1", "u1"], ["i1", "i2", "i1"])
    assert gathered.users == {"u1": {"gender": "F", "city": None}}
    assert gathered.items == {"i1": {"price": 1.0}, "i2": {"price": 2.0}}
    assert not gathered.degraded, "no history is how a new user looks"
    assert set(store.reads.values()) == {1}
    gather(features, ["u1"], ["i1", "i2"])
    assert store.reads["user_profile", "u1"] == 2, "users are read at every request"
    assert store.reads["item_profile", "i1"] == 1


def test_features_that_no_model_reads_are_not_read(store):
    features = OnlineFeatures(store, ServeSettings(), now=lambda: NOW)
    features.want(["price"])
    assert gather(features, ["u1"], ["i1"]).users == {"u1": {}}
    assert set(store.reads) == {("item_profile", "i1")}


def test_a_view_that_has_no_row_is_missing_and_a_null_in_a_row_is_a_value(store):
    gathered = gather(make_features(store), ["nobody"], ["i1", "nothing", "none"])
    assert gathered.users == {"nobody": {}}
    assert gathered.items == {"i1": {"price": 1.0}, "nothing": {}, "none": {}}
    assert gathered.degraded == {("user_profile", "missing"): 1, ("item_profile", "missing"): 2}


def test_age_is_judged_by_the_event(store):
    gathered = gather(make_features(store), [], ["i99", "i100", "i101", "i150"])
    assert gathered.items == {"i99": {"price": 99.0}, "i100": {"price": 100.0}, "i101": {}, "i150": {}}
    assert gathered.degraded == {("item_profile", "stale"): 2}


def test_values_from_the_future_have_not_happened_yet(store):
    for seconds, key in ((30, "soon"), (61, "later")):
        store.rows["item_profile"][key] = Stored({"price": 1.0, "title": "x"}, NOW + seconds)
    gathered = gather(make_features(store), [], ["soon", "later"])
    assert gathered.items == {"soon": {"price": 1.0}, "later": {}}
    assert gathered.degraded == {("item_profile", "future"): 1}


@pytest.mark.parametrize("direct", [True, False])
def test_a_late_answer_is_not_waited_for_nor_a_broken_store_asked_for_ever(store, direct):
    store.direct = direct
    features = make_features(store, feature_deadline=0.05, breaker_failures=2, breaker_pause=60)
    store.seconds = 5
    began = time.monotonic()

    async def late():
        found = await features.gather(["u1"], [])
        return found, time.monotonic() - began

    found, seconds = asyncio.run(late())
    assert seconds < 4
    assert store.given_up == 1
    assert (found.users, found.degraded["user_profile", "unreachable"]) == ({"u1": {}}, 1)
    store.seconds, store.broken = 0, True
    for _ in range(5):
        assert gather(features, ["u1"], []).degraded["user_profile", "unreachable"] == 1
    assert features.breaker.open
    assert store.reads["user_profile", "u1"] == 2


def test_a_request_that_is_cancelled_says_nothing_of_the_store(store):
    """Its caller has gone; the connection and the breaker are those of the others too."""
    features = make_features(store, breaker_failures=1)
    store.seconds = 0.1

    async def left():
        request = asyncio.ensure_future(features.gather(["u1"], []))
        while not store.reads:
            await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return await features.gather(["u1"], [])

    assert not asyncio.run(left()).degraded
    assert (store.given_up, features.breaker.open) == (0, False)


@pytest.mark.parametrize("users", [["u1"], ["nobody"], ["u2", "nobody", "u1", "u2"], []])
def test_a_store_that_needs_no_thread_gives_the_same(store, users):
    items = ["i1", "i150", "none", "i99"]
    store.rows["user_history"]["u2"] = Stored({"history_item_id": ["i1"]}, NOW)
    found = []
    for store.direct in (True, False):
        found.append([gather(make_features(store), users, asked) for asked in (items, [])])
    for direct, threaded in zip(*found, strict=True):
        assert (direct.users, direct.items, direct.degraded) == (threaded.users, threaded.items, threaded.degraded)


def test_a_row_that_holds_still_says_until_when(store):
    clock = Clock()
    features = make_features(store, item_age=10)
    features.items.clock = clock
    first = gather(features, [], ["i1", "i95", "i150", "none"])
    assert first.until == {"i1": 10, "i95": 5}, "the age of the table, or what is left of the view's"
    clock.now = 4
    again = gather(features, [], ["i1", "i95"])
    assert again.until["i1"] == 10
    assert again.items["i1"] is first.items["i1"]
    clock.now = 11
    assert gather(features, [], ["i1"]).until == {}, "an old row is asked for each time, so that it is renewed"
    features.renew(10)
    assert gather(features, [], ["i1"]).until == {"i1": 21}
    assert first.epoch == again.epoch
    features.items.expire()
    expired = gather(features, [], ["i1"])
    assert (expired.until, expired.epoch) == ({}, first.epoch + 1)


def test_values_grow_stale_in_the_table_too(store):
    now = NOW
    features = OnlineFeatures(store, ServeSettings(), now=lambda: now)
    features.want(WANTED)
    assert not gather(features, [], ["i50"]).degraded
    now += 51
    assert gather(features, [], ["i50"]).degraded == {("item_profile", "stale"): 1}
    assert store.reads["item_profile", "i50"] == 1


def test_the_age_of_the_data_is_that_of_the_newest_row_that_has_happened(store):
    """Undated rows, of 1970, have none; a row of the future is no news. What is read behind the requests counts too."""
    now = NOW
    features = OnlineFeatures(store, ServeSettings(item_age=10), now=lambda: now)
    features.items.clock = lambda: now
    features.want(WANTED)
    assert features.data_age() == {}
    store.rows["item_profile"]["soon"] = Stored({"price": 1.0, "title": "x"}, NOW + 5000)
    store.rows["user_history"]["u1"] = Stored({"history_item_id": ["i1"]}, NOW - 70)
    gather(features, ["u1"], ["i30", "i20", "i40", "soon"])
    assert features.data_age() == {"user_history": 70, "item_profile": 20}
    now += 15
    store.rows["item_profile"]["i40"] = Stored({"price": 1.0, "title": "x"}, NOW + 12)
    gather(features, [], ["i40"])
    assert features.data_age()["item_profile"] == 35
    features.renew(10)
    assert features.data_age() == {"user_history": 85, "item_profile": 3}


def test_ids_that_are_made_up_are_not_kept(store):
    features = make_features(store)
    gather(features, [], ["i1"])
    gather(features, [], [f"made-up-{number}" for number in range(1000)])
    assert len(features.items) == 1


def test_what_comes_too_late_is_left_out_by_view(store):
    store.seconds = 0.5
    gathered = gather(make_features(store, feature_deadline=0.05), ["u1"], ["i1"])
    assert gathered.users == {"u1": {}}
    assert gathered.degraded == {
        ("user_profile", "unreachable"): 1,
        ("user_history", "unreachable"): 1,
        ("item_profile", "unreachable"): 1,
    }


def test_a_broken_store_is_left_alone_and_found_again(store):
    features = make_features(store, breaker_failures=3, breaker_pause=0.1)
    store.broken = True
    for _ in range(10):
        assert gather(features, ["u1"], []).degraded["user_profile", "unreachable"] == 1
    assert store.reads["user_profile", "u1"] == 3
    store.broken = False
    time.sleep(0.15)
    assert not gather(features, ["u1"], []).degraded
    assert not features.breaker.open


def test_kept_items_outlive_the_store_even_when_they_are_old(store):
    features = make_features(store)
    gather(features, ["u1"], ["i1"])
    features.items.clock = lambda: time.monotonic() + 10_000
    store.broken = True
    gathered = gather(features, [], ["i1"])
    assert gathered.items == {"i1": {"price": 1.0}}
    assert not gathered.degraded


def test_an_old_item_is_served_once_more_and_renewed_behind_the_request(store):
    clock = Clock()
    features = make_features(store, item_age=10)
    features.items.clock = clock
    gather(features, [], ["i1", "i2"])
    store.rows["item_profile"]["i1"] = Stored({"price": 7.0, "title": "x"}, NOW)
    del store.rows["item_profile"]["i2"]
    clock.now = 11
    assert gather(features, [], ["i1"]).items == {"i1": {"price": 1.0}}
    assert store.reads["item_profile", "i1"] == 1, "not inside the request"
    assert features.renew(10) == 1
    assert gather(features, [], ["i1"]).items == {"i1": {"price": 7.0}}
    gather(features, [], ["i2"])
    features.renew(10)
    assert gather(features, [], ["i2"]).items == {"i2": {}}, "an item that the store dropped is dropped here"
    clock.now = 100
    assert gather(features, [], ["i1"]).items == {"i1": {"price": 7.0}}
    assert store.reads["item_profile", "i1"] == 3, "twice as old as allowed: read inside the request"


def test_a_materialisation_makes_every_item_old(store):
    features = make_features(store)
    gather(features, [], ["i1"])
    features.look_at_registry()
    gather(features, [], ["i1"])
    assert features.renew(10) == 0
    store.state = replace(store.state, materialised=datetime.now(UTC))
    features.look_at_registry()
    gather(features, [], ["i1"])
    assert features.renew(10) == 1


def test_the_table_holds_what_it_may_and_forgets_what_was_asked_for_longest_ago():
    table = ItemTable(capacity=2, age=10)
    for key in ("a", "b"):
        table.keep(key, {})
    table.held(["a"])
    table.keep("c", {})
    assert set(table.held(["a", "b", "c"]).fresh) == {"a", "c"}


def test_redis_is_told_not_to_wait():
    assert (
        impatient("h:1,password=x", 0.25) == "h:1,password=x,socket_timeout=0.25,socket_connect_timeout=0.25,retry=null"
    )
    assert impatient("h:1,socket_timeout=9", 0.25).count("socket_timeout=") == 1
