"""How a run ended, in one message: its gate card, or the steps that failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.notify.webhook import post
from components.run import FAILURE, VERDICT, read_json

log = logging.getLogger("tandem.notify")
#: Kind of a failure of which the step itself said nothing: it was killed from outside, or never began.
LOST = "lost"


@dataclass(frozen=True)
class Failure:
    """A step that failed; `kind` is user, validation or error as `components.run.step` tells them apart, or LOST."""

    step: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"step {self.step} failed ({self.kind}): {self.message}"


def said(folder: Path) -> tuple[Failure, float] | None:
    """What the step that failed last has said of itself in the run's folder, and when (seconds since 1970)."""
    if not (folder / FAILURE).is_file():
        return None
    told = read_json(folder / FAILURE)
    return Failure(told["step"], told["kind"], told["message"]), float(told["at"])


def report(folder: Path, failures: Sequence[Failure]) -> None:
    """Tell the webhook how a run ended. One that came to its end without a verdict, as materialising does, is silent.

    Args:
        folder: The run's folder, which bears its name.
        failures: The steps that failed, the first one first.
    """
    verdict: dict[str, Any] = read_json(folder / VERDICT) if (folder / VERDICT).is_file() else {}
    if failures:
        first = failures[0]
        lines = [f"Tandem run {folder.name}: {first}", *map(str, failures[1:]), verdict.pop("text", "")]
        facts = {"event": "failed", "step": first.step, "kind": first.kind, "message": first.message}
        _tell("\n".join(filter(None, lines)), **verdict | facts | {"run_id": folder.name})
    elif verdict:
        _tell(**verdict, event="judged")


def _tell(text: str, **facts: Any) -> None:
    log.info("%s", text)
    post(text, **facts)
