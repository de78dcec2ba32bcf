"""The short way of a request: read, answered and written on the event loop, without BentoML's descriptors and threads.

BentoML validates, copies and writes every item as a pydantic model: more than the model itself costs. What is well
formed is taken here. A body that is not, or that does not say that it is JSON, takes BentoML's own way: to its
refusals, and, for the few that only BentoML can read, to the same answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import starmap
from typing import Annotated, Any

import msgspec
from bentoml.exceptions import BentoMLException
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.door import JSON, content_types
from serving.ranker import Predictions, Ranking
from serving.schemas import MAX_KEY, Context
from serving.settings import MAX_ITEMS

log = logging.getLogger("tandem.serving")

RANK, PREDICT = "/rank", "/predict"
#: An id as it may be written; a whole number, here one of 64 bits, stands for its digits.
Key = (
    Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY)]
    | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
)
#: What is given to whoever answers, in the order of its parameters.
Asked = tuple[Any, ...]


class _Rank(msgspec.Struct, forbid_unknown_fields=True):
    """A RankRequest."""

    user_id: Key
    item_ids: Annotated[list[Key], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    context: dict[str, Any] = {}
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)] | None = None


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    """A Pair."""

    user_id: Key
    item_id: Key
    context: dict[str, Any] = {}


class _Predict(msgspec.Struct, forbid_unknown_fields=True):
    """A PredictRequest."""

    pairs: Annotated[list[_Pair], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class _Item(msgspec.Struct):
    """A RankedItem."""

    item_id: str
    probability: float
    cold: bool


class _Prediction(msgspec.Struct):
    """A PredictedPair."""

    user_id: str
    item_id: str
    model_version: str
    probability: float
    cold: list[str]


_context = TypeAdapter[Any](Context).validate_python
_rank = msgspec.json.Decoder(_Rank).decode
_predict = msgspec.json.Decoder(_Predict).decode
_encode = msgspec.json.Encoder().encode


def read_rank(body: bytes) -> Asked:
    """The user, items, context and `top_k` in a body.

    Raises:
        msgspec.MsgspecError, ValidationError, UnicodeDecodeError: it is no RankRequest, or one that BentoML must read.
    """
    asked = _rank(body)
    return str(asked.user_id), list(map(str, asked.item_ids)), _checked(asked.context), asked.top_k


def read_predict(body: bytes) -> Asked:
    """The users, items and contexts of the pairs in a body.

    Raises:
        msgspec.MsgspecError, ValidationError, UnicodeDecodeError: it is no PredictRequest, or one that BentoML must
            read.
    """
    pairs = _predict(body).pairs
    users, items = [str(pair.user_id) for pair in pairs], [str(pair.item_id) for pair in pairs]
    return users, items, [_checked(pair.context) for pair in pairs]


def _checked(context: dict[str, Any]) -> Mapping[str, Any]:
    checked: Mapping[str, Any] = _context(context) if context else context
    return checked


def write_ranking(ranking: Ranking) -> bytes:
    """A RankResponse as JSON."""
    items = list(starmap(_Item, ranking.items))
    return _encode({**_stamp(ranking.stamp), "user_cold": ranking.user_cold, "items": items})


def write_predictions(predictions: Predictions) -> bytes:
    """A PredictResponse as JSON."""
    return _encode({**_stamp(predictions.stamp), "pairs": list(starmap(_Prediction, predictions.pairs))})


def _stamp(stamp: Mapping[str, Any]) -> dict[str, Any]:
    return {**stamp, "degraded": [worse.model_dump() for worse in stamp["degraded"]]}


@dataclass(frozen=True)
class Way:
    """How the requests of one path are answered.

    Args:
        read: What is asked in a body; raises where the body is left to BentoML.
        answer: Answers it on the event loop; what it refuses it raises as a BentoMLException.
        write: The answer as JSON.
    """

    read: Callable[[bytes], Asked]
    answer: Callable[..., Awaitable[Any]]
    write: Callable[[Any], bytes]


class Express:
    """ASGI middleware that answers well-formed requests itself.

    Args:
        app: Takes everything else.
        rank: Answers what `read_rank` gives.
        predict: Answers what `read_predict` gives.
    """

    def __init__(
        self,
        app: ASGIApp,
        rank: Callable[..., Awaitable[Ranking]],
        predict: Callable[..., Awaitable[Predictions]],
    ) -> None:
        self.app = app
        self.ways = {
            RANK: Way(read_rank, rank, write_ranking),
            PREDICT: Way(read_predict, predict, write_predictions),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on with the body that was read."""
        way = self.ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if way is None or content_types(scope) != [JSON]:
            await self.app(scope, receive, send)
            return
        message = await receive()
        try:
            asked = None if message.get("more_body") else way.read(message.get("body", b""))
        except (msgspec.MsgspecError, ValidationError, UnicodeDecodeError):
            asked = None
        if asked is None:
            await self.app(scope, _again(message, receive), send)
            return
        try:
            body = way.write(await way.answer(*asked))
        except BentoMLException as error:
            await JSONResponse({"error": str(error)}, int(error.error_code))(scope, receive, send)
        except Exception:
            log.exception("a request failed", extra={"path": scope["path"]})
            await JSONResponse({}, HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send)
        else:
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def _again(message: Message, receive: Receive) -> Receive:
    """A body's first message once more, then whatever follows."""
    waiting = [message]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
