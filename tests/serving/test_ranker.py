"""What stands in for features that cannot be used: the defaults that came with the model."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from functools import partial

import pyarrow.dataset as ds
import pytest

from components.dataset.bundle import Bundle, write_manifest
from serving.features import OnlineFeatures
from serving.journal import PredictionLog
from serving.online import Registered, Stored, View
from serving.ranker import Ranker, RequestError, merged
from serving.scorer import Scorer
from serving.settings import ServeSettings
from tests.serving.stores import MemoryStore

ITEM = {"colours": ["red"], "price": 3.0}


@pytest.fixture
def bundle(shop, tmp_path):
    """The shop's bundle, as if its evaluation had found defaults that are better than nothing."""
    (registered,) = shop.glob("home/runs/first/artifacts/*/register/bundle")
    copy = tmp_path / "bundle"
    shutil.copytree(registered, copy)
    table = json.loads((copy / "degradation.json").read_text())
    for name, value in {"gender": "F", "colours": ["blue"], "price": 20.5}.items():
        table["defaults"][name] = {"default": "most_frequent", "value": value}
    table["defaults"]["device"] = {"default": "missing", "value": None}
    (copy / "degradation.json").write_text(json.dumps(table))
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, {key: value for key, value in manifest.items() if key != "files"})
    return Bundle.open(copy)


def scores(bundle, user, item):
    store = MemoryStore()
    views = (
        View("user_profile", "user", ("gender",), None, None),
        View("item_profile", "item", ("colours", "price"), None, None),
    )
    store.state = Registered(views, "one", None)
    store.rows = {"user_profile": {"c1": user and Stored(user, 0)}, "item_profile": {"s1": item and Stored(item, 0)}}
    ranker = Ranker(Scorer(bundle), OnlineFeatures(store, ServeSettings()), "1", max_candidates=2)
    answer = asyncio.run(ranker.rank("c1", ["s1"])).response()
    return answer.items[0].probability, [worse.model_dump() for worse in answer.degraded]


def test_defaults_stand_in_for_what_is_missing(bundle):
    assert scores(bundle, None, ITEM) == (
        scores(bundle, {"gender": "F"}, ITEM)[0],
        [{"view": "user_profile", "reason": "missing", "keys": 1}],
    )
    filled = scores(bundle, {"gender": "F"}, {"colours": ["blue"], "price": 20.5})
    assert scores(bundle, {"gender": "F"}, None)[0] == filled[0]
    assert scores(bundle, {"gender": "M"}, ITEM)[0] != scores(bundle, None, ITEM)[0]


def test_a_null_is_no_missing_feature(bundle):
    """A null in the store is one that training saw too; the default is for rows that could not be had."""
    probability, degraded = scores(bundle, {"gender": None}, ITEM)
    assert degraded == []
    assert probability != scores(bundle, None, ITEM)[0]


def ranker_of_nine(bundle, log):
    store = MemoryStore()
    store.state = Registered((View("item_profile", "item", ("colours", "price"), None, None),), "one", None)
    store.rows = {"item_profile": {f"s{n}": Stored({"colours": ["red"], "price": float(n)}, 0) for n in range(9)}}
    return Ranker(Scorer(bundle), OnlineFeatures(store, ServeSettings()), "1", max_candidates=20, journal=log)


def test_items_that_hold_still_are_ranked_and_logged_the_same(bundle, tmp_path):
    log = PredictionLog(tmp_path, share=1, seconds=60, megabytes=1)
    ranker = ranker_of_nine(bundle, log)
    items = ["s8", "s2", "s2", "s5"]
    answers = []
    for known in (False, True):
        found = ranker.scorer.known(items, ranker.features.items.clock(), ranker.features.items.epoch)
        assert (found is not None) == known
        answers.append(asyncio.run(ranker.rank("c1", items, top_k=3, request_id=str(int(known)) * 32)).response())
    assert answers[0].model_copy(update={"request_id": "1" * 32}) == answers[1]
    log.stop()
    rows = ds.dataset(log.folder, format="parquet").to_table().drop_columns(["at"]).to_pylist()
    first, second = ([{**row, "request_id": ""} for row in rows if row["request_id"][0] == said] for said in "01")
    assert first == second
    assert len(first) == 4


def test_pairs_of_two_models_come_back_in_the_order_asked(bundle):
    """As while a candidate is tried out: each pair by its user's model, what was left out counted once for all."""
    rankers = [ranker_of_nine(bundle, None) for _ in range(2)]
    for version, ranker in enumerate(rankers):
        ranker.version = str(version)
    users, items = [f"c{n}" for n in range(6)], ["s1", "none", "s2", "s3", "none", "s4"]
    of = [rankers[place % 2] for place in range(6)]
    answer = asyncio.run(merged(of, users, items, [{}] * 6))
    assert [pair[:3] for pair in answer.pairs] == list(zip(users, items, "010101", strict=True))
    assert [worse.model_dump() for worse in answer.stamp["degraded"]] == [
        {"view": "item_profile", "reason": "missing", "keys": 2}
    ]
    alone = asyncio.run(rankers[0].predict(users, items, [{}] * 6))
    assert [pair[3] for pair in answer.pairs] == pytest.approx([pair[3] for pair in alone.pairs], abs=1e-6)
    assert answer.response().pairs[1].cold == alone.response().pairs[1].cold


def test_a_service_may_allow_fewer_candidates(bundle):
    ranker = Ranker(Scorer(bundle), OnlineFeatures(MemoryStore(), ServeSettings()), "1", max_candidates=2)
    asyncio.run(ranker.rank("c1", ["s1", "s2"]))
    with pytest.raises(RequestError, match="item_ids: at most 2 are allowed, not 3"):
        asyncio.run(ranker.rank("c1", ["s1", "s2", "s3"]))
    with pytest.raises(RequestError, match="pairs: at most 2 are allowed, not 3"):
        asyncio.run(ranker.predict(["c1"] * 3, ["s1", "s2", "s3"], [{}] * 3))


@pytest.mark.parametrize("row_seconds", [1e-6, 1.0])
def test_the_event_loop_does_not_stand_still_for_a_slow_model(bundle, row_seconds):
    """Its call is in another thread then, and the same answer comes from there."""
    ranker = ranker_of_nine(bundle, None)
    expected = asyncio.run(ranker.rank("c1", ["s1", "s2"])).items
    ranker.scorer._row_seconds = ranker.scorer._item_seconds = row_seconds
    threads = []

    def noted(call, *given):
        threads.append(threading.get_ident())
        return call(*given)

    for name in ("rank", "meet", "probabilities"):
        setattr(ranker.scorer, name, partial(noted, getattr(ranker.scorer, name)))
    assert asyncio.run(ranker.rank("c1", ["s1", "s2"])).items == expected
    pairs = asyncio.run(ranker.predict(["c1"] * 2, ["s1", "s2"], [{}] * 2)).pairs
    assert [pair[3] for pair in pairs] == pytest.approx([score for _, score, _ in sorted(expected)], abs=1e-6)
    assert len(threads) == 2
    assert (threading.get_ident() in threads) == (row_seconds < 1)
