"""What a request must pass before it is read, and how long its answer may take."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from http import HTTPStatus
from typing import Self

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.settings import ServeSettings

#: Asked by the cluster, which has no key and must not be turned away.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
RETRY_AFTER = {"retry-after": "1"}
CLOSE = {"connection": "close"}
JSON = b"application/json"
#: As web servers count a caller who has gone; HTTP has no word for it, and nobody reads it.
GONE = 499
#: Seconds until it is looked whether the caller is still there. Most requests are answered sooner, and spared the look.
LOOK = 0.05


class Door:
    """ASGI middleware. Bodies are read whole here, and so what reads them meets no more than `max_body` bytes.

    A request that is not answered within `timeout`, or whose caller has gone, is cancelled.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        key = settings.api_key
        self._key = None if key is None else hashlib.sha256(key.get_secret_value().encode()).digest()
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or say why not."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._knows(headers):
            refusal = _refuse(
                HTTPStatus.UNAUTHORIZED, "send 'authorization: Bearer KEY'", {"www-authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
            return
        if scope["method"] == "POST" and not _may_be_json(scope):
            await _refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON only", {})(scope, receive, send)
            return
        if self._inside >= self.settings.max_concurrency:
            await _refuse(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once", RETRY_AFTER)(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._in_time(headers, scope, receive, send)
        finally:
            self._inside -= 1

    async def _in_time(self, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.settings.timeout) as limit:
                with _Caller(receive, send, limit) as caller:
                    await self._with_body(headers, scope, caller)
        except TimeoutError:
            await _refuse(HTTPStatus.GATEWAY_TIMEOUT, "not answered in time", CLOSE)(scope, receive, send)
        except _GoneError:
            await _refuse(GONE, "the caller has gone", CLOSE)(scope, receive, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        if self._key is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests, so that neither the key's bytes nor its length show in the time that this takes.
        return hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._key) and scheme.lower() == b"bearer"

    async def _with_body(self, headers: dict[bytes, bytes], scope: Scope, caller: _Caller) -> None:
        said, most = headers.get(b"content-length", b"0"), self.settings.max_body
        announced = int(said) if said.isdigit() else 0
        body = await self._body(caller.receive) if announced <= most else b""
        if max(announced, len(body)) > most:
            refusal = _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {most} bytes at most", CLOSE)
            await refusal(scope, caller.receive, caller.send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await caller.receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        caller.heed()
        await self.app(scope, replay, caller.send)

    async def _body(self, receive: Receive) -> bytes:
        """The body, cut off soon after `max_body`."""
        parts: list[bytes] = []
        size = 0
        while size <= self.settings.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body", False):
                break
        return b"".join(parts)


class _GoneError(Exception):
    """Nobody waits for the answer."""


class _Caller:
    """Who waits for an answer. When they go before it begins, the work on it is cancelled.

    Args:
        receive: What they say.
        send: What they are told.
        limit: The time in which the answer must begin; to read it they may take longer.
    """

    def __init__(self, receive: Receive, send: Send, limit: asyncio.Timeout) -> None:
        self.receive, self._send, self._limit = receive, send, limit
        self._work = asyncio.current_task()
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._heed_no_more()
        if self._gone and kind is asyncio.CancelledError and self._work is not None:
            self._work.uncancel()
            raise _GoneError

    def heed(self) -> None:
        """Look from soon on whether they are still there; the request has been read."""
        loop = asyncio.get_running_loop()

        def begin() -> None:
            self._look = loop.create_task(self._until_gone())

        self._timer = loop.call_later(LOOK, begin)

    async def send(self, message: Message) -> None:
        """Tell them a part of the answer."""
        self._heed_no_more()
        if not self._limit.expired():
            self._limit.reschedule(None)
        await self._send(message)

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._work is not None:
            self._work.cancel()

    def _heed_no_more(self) -> None:
        for waiting in (self._timer, self._look):
            if waiting is not None:
                waiting.cancel()


def _may_be_json(scope: Scope) -> bool:
    """Whether a body says that it is JSON, or nothing; BentoML reads forms and more besides, and fails at some."""
    return all(kind in {b"", JSON} for kind in content_types(scope))


def content_types(scope: Scope) -> list[bytes]:
    """What a body says that it is, as often as it says so, without parameters."""
    said = (value for name, value in scope["headers"] if name == b"content-type")
    return [value.partition(b";")[0].strip().lower() for value in said]


def _refuse(status: int, error: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
