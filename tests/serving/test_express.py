"""The short way gives what the long way gives, and takes nothing that the long way refuses."""

from __future__ import annotations

import json

import msgspec
import pytest
from bentoml.exceptions import BentoMLException
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from serving.errors import ErrorBodies
from serving.express import Express, read_predict, read_rank, write_predictions, write_ranking
from serving.ranker import Predictions, Ranking
from serving.schemas import Degraded, PredictRequest, RankRequest
from tests.serving.test_service import WRONG

STAMP = {"request_id": "0" * 32, "model_version": "3", "feature_service_hash": "abc", "degraded": []}
NOT_TAKEN = (msgspec.MsgspecError, ValidationError, UnicodeDecodeError)
numbers = st.one_of(st.integers(), st.integers(-(2**65), 2**65), st.sampled_from([10**255, 10**256, -(10**255)]))
keys = st.one_of(st.text(max_size=4), st.text(min_size=255, max_size=257), numbers, st.none(), st.booleans())
values = st.one_of(keys, st.floats(), st.lists(keys, max_size=3), st.just("x" * 257), st.integers(min_value=2**53))
contexts = st.dictionaries(st.text(max_size=3), values, max_size=3)
rankings = st.fixed_dictionaries(
    {"user_id": keys, "item_ids": st.lists(keys, max_size=4)},
    optional={
        "context": contexts,
        "top_k": st.one_of(st.integers(-1, 1001), st.floats(0, 3), st.none(), st.text(max_size=1)),
        "more": st.none(),
    },
)
pairs = st.fixed_dictionaries(
    {"user_id": keys, "item_id": keys}, optional={"context": contexts, "more": st.none(), "item_ids": st.just([])}
)
predictions = st.fixed_dictionaries({"pairs": st.lists(pairs, max_size=3)}, optional={"more": st.none()})


def agreed(read, body, expected):
    """Whether a body is taken; what is taken is what is expected, and nothing is where nothing is."""
    try:
        taken = read(body)
    except NOT_TAKEN:
        return False
    assert taken == expected
    return True


def within_bits(content):
    """Whether every whole number has 64 bits; an id that is a larger one is left to BentoML."""
    if isinstance(content, dict | list):
        return all(map(within_bits, content.values() if isinstance(content, dict) else content))
    return not isinstance(content, int) or -(2**63) <= content < 2**63


@given(content=rankings)
def test_a_ranking_is_taken_as_the_long_way_reads_it(content):
    body = json.dumps(content).encode()
    try:
        read = RankRequest.model_validate_json(body)
    except ValidationError:
        assert not agreed(read_rank, body, None)
        return
    expected = (read.user_id, read.item_ids, read.context, read.top_k)
    assert agreed(read_rank, body, expected) or not within_bits(content)


@given(content=predictions)
def test_pairs_are_taken_as_the_long_way_reads_them(content):
    body = json.dumps(content).encode()
    try:
        read = PredictRequest.model_validate_json(body).pairs
    except ValidationError:
        assert not agreed(read_predict, body, None)
        return
    users, items = [pair.user_id for pair in read], [pair.item_id for pair in read]
    expected = (users, items, [pair.context for pair in read])
    assert agreed(read_predict, body, expected) or not within_bits(content)


@pytest.mark.parametrize("name", WRONG)
def test_nothing_wrong_in_form_is_taken(name):
    content, said = WRONG[name]
    if said in {"moon", "device"} and not isinstance(content.get("context", {}).get("device"), bool):
        return  # wrong for the model alone, or a limit of the context's own
    with pytest.raises(NOT_TAKEN):
        read_rank(json.dumps(content).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"user_id": "a", "item_ids": ["\\ud800"]}', b"\xef\xbb\xbf{}"])
@pytest.mark.parametrize("read", [read_rank, read_predict])
def test_what_is_no_json_is_not_taken(read, body):
    with pytest.raises(NOT_TAKEN):
        read(body)


probabilities = st.floats(0, 1, width=32)


@given(items=st.lists(st.tuples(st.text(), probabilities, st.booleans())), cold=st.booleans())
def test_a_ranking_is_written_as_the_long_way_writes_it(items, cold):
    degraded = [Degraded(view="user_profile", reason="stale", keys=1)]
    ranking = Ranking({**STAMP, "degraded": degraded}, cold, items)
    assert json.loads(write_ranking(ranking)) == json.loads(ranking.response().model_dump_json())


sides = st.sampled_from([[], ["user"], ["item"], ["user", "item"]])


@given(found=st.lists(st.tuples(st.text(), st.text(), st.text(), probabilities, sides)))
def test_pairs_are_written_as_the_long_way_writes_them(found):
    answer = Predictions(STAMP, found)
    assert json.loads(write_predictions(answer)) == json.loads(answer.response().model_dump_json())


class Refused(BentoMLException):
    error_code = 422


async def rank(user, items, context, top_k):
    if user == "refused":
        raise Refused("does not fit")
    if user == "broken":
        raise ValueError("/a/secret/path")
    return Ranking(STAMP, False, [(key, 0.5, False) for key in items])


async def predict(users, items, contexts):
    return Predictions(STAMP, [(user, item, "3", 0.5, []) for user, item in zip(users, items, strict=True)])


async def long_way(request: Request) -> Response:
    return Response(b"long: " + await request.body())


@pytest.fixture(scope="module")
def client():
    middleware = [Middleware(ErrorBodies), Middleware(Express, rank=rank, predict=predict)]
    routes = [Route(path, long_way, methods=["POST"]) for path in ("/rank", "/predict", "/feedback")]
    return TestClient(Starlette(routes=routes, middleware=middleware))


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_what_is_well_formed_is_answered(client, kind):
    body = json.dumps({"user_id": 7, "item_ids": ["a", 8]})
    found = client.post("/rank", content=body, headers={"content-type": kind})
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert [item["item_id"] for item in found.json()["items"]] == ["a", "8"]
    body = json.dumps({"pairs": [{"user_id": 7, "item_id": "a"}, {"user_id": "u", "item_id": 8}]})
    found = client.post("/predict", content=body, headers={"content-type": kind})
    assert [(pair["user_id"], pair["item_id"]) for pair in found.json()["pairs"]] == [("7", "a"), ("u", "8")]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/rank", b'{"user_id": true, "item_ids": ["a"]}', "application/json"),
        ("/rank", b'{"user_id": "u"', "application/json"),
        ("/rank", b'{"user_id": "u", "item_ids": ["a"]}', "application/vnd.bentoml+pickle"),
        ("/predict", b'{"user_id": "u", "item_ids": ["a"]}', "application/json"),
        ("/feedback", b'{"user_id": "u", "item_ids": ["a"]}', "application/json"),
    ],
)
def test_everything_else_goes_the_long_way_whole(client, path, body, kind):
    assert client.post(path, content=body, headers={"content-type": kind}).content == b"long: " + body


def test_refusals_and_faults_have_the_one_shape(client):
    refused = client.post("/rank", json={"user_id": "refused", "item_ids": ["a"]})
    assert (refused.status_code, refused.json()) == (422, {"error": "does not fit", "detail": []})
    broken = client.post("/rank", json={"user_id": "broken", "item_ids": ["a"]})
    assert (broken.status_code, broken.json()) == (500, {"error": "internal server error", "detail": []})
