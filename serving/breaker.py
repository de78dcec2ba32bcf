"""A circuit breaker: what has failed several times in a row is left alone for a while, then tried once."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock


class Breaker:
    """Says whether to try, and is told how it went. Safe to share between threads.

    Args:
        failures: Failures in a row that open it.
        pause: Seconds from its opening, and from each failed attempt, to the next attempt.
        clock: Seconds that only grow.
    """

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures, self.pause, self.clock = failures, pause, clock
        self._failed, self._next = 0, 0.0
        self._lock = Lock()

    @property
    def open(self) -> bool:
        """Whether attempts pause."""
        return self._failed >= self.failures

    def allows(self) -> bool:
        """Whether to try now; while it is open one caller in each pause may."""
        with self._lock:
            if not self.open:
                return True
            if self.clock() < self._next:
                return False
            self._next = self.clock() + self.pause
            return True

    def succeeded(self) -> None:
        """An attempt went well: all may try again."""
        with self._lock:
            self._failed = 0

    def failed(self) -> None:
        """An attempt failed or took too long."""
        with self._lock:
            self._failed += 1
            if self.open:
                self._next = self.clock() + self.pause
