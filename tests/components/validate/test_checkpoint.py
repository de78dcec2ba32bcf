"""Findings: the worst severity, and an expectation that cannot be computed."""

import pandas as pd
import pytest
from great_expectations import expectations as gxe

from components.validate.checkpoint import Finding, run_suites, worst_severity


def finding(severity, passed):
    return Finding(table="users", column="city", expectation="e", severity=severity, passed=passed, words="w")


@pytest.mark.parametrize(
    ("results", "worst"),
    [
        ([], None),
        ([("critical", True)], None),
        ([("info", False), ("critical", True)], "info"),
        ([("info", False), ("critical", False), ("warning", False)], "critical"),
        ([("warning", False), ("info", False)], "warning"),
    ],
)
def test_worst_severity(results, worst):
    assert worst_severity(tuple(finding(*result) for result in results)) == worst


def test_a_failure_tells_count_share_and_examples(tmp_path):
    frame = pd.DataFrame({"device": ["phone"] * 6 + ["fridge", "toaster", "fridge", None]})
    expected = gxe.ExpectColumnValuesToBeInSet(
        column="device", value_set=["phone"], severity="warning", meta={"words": "device is a phone"}
    )
    (found,) = run_suites({"impressions": frame}, {"impressions": [expected]}, tmp_path / "docs")
    assert (found.severity, found.passed, found.column) == ("warning", False, "device")
    assert found.sentence == (
        "impressions: expected that device is a phone; 3 rows (33.3 %) are otherwise, such as 'fridge', 'toaster'"
    )


def test_nothing_is_no_example(tmp_path):
    frame = pd.DataFrame({"price": [1.0, float("nan"), None]})
    expected = gxe.ExpectColumnValuesToNotBeNull(column="price", severity="warning", meta={"words": "price is there"})
    (found,) = run_suites({"items": frame}, {"items": [expected]}, tmp_path / "docs")
    assert found.sentence == "items: expected that price is there; 2 rows (66.7 %) are otherwise"


def test_an_expectation_that_cannot_be_computed_is_no_finding(tmp_path):
    expected = gxe.ExpectColumnMeanToBeBetween(column="gone", min_value=0, meta={"words": "gone is positive"})
    with pytest.raises(RuntimeError, match="users: expectation expect_column_mean_to_be_between could not be computed"):
        run_suites({"users": pd.DataFrame({"city": ["a"]})}, {"users": [expected]}, tmp_path / "docs")
