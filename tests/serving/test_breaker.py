"""The circuit breaker on a clock of its own."""

from __future__ import annotations

from serving.breaker import Breaker


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_tries_once_in_each_pause():
    clock = Clock()
    breaker = Breaker(failures=2, pause=1.0, clock=clock)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows(), "two failures, but not in a row"
    breaker.failed()
    assert breaker.open
    assert not breaker.allows()
    clock.now = 1.5
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.failed()
    clock.now = 2.4
    assert not breaker.allows(), "a pause begins with the failed attempt"
    clock.now = 2.6
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    assert [breaker.allows() for _ in range(3)] == [True, True, True]
