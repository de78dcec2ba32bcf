"""A promotion reaches a running service: no request is lost, and what is broken never answers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dataset.bundle import write_manifest
from serving.promotion import Mirror, fraction
from tests.serving.conftest import started

KEY = "a-key-of-sixteen-letters"
SHARE = 0.3
RANK = {"user_id": "c1", "item_ids": ["s1", "s2", "s3"]}


class Models:
    """The folder that a follower of the registry would keep."""

    def __init__(self, folder, bundle):
        self.folder, self.bundle = folder, bundle

    def add(self, version, **changes):
        """A version with the shop's model; with a golden probability of its own, or another feature service hash."""
        shutil.copytree(self.bundle, self.folder / version)
        path = self.folder / version
        if "golden" in changes:
            golden = pq.read_table(path / "golden.parquet")
            column = golden.column_names.index("probability")
            wrong = pa.array([changes.pop("golden")] * len(golden), pa.float32())
            pq.write_table(golden.set_column(column, "probability", wrong), path / "golden.parquet")
        manifest = json.loads((path / "manifest.json").read_text())
        write_manifest(path, {key: value for key, value in manifest.items() if key != "files"} | changes)
        return path

    def point(self, **aliases):
        draft = self.folder / "draft"
        draft.write_text(json.dumps(aliases))
        draft.replace(self.folder / "aliases.json")


@pytest.fixture(scope="module")
def models(shop, tmp_path_factory):
    (bundle,) = shop.glob("home/runs/first/artifacts/*/register/bundle")
    made = Models(tmp_path_factory.mktemp("models"), bundle)
    made.add("1")
    made.point(champion="1", candidate=None)
    return made


@pytest.fixture(scope="module")
def following(shop, models, tmp_path_factory):
    log = tmp_path_factory.mktemp("following") / "log"
    models.point(champion="1", candidate=None, unseen="1")
    with started(shop, log, models=models.folder, poll=0.1, canary=SHARE, api_key=KEY) as service:
        # `tandem serve` starts a follower; its first look, late on a busy machine, would undo what a test points at.
        until(lambda: "unseen" not in json.loads((models.folder / "aliases.json").read_text()))
        yield service


@contextmanager
def load(service) -> Iterator[Counter]:
    """Requests without a pause from three callers; yields what came back, by status and version."""
    seen, stop = Counter(), threading.Event()

    def ask():
        while not stop.is_set():
            answer = service.post("/rank", RANK)
            seen[answer.status_code, answer.json().get("model_version")] += 1

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        yield seen
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def said(service):
    return service.client.get("/model").json()


def until(found, seconds=180):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_promotion_and_a_rollback_lose_no_request(following, models):
    models.add("2")
    with load(following) as seen:
        until(lambda: seen[200, "1"] > 5)
        models.point(champion="2", candidate=None)
        until(lambda: seen[200, "2"] > 5)
        models.point(champion="1", candidate=None)
        until(lambda: said(following)["model_version"] == "1")
        before = seen[200, "1"]
        until(lambda: seen[200, "1"] > before + 5)
    assert set(seen) == {(200, "1"), (200, "2")}


BROKEN = {
    "changed bytes": ({}, "model.onnx"),
    "other probabilities": ({"golden": 0.123}, "golden rows are off"),
    "other features": ({"feature_service_hash": "0" * 64}, "feature service"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_version_is_refused_and_the_old_one_stays(following, models, name):
    changes, why = BROKEN[name]
    version = str(100 + list(BROKEN).index(name))
    path = models.add(version, **changes)
    if not changes:
        model = path / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"x")
    with load(following) as seen:
        models.point(champion=version, candidate=None)
        until(lambda: version in said(following)["refused"])
    assert why in said(following)["refused"][version]
    assert set(seen) <= {(200, "1")}
    assert following.client.get("/readyz").status_code == 200
    until(lambda: "tandem_models_refused 1.0" in following.client.get("/metrics").text)
    models.point(champion="1", candidate=None)
    # What was rolled back raises no alarm any longer.
    until(lambda: "tandem_models_refused 0.0" in following.client.get("/metrics").text)
    assert said(following)["refused"] == {}


def test_a_share_of_the_users_meets_the_candidate(following, models):
    models.add("7")
    models.point(champion="1", candidate="7")
    until(lambda: said(following)["candidate"] is not None)
    users = [f"c{number}" for number in range(60)]
    expected = {user: "7" if fraction(user) < SHARE else "1" for user in users}
    assert 5 < sum(version == "7" for version in expected.values()) < 30
    found = {user: following.post("/rank", {**RANK, "user_id": user}).json()["model_version"] for user in users}
    assert found == expected
    pairs = [{"user_id": user, "item_id": "s1"} for user in users]
    answer = following.post("/predict", {"pairs": pairs}).json()
    assert {pair["user_id"]: pair["model_version"] for pair in answer["pairs"]} == expected
    assert [pair["user_id"] for pair in answer["pairs"]] == users
    models.point(champion="1", candidate=None)
    until(lambda: said(following)["candidate"] is None)


def test_a_pinned_version_stays_whatever_the_aliases_say(tmp_path):
    aliases = tmp_path / "aliases.json"
    free, pinned = Mirror(tmp_path), Mirror(tmp_path, pinned="1")
    for pointed in ({"champion": "2", "candidate": "3"}, {"champion": "4", "candidate": None}):
        aliases.write_text(json.dumps(pointed))
        assert free.wanted() == {alias: tmp_path / version for alias, version in pointed.items() if version}
        assert pinned.wanted() == {"champion": tmp_path / "1"}


def test_the_share_is_even_and_steady():
    parts = [fraction(f"user-{number}") for number in range(20_000)]
    for share in (0.05, 0.5):
        assert abs(sum(part < share for part in parts) / len(parts) - share) < 0.01
    assert parts[:5] == [fraction(f"user-{number}") for number in range(5)]


def test_without_the_key_the_model_is_not_said(following):
    import httpx

    answer = httpx.get(following.client.base_url.join("/model"))
    assert (answer.status_code, set(answer.json())) == (401, {"error", "detail"})
    assert httpx.get(following.client.base_url.join("/readyz")).status_code == 200
