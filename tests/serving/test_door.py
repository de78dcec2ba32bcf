"""The door in front of a plain ASGI application, met over HTTP as it would be in the service."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from components.dataset.errors import UserError
from serving.door import LOOK, Door
from serving.errors import ErrorBodies
from serving.settings import ServeSettings

KEY = "a-key-of-sixteen-letters"
entered, released = threading.Semaphore(0), threading.Event()


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"size": len(body)})


async def without_model(_: Request) -> JSONResponse:
    return JSONResponse({}, 503)


def wait(_: Request) -> JSONResponse:
    entered.release()
    released.wait(30)
    return JSONResponse({})


def client(**settings) -> TestClient:
    routes = [
        Route("/rank", echo, methods=["POST"]),
        Route("/wait", wait, methods=["POST"]),
        Route("/absent", without_model, methods=["POST"]),
        Route("/livez", echo, methods=["GET"]),
    ]
    middleware = [Middleware(ErrorBodies), Middleware(Door, settings=ServeSettings(**settings))]
    return TestClient(Starlette(routes=routes, middleware=middleware))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", KEY[:-1], f"Bearer {KEY}x", f"Basic {KEY}"])
def test_without_the_key_nothing_is_answered(header):
    headers = {} if header is None else {"authorization": header}
    answer = client(api_key=KEY).post("/rank", content=b"{}", headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {"error": "send 'authorization: Bearer KEY'", "detail": []}
    assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_key_and_for_probes_the_door_is_open():
    guarded = client(api_key=KEY)
    assert guarded.post("/rank", content=b"{}", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert guarded.get("/livez").status_code == 200
    assert KEY not in repr(ServeSettings(api_key=SecretStr(KEY)))


def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not():
    small = client(max_body=2000)
    assert small.post("/rank", content=b"x" * 2000).json() == {"size": 2000}
    assert small.post("/rank", content=b"x" * 2001).status_code == 413
    chunks = (b"x" * 500 for _ in range(1000))
    answer = small.post("/rank", content=chunks)
    assert answer.status_code == 413
    assert "2000 bytes" in answer.json()["error"]
    assert small.post("/rank", content=b"x", headers={"content-length": "9" * 30}).status_code == 413


def test_more_requests_than_allowed_are_told_when_to_come_back():
    released.clear()
    with client(max_concurrency=2) as busy:
        waiting = [threading.Thread(target=busy.post, args=("/wait",)) for _ in range(2)]
        try:
            for thread in waiting:
                thread.start()
                assert entered.acquire(timeout=30)
            answer = busy.post("/rank", content=b"")
            probe = busy.get("/livez")
        finally:
            released.set()
            for thread in waiting:
                thread.join()
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert probe.status_code == 200, "the cluster's probes are no load"
        assert busy.post("/rank", content=b"").status_code == 200


def test_what_passes_by_itself_says_when_to_come_back():
    answer = client().post("/absent")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


class Ways:
    """A request by hand: its body, then silence until its caller goes; and an application that takes its time."""

    def __init__(self, *messages, goes=None):
        self.messages, self.goes, self.sent, self.happened = list(messages), goes, [], []

    async def receive(self):
        if self.messages:
            return self.messages.pop(0)
        await asyncio.sleep(1000 if self.goes is None else self.goes)
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message.get("status", message.get("body")))

    async def app(self, scope, receive, send):
        self.happened.append((await receive())["body"])
        try:
            await asyncio.sleep(scope["seconds"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(scope["reading"])
            await send({"type": "http.response.body", "body": b"done"})
        except asyncio.CancelledError:
            self.happened.append("cancelled")
            raise

    def ask(self, seconds=0.0, reading=0.0, **settings):
        scope = {"type": "http", "method": "POST", "path": "/rank", "headers": []}
        door = Door(self.app, ServeSettings(**settings))
        asyncio.run(door({**scope, "seconds": seconds, "reading": reading}, self.receive, self.send))
        assert door._inside == 0
        return self.sent[0] if self.sent else None


BODY = {"type": "http.request", "body": b"x"}


def test_what_takes_too_long_is_cancelled():
    late = Ways(BODY)
    assert late.ask(seconds=1000, timeout=0.1) == 504
    assert late.happened == [b"x", "cancelled"]
    slow = Ways({**BODY, "more_body": True})
    assert slow.ask(timeout=0.1) == 504, "a body that does not end takes a place from others"
    assert slow.happened == []
    reading = Ways(BODY, goes=1000)
    assert reading.ask(reading=0.3, timeout=0.1) == 200
    assert reading.sent == [200, b"done"], "an answer that has begun is read at its caller's pace"


def test_what_nobody_waits_for_is_cancelled():
    left = Ways(BODY, goes=0)
    assert left.ask(seconds=1000) == 499
    assert left.happened == [b"x", "cancelled"]
    assert Ways({**BODY, "more_body": True}, {"type": "http.disconnect"}).ask() == 499
    stayed = Ways(BODY, goes=1000)
    assert stayed.ask(seconds=2 * LOOK) == 200
    assert stayed.happened == [b"x"]


def test_settings_come_from_the_environment_and_are_checked():
    read = ServeSettings.read({"TANDEM_SERVE_ITEM_AGE": "7", "TANDEM_SERVE_API_KEY": "", "ITEM_AGE": "9", "PATH": "x"})
    assert (read.item_age, read.api_key) == (7.0, None)
    with pytest.raises(UserError, match="TANDEM_SERVE_ITEM_AGE: Input should be greater than 0"):
        ServeSettings.read({"TANDEM_SERVE_ITEM_AGE": "0"})
    with pytest.raises(UserError, match="TANDEM_SERVE_ITEM_AGES is no setting"):
        ServeSettings.read({"TANDEM_SERVE_ITEM_AGES": "1"})
    with pytest.raises(UserError) as refused:
        ServeSettings.read({"TANDEM_SERVE_API_KEY": "short-secret"})
    assert "short-secret" not in str(refused.value)
