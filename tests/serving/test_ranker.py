"""What stands in for features that cannot be used: the defaults that came with the model."""

from __future__ import annotations

import asyncio
import json
import shutil

import pyarrow.dataset as ds
import pytest

from components.dataset.bundle import Bundle, write_manifest
from serving.features import OnlineFeatures
from serving.journal import PredictionLog
from serving.online import Registered, Stored, View
from serving.ranker import Ranker, RequestError
from serving.schemas import RankRequest
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
    answer = ranker.rank(RankRequest(user_id="c1", item_ids=["s1"]))
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


@pytest.mark.parametrize("known", [False, True])
def test_the_event_loop_ranks_and_logs_the_same(bundle, tmp_path, known):
    store = MemoryStore()
    store.state = Registered((View("item_profile", "item", ("colours", "price"), None, None),), "one", None)
    store.rows = {"item_profile": {f"s{n}": Stored({"colours": ["red"], "price": float(n)}, 0) for n in range(9)}}
    log = PredictionLog(tmp_path, share=1, seconds=60, megabytes=1)
    features = OnlineFeatures(store, ServeSettings())
    ranker = Ranker(Scorer(bundle), features, "1", max_candidates=20, journal=log)
    items = ["s8", "s2", "s2", "s5"] if known else ["s8", "s2", "none", "s5"]
    request = RankRequest(user_id="c1", item_ids=items, top_k=3)
    answers = [ranker.rank(request, "0" * 32)]
    assert (ranker.scorer.known(items, features.items.clock(), features.items.epoch) is not None) == known
    answers.append(asyncio.run(ranker.rank_soon(request, "1" * 32)).response())
    assert answers[0].model_copy(update={"request_id": "1" * 32}) == answers[1]
    log.stop()
    rows = ds.dataset(log.folder, format="parquet").to_table().drop_columns(["at"]).to_pylist()
    first, second = ([{**row, "request_id": ""} for row in rows if row["request_id"][0] == said] for said in "01")
    assert first == second
    assert len(first) == 4


def test_a_service_may_allow_fewer_candidates(bundle):
    ranker = Ranker(Scorer(bundle), OnlineFeatures(MemoryStore(), ServeSettings()), "1", max_candidates=2)
    ranker.rank(RankRequest(user_id="c1", item_ids=["s1", "s2"]))
    with pytest.raises(RequestError, match="item_ids: at most 2 are allowed, not 3"):
        ranker.rank(RankRequest(user_id="c1", item_ids=["s1", "s2", "s3"]))
