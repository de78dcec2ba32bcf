"""The short way of a ranking: a plain request read, answered and written without BentoML's descriptors and threads.

BentoML validates, copies and writes every item as a pydantic model, and hands each request to a thread: more than the
model itself costs. What is plain is taken here. Everything else, and every refusal of a request's form, takes BentoML's
own way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import starmap
from typing import Annotated, Any

import msgspec
from bentoml.exceptions import BentoMLException
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.ranker import Ranking
from serving.schemas import MAX_KEY, Context
from serving.settings import MAX_ITEMS

log = logging.getLogger("tandem.serving")

PATH = "/rank"
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY)]


class Plain(msgspec.Struct, forbid_unknown_fields=True):
    """A RankRequest whose ids are strings, as most callers send it."""

    user_id: Key
    item_ids: Annotated[list[Key], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    context: dict[str, Any] = {}
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)] | None = None


class _Item(msgspec.Struct):
    """A RankedItem."""

    item_id: str
    probability: float
    cold: bool


_context = TypeAdapter[Any](Context)
_decode = msgspec.json.Decoder(Plain).decode
_encode = msgspec.json.Encoder().encode


class Express:
    """ASGI middleware that answers plain rankings itself.

    Args:
        app: Takes everything else.
        rank: Answers on the event loop; what it refuses it raises as a BentoMLException.
    """

    def __init__(self, app: ASGIApp, rank: Callable[[Plain], Awaitable[Ranking]]) -> None:
        self.app, self.rank = app, rank

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on with the body that was read."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        message = await receive()
        request = None if message.get("more_body") else plain(message.get("body", b""))
        if request is None:
            await self.app(scope, _again(message, receive), send)
            return
        try:
            body = written(await self.rank(request))
        except BentoMLException as error:
            await JSONResponse({"error": str(error)}, int(error.error_code))(scope, receive, send)
        except Exception:
            log.exception("a ranking failed")
            await JSONResponse({}, HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send)
        else:
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def plain(body: bytes) -> Plain | None:
    """The request in a body, where it is plain; None where it is not, or is none at all."""
    try:
        request = _decode(body)
        if request.context:
            request.context = _context.validate_python(request.context)
    except (msgspec.MsgspecError, ValidationError, UnicodeDecodeError):
        return None
    return request


def written(ranking: Ranking) -> bytes:
    """A RankResponse as JSON."""
    degraded = [worse.model_dump() for worse in ranking.stamp["degraded"]]
    items = list(starmap(_Item, ranking.items))
    return _encode({**ranking.stamp, "degraded": degraded, "user_cold": ranking.user_cold, "items": items})


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip() == b"application/json"


def _again(message: Message, receive: Receive) -> Receive:
    """A body's first message once more, then whatever follows."""
    waiting = [message]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
