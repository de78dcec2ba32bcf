"""Cron expressions of a time zone mean the same moments in UTC, or are refused."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from components.dataset.errors import UserError
from pipelines.cron import to_utc

SUMMER, WINTER = (dt.datetime(2026, month, 15, tzinfo=dt.UTC) for month in (7, 1))


@pytest.mark.parametrize(
    ("cron", "zone", "moment", "expected"),
    [
        ("0 3 * * *", "UTC", SUMMER, "0 0 3 * * *"),
        ("0 3 * * *", "Europe/Berlin", SUMMER, "0 0 1 * * *"),
        ("0 3 * * *", "Europe/Berlin", WINTER, "0 0 2 * * *"),
        ("30 1 * * 1", "Europe/Berlin", SUMMER, "0 30 23 * * 0"),
        ("0 23 * * 5,6", "America/New_York", WINTER, "0 0 4 * * 0,6"),
        ("0 9 * * 7", "Asia/Tokyo", SUMMER, "0 0 0 * * 0"),
        ("15 * * * *", "Europe/Berlin", SUMMER, "0 15 * * * *"),
        ("15 9 * * *", "Asia/Kolkata", SUMMER, "0 45 3 * * *"),
        ("*/20 8-10/2 * * *", "Europe/Berlin", WINTER, "0 0,20,40 7,9 * * *"),
    ],
)
def test_an_expression_is_brought_to_utc(cron, zone, moment, expected):
    assert to_utc(cron, zone, moment) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize(("hour", "weekday"), [(0, 1), (3, 0), (12, 6), (23, 4)])
def test_the_moments_are_the_same(zone, hour, weekday):
    """Every hour of a week, by the calendar of the zone and by the expression in UTC."""
    seconds, minute, at, _, _, day = to_utc(f"30 {hour} * * {weekday}", zone, SUMMER).split()
    assert seconds == "0"
    hits = []
    for step in range(0, 7 * 24 * 60, 30):
        moment = SUMMER + dt.timedelta(minutes=step)
        if (moment.minute, moment.hour, moment.isoweekday() % 7) == (int(minute), int(at), int(day)):
            hits.append(moment.astimezone(ZoneInfo(zone)))
    (local,) = hits
    assert (local.minute, local.hour, local.isoweekday() % 7) == (30, hour, weekday)


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("0 3 * *", "UTC", "five fields"),
        ("0 24 * * *", "UTC", "'24' is no hour"),
        ("x * * * *", "UTC", "minute"),
        ("5-1 * * * *", "UTC", "minute"),
        ("0 3 0 * *", "UTC", "day"),
        ("0 1 1 * *", "Europe/Berlin", "other days"),
        ("0 1,3 * * 1", "Europe/Berlin", "other days"),
        ("15 * * * 1", "Europe/Berlin", "other days"),
        ("0,15 9 * * *", "Asia/Kolkata", None),
        ("0,40 9 * * *", "Asia/Kolkata", "a schedule for each"),
    ],
)
def test_what_cannot_be_said_is_refused(cron, zone, said):
    if said is None:
        assert to_utc(cron, zone, SUMMER) == "0 30,45 3 * * *"
        return
    with pytest.raises(UserError, match=said):
        to_utc(cron, zone, SUMMER)
