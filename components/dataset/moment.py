"""Request-time context: what the moment of a request or of an impression says by itself.

Each value is one formula in whole numbers, kept as numbers. The service computes it with Python's integers, the
history's attributes with NumPy's, the offline stores in SQL: the same formula, and so the same value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from components.dataset.spec import EVENT_TIMESTAMP, MOMENT_PREFIX

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
#: By how much the clocks of two machines may differ; what is dated later than that has not happened yet.
AHEAD = timedelta(minutes=1)
HOUR = 3_600_000_000
DAY = 24 * HOUR

#: An int or a NumPy array of them.
Whole = TypeVar("Whole", bound=Any)


@dataclass(frozen=True)
class Cycle:
    """What comes around again: `count` steps of `step` microseconds each, of which 1970 (UTC) began with `first`."""

    step: int
    count: int
    first: int = 0

    def at(self, microseconds: Whole) -> Whole:
        """The step, from 0, of moments in microseconds since 1970; earlier ones are below 0."""
        found: Whole = (microseconds // self.step + self.first) % self.count
        return found

    def sql(self, microseconds: str) -> str:
        """The same in SQL, where division cuts towards zero: what is divided is brought above it first."""
        round_ = self.step * self.count
        return f"((({microseconds} % {round_} + {round_}) % {round_}) // {self.step} + {self.first}) % {self.count}"


#: In UTC. Weekday 0 is Monday; 1970 began on a Thursday.
CYCLES = {"hour": Cycle(HOUR, 24), "weekday": Cycle(DAY, 7, 3)}


def request_context(request: Mapping[str, Sequence[datetime | None]]) -> dict[str, list[str | None]]:
    """The context of n requests as columns of categories, from the column `event_timestamp` of their moments.

    It is the function of the on-demand view `request_context`; see `feature_repo.context`.
    """
    moments = [None if moment is None else _microseconds(moment) for moment in request[EVENT_TIMESTAMP]]
    return {
        MOMENT_PREFIX + name: [None if moment is None else str(cycle.at(moment)) for moment in moments]
        for name, cycle in CYCLES.items()
    }


def _microseconds(moment: datetime) -> int:
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
