"""One shape for every refusal: `{"error": sentence, "detail": [{"field", "problem"}]}`."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Refusals that BentoML words for its own developers.
SENTENCES = {415: "the body must be JSON; send 'content-type: application/json'"}

#: Refusals that pass by themselves.
LATER = frozenset({429, 503, 504})


class ErrorBodies:
    """ASGI middleware that gives every answer from 400 on the same JSON body.

    BentoML names its classes and links to pydantic's pages in some, wraps others in a list, and has starlette
    answer in plain text for paths that are not there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; hold the start of a refusal back until its body is known."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def answer(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                held = message
                return
            if held is None or message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                text = json.dumps(refusal(held["status"], body)).encode()
                kept = [pair for pair in held["headers"] if pair[0].lower() not in {b"content-type", b"content-length"}]
                length = str(len(text)).encode()
                if held["status"] in LATER and all(name.lower() != b"retry-after" for name, _ in kept):
                    kept.append((b"retry-after", b"1"))
                headers = [*kept, (b"content-type", b"application/json"), (b"content-length", length)]
                await send({**held, "headers": headers})
                await send({"type": "http.response.body", "body": text})

        await self.app(scope, receive, answer)


def refusal(status: int, body: bytes) -> dict[str, Any]:
    """The body of an answer with this status, from the body that it had."""
    found = _parsed(body)
    problems: list[dict[str, Any]] = found.get("detail") or []
    detail = [{"field": _path(problem), "problem": str(problem.get("msg", ""))} for problem in problems]
    if status in SENTENCES:
        return {"error": SENTENCES[status], "detail": detail}
    if detail:
        return {
            "error": "; ".join(f"{line['field'] or 'body'}: {line['problem']}" for line in detail),
            "detail": detail,
        }
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return {"error": HTTPStatus(status).phrase.lower(), "detail": []}
    return {"error": str(found.get("error") or HTTPStatus(status).phrase.lower()), "detail": []}


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    if isinstance(found, list) and found:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _path(problem: dict[str, Any]) -> str:
    return ".".join(str(part) for part in problem.get("loc", ()))
