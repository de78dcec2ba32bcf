"""What `tandem monitor` finds beyond its limits."""

from __future__ import annotations

import pytest

from pipelines.monitoring import Limits, breaches, too_few

HOUR = {"requests": 10, "judged": 1000, "auc": 0.7, "degraded": 0.1, "expected": 300.0, "clicks": 200}
FOUND = {
    # The last one is too young to be judged, and so says nothing of AUC and calibration.
    "hours": [
        HOUR,
        {**HOUR, "requests": 30, "judged": 3000, "auc": 0.9, "degraded": 0.0, "clicks": 400},
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
    assert too_few(FOUND, limits) == {}


LABELLED = {"AUC within hours is 0.7000, at least 0.8", "calibration is 1.500, 0.8 to 1.25"}


@pytest.mark.parametrize(
    ("least", "few"),
    [
        ({}, False),
        ({"rows": 1000}, False),
        ({"rows": 1001}, True),
        ({"each": 200}, False),
        ({"each": 201}, True),
    ],
)
def test_a_handful_of_labels_breaks_no_limit(least, few):
    """A click more or less would do; what needs no labels is held to its limits all the same."""
    found = {**FOUND, "hours": [HOUR]}
    limits = Limits(psi=0.25, auc=0.8, calibration=(0.8, 1.25), **least)
    said = too_few(found, limits)
    assert set(said) == ({"AUC", "calibration"} if few else set())
    assert all(line.startswith("1000 rows with 200 clicks; at least ") for line in said.values())
    assert set(breaches(found, limits)) == {"PSI of price is 0.300, at most 0.25"} | (set() if few else LABELLED)
    assert too_few(found, Limits(psi=0.25, **least)) == {}, "nothing is said of what has no limit"


def test_rows_without_a_click_are_needed_too():
    found = {**FOUND, "hours": [{**HOUR, "clicks": 950}]}
    assert set(too_few(found, Limits(auc=0.8, calibration=(0.8, 1.25)))) == {"AUC", "calibration"}


def test_an_hour_that_has_no_auc_does_not_make_up_its_numbers():
    """All clicks of one hour, and next to none of the other: the calibration of both is known, the AUC is not."""
    hours = [{**HOUR, "judged": 150, "clicks": 150, "auc": None}, {**HOUR, "clicks": 2, "auc": 0.1}]
    limits = Limits(auc=0.8, calibration=(0.8, 1.25))
    assert set(too_few({**FOUND, "hours": hours}, limits)) == {"AUC"}
    assert breaches({**FOUND, "hours": hours}, limits) == ["calibration is 3.947, 0.8 to 1.25"]


def test_what_is_not_known_breaks_no_limit():
    strict = Limits(psi=0, degraded=0, mismatches=0, auc=1, calibration=(1, 1))
    assert breaches({"hours": FOUND["hours"][2:], "psi": {"new": None}, "skew": None}, strict) == []
