"""Which impressions a run learns from: all of them, those between two moments, or those since an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError

ALL = "all"
Since = Literal["since-last-success", "since-champion"]
SINCE: tuple[Since, ...] = ("since-last-success", "since-champion")
FORMS = f"{ALL}, {SINCE[0]}, {SINCE[1]}, or START/END in ISO 8601 such as 2026-05-01/2026-06-01, either end left out"


@dataclass(frozen=True)
class Window:
    """The moments [start, end); None is open.

    Of a window that follows an earlier run, what that run knew: it ended at `seen`, and without an impression from then
    on there is nothing new; the newest row had arrived at `arrived`, and what arrived later lies in the window too,
    though it is dated before it; and `before` rows of the log were dated before `start`.
    """

    start: datetime | None = None
    end: datetime | None = None
    seen: datetime | None = None
    arrived: datetime | None = None
    before: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The window that 'START/END' means; a moment without an offset is in UTC.

        Raises:
            UserError: an end is no moment, both are left out, or the window is empty.
        """
        first, slash, last = text.partition("/")
        if not slash or not (first or last):
            raise UserError(f"window '{text}' is unknown; write {FORMS}")
        start, end = (_moment(word, text) if word else None for word in (first, last))
        if start is not None and end is not None and start >= end:
            raise UserError(f"window '{text}' ends before it begins; write the earlier moment first")
        return cls(start, end)

    @property
    def everything(self) -> bool:
        """Whether no impression lies outside."""
        return self.start is None and self.end is None

    def holds(self, moments: pa.ChunkedArray, arrivals: pa.ChunkedArray | None = None) -> pa.ChunkedArray:
        """Which rows [n] lie in the window, by their moments and, where the log has them, the moments of arrival."""
        inside = pc.is_valid(moments)
        if self.start is not None:
            timely = pc.greater_equal(moments, pa.scalar(self.start, moments.type))
            if self.arrived is not None and arrivals is not None:
                late = pc.greater(arrivals, pa.scalar(self.arrived, arrivals.type))
                timely = pc.or_(timely, pc.fill_null(late, False))
            inside = pc.and_(inside, timely)
        return inside if self.end is None else pc.and_(inside, pc.less(moments, pa.scalar(self.end, moments.type)))


def check_window(text: str) -> str:
    """The setting as it is, if it means a window.

    Raises:
        UserError: it does not.
    """
    if text != ALL and text not in SINCE:
        Window.parse(text)
    return text


def parsed(end: str) -> datetime | None:
    """The moment that a word names; None for the empty word.

    Raises:
        UserError: it names none.
    """
    if not end:
        return None
    try:
        moment = datetime.fromisoformat(end)
    except ValueError:
        raise UserError(f"end '{end}' is no moment; write it as 2026-05-31T18:30:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _moment(word: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(word)
    except ValueError:
        raise UserError(f"window '{text}': '{word}' is no moment; write 2026-05-01 or 2026-05-01T06:00Z") from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
