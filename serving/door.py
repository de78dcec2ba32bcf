"""What a request must pass before it is read: the API key, the body's size, the number of requests at once."""

from __future__ import annotations

import hashlib
import hmac
import time
from contextvars import ContextVar
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.settings import ServeSettings

#: Asked by the cluster, which has no key and must not be turned away.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
RETRY_AFTER = {"retry-after": "1"}
CLOSE = {"connection": "close"}

_arrived: ContextVar[float] = ContextVar("arrived")


class LateError(Exception):
    """The request waited longer than its caller does."""


def check_waited(timeout: float) -> None:
    """Refuse to begin a request that has waited for its turn too long: the caller has given it up.

    Raises:
        LateError: it waited longer than `timeout` seconds.
    """
    waited = time.monotonic() - _arrived.get(time.monotonic())
    if waited > timeout:
        raise LateError(f"waited {waited:.1f} s for its turn; at most {timeout:g} s are allowed")


class Door:
    """ASGI middleware. Bodies are read whole here, and so what reads them meets no more than `max_body` bytes."""

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
        if self._inside >= self.settings.max_concurrency:
            await _refuse(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once", RETRY_AFTER)(scope, receive, send)
            return
        self._inside += 1
        try:
            _arrived.set(time.monotonic())
            await self._with_body(headers, scope, receive, send)
        finally:
            self._inside -= 1

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        if self._key is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests, so that neither the key's bytes nor its length show in the time that this takes.
        return hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._key) and scheme.lower() == b"bearer"

    async def _with_body(self, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send) -> None:
        said, most = headers.get(b"content-length", b"0"), self.settings.max_body
        announced = int(said) if said.isdigit() else 0
        body = await self._body(receive) if announced <= most else b""
        if body is None:
            return
        if max(announced, len(body)) > most:
            refusal = _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {most} bytes at most", CLOSE)
            await refusal(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, cut off soon after `max_body`; None where the caller has gone."""
        parts: list[bytes] = []
        size = 0
        while size <= self.settings.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body", False):
                break
        return b"".join(parts)


def _refuse(status: HTTPStatus, error: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
