"""The short way of a ranking gives what the long way gives, and takes nothing that the long way refuses."""

from __future__ import annotations

import json

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
from serving.express import Express, plain, written
from serving.ranker import Ranking
from serving.schemas import Degraded, RankRequest
from tests.serving.test_service import WRONG

STAMP = {"request_id": "0" * 32, "model_version": "3", "feature_service_hash": "abc", "degraded": []}
keys = st.one_of(st.text(max_size=4), st.text(min_size=255, max_size=257), st.integers(), st.none(), st.booleans())
values = st.one_of(keys, st.floats(), st.lists(keys, max_size=3), st.just("x" * 257), st.integers(min_value=2**53))
requests = st.fixed_dictionaries(
    {"user_id": keys, "item_ids": st.lists(keys, max_size=4)},
    optional={
        "context": st.dictionaries(st.text(max_size=3), values, max_size=3),
        "top_k": st.one_of(st.integers(-1, 1001), st.floats(0, 3), st.none(), st.text(max_size=1)),
        "more": st.none(),
    },
)


@given(content=requests)
def test_what_is_taken_is_what_the_long_way_reads(content):
    body = json.dumps(content).encode()
    taken = plain(body)
    try:
        read = RankRequest.model_validate_json(body)
    except ValidationError:
        assert taken is None
        return
    if taken is not None:
        assert (taken.user_id, taken.item_ids, taken.top_k) == (read.user_id, read.item_ids, read.top_k)
        assert taken.context == read.context
    elif all(isinstance(key, str) for key in [content["user_id"], *content["item_ids"]]):
        raise AssertionError("this one is plain")


@pytest.mark.parametrize("name", WRONG)
def test_nothing_wrong_in_form_is_taken(name):
    content, said = WRONG[name]
    assert (plain(json.dumps(content).encode()) is None) or said in {"moon", "device"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"user_id": "a", "item_ids": ["\\ud800"]}', b"\xef\xbb\xbf{}"])
def test_what_is_no_json_is_not_taken(body):
    assert plain(body) is None


@given(items=st.lists(st.tuples(st.text(), st.floats(0, 1, width=32), st.booleans())), cold=st.booleans())
def test_an_answer_is_written_as_the_long_way_writes_it(items, cold):
    degraded = [Degraded(view="user_profile", reason="stale", keys=1)]
    ranking = Ranking({**STAMP, "degraded": degraded}, cold, items)
    assert json.loads(written(ranking)) == json.loads(ranking.response().model_dump_json())


class Refused(BentoMLException):
    error_code = 422


async def answer(request):
    if request.user_id == "refused":
        raise Refused("does not fit")
    if request.user_id == "broken":
        raise ValueError("/a/secret/path")
    return Ranking(STAMP, False, [(key, 0.5, False) for key in request.item_ids])


async def long_way(request: Request) -> Response:
    return Response(b"long: " + await request.body())


@pytest.fixture(scope="module")
def client():
    middleware = [Middleware(ErrorBodies), Middleware(Express, rank=answer)]
    routes = [Route(path, long_way, methods=["POST"]) for path in ("/rank", "/predict")]
    return TestClient(Starlette(routes=routes, middleware=middleware))


def test_what_is_plain_is_answered(client):
    for kind in ("application/json", "application/json; charset=utf-8"):
        body = json.dumps({"user_id": "u", "item_ids": ["a", "b"]})
        found = client.post("/rank", content=body, headers={"content-type": kind})
        assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
        assert [item["item_id"] for item in found.json()["items"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/rank", b'{"user_id": 7, "item_ids": ["a"]}', "application/json"),
        ("/rank", b'{"user_id": "u"', "application/json"),
        ("/rank", b'{"user_id": "u", "item_ids": ["a"]}', "application/vnd.bentoml+pickle"),
        ("/predict", b'{"user_id": "u", "item_ids": ["a"]}', "application/json"),
    ],
)
def test_everything_else_goes_the_long_way_whole(client, path, body, kind):
    assert client.post(path, content=body, headers={"content-type": kind}).content == b"long: " + body


def test_refusals_and_faults_have_the_one_shape(client):
    refused = client.post("/rank", json={"user_id": "refused", "item_ids": ["a"]})
    assert (refused.status_code, refused.json()) == (422, {"error": "does not fit", "detail": []})
    broken = client.post("/rank", json={"user_id": "broken", "item_ids": ["a"]})
    assert (broken.status_code, broken.json()) == (500, {"error": "internal server error", "detail": []})
