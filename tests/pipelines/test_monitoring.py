"""What `tandem monitor` finds beyond its limits."""

from __future__ import annotations

import pytest

from pipelines.monitoring import Limits, breaches

HOUR = {"requests": 10, "judged": 100, "auc": 0.7, "degraded": 0.1, "expected": 30.0, "clicks": 20}
FOUND = {
    # The last one is too young to be judged, and so says nothing of AUC and calibration.
    "hours": [
        HOUR,
        {**HOUR, "requests": 30, "judged": 300, "auc": 0.9, "degraded": 0.0, "clicks": 40},
        {**HOUR, "requests": 0, "judged": 0, "auc": None, "degraded": None, "expected": 0.0, "clicks": 0},
    ],
    "psi": {"price": 0.3, "colour": 0.01, "new": None},
    "skew": {"features": {"price": {"mismatches": 0}, "colour": {"mismatches": 2}}},
}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(), []),
        (Limits(psi=0.25), ["PSI of price is 0.300, at most 0.25"]),
        (Limits(psi=0.3), []),
        (Limits(mismatches=0), ["colour differs offline in 2 rows, at most 0"]),
        (Limits(mismatches=2), []),
        (Limits(degraded=0.02), ["2.5% of the answers are degraded, at most 2.0%"]),
        (Limits(degraded=0.03), []),
        (Limits(auc=0.86), ["AUC within hours is 0.8500, at least 0.86"]),
        (Limits(auc=0.84), []),
        (Limits(calibration=(1.1, 1.25)), ["calibration is 1.000, 1.1 to 1.25"]),
        (Limits(calibration=(0.8, 1.25)), []),
    ],
)
def test_what_lies_beyond_a_limit_is_named(limits, said):
    assert breaches(FOUND, limits) == said


def test_what_is_not_known_breaks_no_limit():
    strict = Limits(psi=0, degraded=0, mismatches=0, auc=1, calibration=(1, 1))
    assert breaches({"hours": FOUND["hours"][2:], "psi": {"new": None}, "skew": None}, strict) == []
