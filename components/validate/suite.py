"""The Great Expectations suites that follow from a DatasetSpec.

Critical: what no model can be trained on. Warning: what will cost accuracy or is likely a mistake. Info: worth
knowing. What makes the sources unreadable (missing columns, empty keys, wrong types) has been refused before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from great_expectations.expectations.expectation import Expectation

from components.dataset.spec import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    LABEL,
    DatasetSpec,
    FieldSpec,
    Kind,
)
from components.validate.drift import SHARES, drift, drift_of_shares
from components.validate.expect import expect
from components.validate.frames import DATED, KEYS, KNOWN, is_dated
from components.validate.settings import Severity, ValidateSettings

Expectations = Iterator[Expectation]

#: A time split needs some moments between which it can cut.
MIN_MOMENTS = 10
#: Largest finite double, less a margin for the decimal form in the Data Docs.
FINITE = 1e308
OUTER_SPACE = r"^\s|\s$"


def build_suites(
    spec: DatasetSpec,
    settings: ValidateSettings,
    columns: dict[str, list[str]],
    now: datetime,
    before: dict[str, Any] | None = None,
) -> dict[str, list[Expectation]]:
    """The expectations by table: impressions, users and items where the spec names them, and what has moved.

    Args:
        spec: The data set.
        settings: Thresholds.
        columns: Columns of each table's frame.
        now: The moment from which on a time stamp lies in the future (aware).
        before: The summary of the run before, if this run is to be held against it.
    """
    suites = {"impressions": list(_impressions(spec, settings, columns["impressions"], now))}
    for side, table in (("user", "users"), ("item", "items")):
        if table in columns:
            suites[table] = list(_entity(spec, side, settings, columns[table], now))
    if before is not None:
        for table, expectations in suites.items():
            expectations.extend(drift(spec, settings, table, before))
    if columns.get(SHARES):
        suites[SHARES] = list(drift_of_shares(columns[SHARES], settings))
    return suites


def _impressions(spec: DatasetSpec, settings: ValidateSettings, columns: list[str], now: datetime) -> Expectations:
    yield _rows(settings.min_rows, "critical")
    yield _exactly(columns)
    yield _unique(IMPRESSION_ID)
    for key in KEYS.values():
        yield from _key(key)
        yield _several(key, "warning")
    yield from _label(settings)
    if spec.keys.timestamp is not None:
        yield from _moments(EVENT_TIMESTAMP, settings, now)
        if spec.split.by == "time":
            yield _several(EVENT_TIMESTAMP, "critical", MIN_MOMENTS)
    if CREATED_TIMESTAMP in columns:
        yield from _moments(CREATED_TIMESTAMP, settings, now)
    yield from _unknowns(settings, columns)
    yield _repeated(spec, settings)
    for field in spec.of_side("context"):
        yield from _field(field, settings)
    for key, thing in (("user", "users come back"), ("item", "items are shown more than once")):
        words = f"{thing}: fewer than half of the impressions are of a new {key}"
        yield expect("ExpectColumnProportionOfUniqueValuesToBeBetween", "info", words, column=KEYS[key], max_value=0.5)


def _entity(
    spec: DatasetSpec, side: str, settings: ValidateSettings, columns: list[str], now: datetime
) -> Expectations:
    key = KEYS[side]
    yield _rows(1, "critical")
    yield _exactly(columns)
    yield from _key(key)
    if is_dated(spec, side):
        yield _once([key, EVENT_TIMESTAMP], 1.0, "critical", f"{key} has one row at each moment")
        yield from _moments(EVENT_TIMESTAMP, settings, now)
    else:
        yield _unique(key)
    if CREATED_TIMESTAMP in columns:
        yield from _moments(CREATED_TIMESTAMP, settings, now)
    for field in spec.of_side(side):
        if field.kind is not Kind.ID:
            yield from _field(field, settings)


def _rows(least: int, severity: Severity) -> Expectation:
    return expect("ExpectTableRowCountToBeBetween", severity, f"there are at least {least} rows", min_value=least)


def _exactly(columns: list[str]) -> Expectation:
    words = "the columns are those of the DatasetSpec"
    return expect("ExpectTableColumnsToMatchSet", "critical", words, column_set=columns, exact_match=True)


def _key(column: str) -> Expectations:
    words = f"{column} is never empty"
    yield expect("ExpectColumnValuesToNotBeNull", "critical", words, column=column)
    yield _typed(column, ["str"], "a string")
    yield _trimmed(column)


def _typed(column: str, types: list[str], words: str) -> Expectation:
    return expect(
        "ExpectColumnValuesToBeInTypeList", "critical", f"{column} is {words}", column=column, type_list=types
    )


def _trimmed(column: str) -> Expectation:
    words = f"{column} neither begins nor ends with a space"
    return expect("ExpectColumnValuesToNotMatchRegex", "warning", words, column=column, regex=OUTER_SPACE)


def _unique(column: str) -> Expectation:
    words = f"{column} is there only once"
    return expect("ExpectColumnValuesToBeUnique", "critical", words, column=column)


def _once(columns: list[str], share: float, severity: Severity, words: str) -> Expectation:
    return expect("ExpectCompoundColumnsToBeUnique", severity, words, column_list=columns, mostly=share)


def _several(column: str, severity: Severity, least: int = 2) -> Expectation:
    return expect(
        "ExpectColumnUniqueValueCountToBeBetween",
        severity,
        f"{column} has at least {least} different values",
        column=column,
        min_value=least,
    )


def _label(settings: ValidateSettings) -> Expectations:
    yield expect("ExpectColumnValuesToNotBeNull", "critical", "label is never empty", column=LABEL)
    yield expect("ExpectColumnValuesToBeInSet", "critical", "label is 0 or 1", column=LABEL, value_set=[0, 1])
    both = {"min_value": 0, "max_value": 1, "strict_min": True, "strict_max": True}
    words = "there are positives and negatives"
    yield expect("ExpectColumnMeanToBeBetween", "critical", words, column=LABEL, **both)
    low, high = settings.min_label_rate, settings.max_label_rate
    words = f"the share of positives is between {low:g} and {high:g}"
    yield expect("ExpectColumnMeanToBeBetween", "warning", words, column=LABEL, min_value=low, max_value=high)


def _moments(column: str, settings: ValidateSettings, now: datetime) -> Expectations:
    """A moment far off is mostly a wrong unit; one in the future would decide the split by time."""
    first = datetime(settings.earliest_year, 1, 1, tzinfo=UTC)
    last = now + timedelta(hours=settings.future_hours)
    words = f"{column} is never empty"
    yield expect("ExpectColumnValuesToNotBeNull", "critical", words, column=column)
    words = f"{column} is not before {first.year} (check keys.timestamp_unit)"
    yield expect("ExpectColumnMinToBeBetween", "critical", words, column=column, min_value=first)
    words = f"{column} is not in the future (check keys.timestamp_unit)"
    yield expect("ExpectColumnMaxToBeBetween", "critical", words, column=column, max_value=last)


def _unknowns(settings: ValidateSettings, columns: list[str]) -> Expectations:
    allowed = f"at most {settings.max_unknown_share:.0%} of the impressions are"
    for side, column in KNOWN.items():
        if column in columns:
            words = f"{allowed} of {side}s without a row in the {side}s' table"
            yield _mostly_true(column, settings, words)
    for side, column in DATED.items():
        if column in columns:
            words = f"{allowed} dated before their {side}'s first row"
            yield _mostly_true(column, settings, words)


def _mostly_true(column: str, settings: ValidateSettings, words: str) -> Expectation:
    return expect(
        "ExpectColumnMeanToBeBetween", "warning", words, column=column, min_value=1 - settings.max_unknown_share
    )


def _repeated(spec: DatasetSpec, settings: ValidateSettings) -> Expectation:
    moment = [EVENT_TIMESTAMP] if spec.keys.timestamp is not None else []
    words = f"at most {settings.max_duplicate_share:.0%} of the rows repeat user, item{' and moment' if moment else ''}"
    severity: Severity = "warning" if moment else "info"
    return _once([*KEYS.values(), *moment], 1 - settings.max_duplicate_share, severity, words)


def _field(field: FieldSpec, settings: ValidateSettings) -> Expectations:
    words = f"at most {settings.max_null_share:.0%} of {field.name} are empty"
    yield expect(
        "ExpectColumnValuesToNotBeNull", "warning", words, column=field.name, mostly=1 - settings.max_null_share
    )
    if field.in_model:
        yield _several(field.name, "warning")
    if field.kind is Kind.NUMBER:
        yield from _number(field)
    if field.kind is Kind.CATEGORY:
        yield _typed(field.name, ["str"], "a string")
        yield _trimmed(field.name)
    if field.codes and field.kind is Kind.CATEGORY:
        yield _coded(field)
    if field.kind is Kind.TEXT:
        words = f"{field.name} is mostly longer than two characters"
        yield expect("ExpectColumnValueLengthsToBeBetween", "info", words, column=field.name, min_value=3, mostly=0.9)


def _number(field: FieldSpec) -> Expectations:
    yield _typed(field.name, ["float64"], "a number")
    words = f"{field.name} is finite"
    yield expect(
        "ExpectColumnValuesToBeBetween", "warning", words, column=field.name, min_value=-FINITE, max_value=FINITE
    )


def _coded(field: FieldSpec) -> Expectation:
    words = f"{field.name} has only values with words under 'codes'; a prompt says the others as they are"
    return expect("ExpectColumnValuesToBeInSet", "warning", words, column=field.name, value_set=list(field.codes))
