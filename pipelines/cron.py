"""Cron expressions of a time zone as the controller of Kubeflow Pipelines reads them: six fields, in UTC."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from components.dataset.errors import UserError

#: Of minute, hour, day of the month, month, day of the week: what a value may be.
BOUNDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}
DAY = 24 * 60


def to_utc(cron: str, time_zone: str, moment: datetime) -> str:
    """The expression in UTC with the zone's offset at a moment; it holds until the zone's clocks change.

    The controller has one time zone for all recurring runs, UTC unless its CRON_SCHEDULE_TIMEZONE says otherwise, and
    its parser takes no zone in an expression.

    Args:
        cron: Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday).
        time_zone: Name of a zone, such as Europe/Berlin.
        moment: With a time zone.

    Raises:
        UserError: the expression is none, or what it says of days cannot be said in UTC.
    """
    texts = dict(zip(BOUNDS, _fields(cron), strict=True))
    values = {name: _values(name, text, cron) for name, text in texts.items()}
    values["weekday"] = {day % 7 for day in values["weekday"]}
    offset = moment.astimezone(ZoneInfo(time_zone)).utcoffset()
    minutes = int(offset.total_seconds()) // 60 if offset else 0
    whole_days = texts["hour"] == "*" and minutes % 60 == 0
    restricted = [name for name in ("day", "month", "weekday") if texts[name] != "*"]
    if not minutes or (whole_days and not restricted):
        return " ".join(("0", *texts.values()))
    return _shifted(texts, values, minutes, restricted, cron)


def _shifted(texts: dict[str, str], values: dict[str, set[int]], minutes: int, restricted: list[str], cron: str) -> str:
    times = {60 * hour + minute - minutes for hour in values["hour"] for minute in values["minute"]}
    days = {time // DAY for time in times}
    at = {time % 60 for time in times}, {time % DAY // 60 for time in times}
    if len(times) != len(at[0]) * len(at[1]):
        raise UserError(f"cron '{cron}': these times are no hours and minutes in UTC; write a schedule for each")
    if days != {0} and (restricted not in ([], ["weekday"]) or (restricted and len(days) > 1)):
        raise UserError(f"cron '{cron}': in UTC this falls on other days; write time_zone: UTC and the days there")
    weekday = texts["weekday"]
    if weekday != "*":
        weekday = _text({(day + min(days)) % 7 for day in values["weekday"]})
    return " ".join(("0", *map(_text, at), texts["day"], texts["month"], weekday))


def _fields(cron: str) -> list[str]:
    fields = cron.split()
    if len(fields) != len(BOUNDS):
        raise UserError(f"cron '{cron}': write five fields, such as '0 3 * * *' for three o'clock every day")
    return fields


def _values(name: str, text: str, cron: str) -> set[int]:
    """The values of a field: numbers, ranges, steps and lists of them."""
    low, high = BOUNDS[name]
    found: set[int] = set()
    try:
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
            stop = int(last or (high if step else first))
            found |= set(range(int(first), stop + 1, int(step or 1)))
            if not low <= int(first) <= stop <= high:
                raise ValueError
    except ValueError:
        raise UserError(f"cron '{cron}': '{text}' is no {name} from {low} to {high}") from None
    return found


def _text(values: set[int]) -> str:
    return ",".join(map(str, sorted(values)))
