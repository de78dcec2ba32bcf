"""Two calls compared: the size from which on the one for many rows is the quicker one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.scoring import ROUNDS, SIZES, crossing


class Costs:
    """Calls that take as many seconds of their own clock as is said, and now and then are disturbed."""

    def __init__(self, small, large, disturbance=()):
        self.seconds, self.made, self.disturbance = 0.0, 0, frozenset(disturbance)
        self.small, self.large = (lambda size, cost=cost: self.call(cost(size)) for cost in (small, large))

    def call(self, cost):
        self.seconds += cost + 1000 * (self.made % ROUNDS in self.disturbance)
        self.made += 1

    def crossing(self):
        return crossing(self.small, self.large, lambda: self.seconds)


@pytest.mark.parametrize(
    ("start", "step", "expected"),
    [(0.0, 0.9, 1), (0.4, 0.5, 1), (8.1, 0.2, 11), (30.2, 0.5, 61), (50.2, 0.5, 101)],
)
@pytest.mark.parametrize("disturbance", [(), (0, 3), (1, 2, 4)])
def test_the_crossing_of_two_lines_is_found_whatever_disturbs_some_calls(start, step, expected, disturbance):
    assert Costs(lambda n: n, lambda n: start + step * n, disturbance).crossing() == expected


def test_a_call_that_is_never_quicker_is_for_more_rows_than_were_measured():
    assert Costs(lambda n: n, lambda n: n + 1).crossing() == SIZES[-1] + 1


def test_one_lucky_measurement_does_not_decide():
    assert Costs(lambda n: n, lambda n: 0.5 if n == 2 else 20 + 0.1 * n).crossing() == pytest.approx(20 / 0.9, abs=1)


@given(st.floats(0, 200), st.floats(0, 1.5))
def test_below_it_the_one_is_quicker_and_from_it_on_the_other(start, step):
    found = Costs(lambda n: n, lambda n: start + step * n).crossing()
    sizes = np.arange(1, SIZES[-1] + 1)
    gains = sizes - (start + step * sizes)
    assert (gains[sizes < found - 1] <= 1e-6).all()
    assert found > SIZES[-1] or (gains[sizes > found] >= -1e-6).all()
