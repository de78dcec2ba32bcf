"""The window of a run: what its setting may say, and what is wrong with the rest."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from components.dataset.errors import UserError
from components.dataset.window import Window, check_window
from pipelines.settings import parse_settings


def test_both_ends():
    window = Window.parse("2026-05-01/2026-06-01T06:30:00+02:00")
    assert window == Window(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, 4, 30, tzinfo=UTC))
    assert window.end.tzinfo is not timezone(timedelta(hours=2))
    assert not window.everything


@pytest.mark.parametrize("text", ["2026-05-01/", "/2026-05-01"])
def test_either_end_may_be_left_out(text):
    window = Window.parse(text)
    assert (window.start is None) is text.startswith("/")
    assert (window.end is None) is text.endswith("/")


def test_the_whole_log_has_no_ends():
    assert Window().everything


@pytest.mark.parametrize("text", ["all", "since-last-success", "since-champion", "2026-05-01/2026-05-02"])
def test_what_a_setting_may_say(text):
    assert check_window(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yesterday", "is unknown; write all, since-last-success"),
        ("", "is unknown"),
        ("/", "is unknown"),
        ("2026-05-01", "is unknown"),
        ("May/June", "'May' is no moment; write 2026-05-01"),
        ("2026-05-02/2026-05-01", "ends before it begins"),
        ("2026-05-01/2026-05-01", "ends before it begins"),
    ],
)
def test_what_is_no_window_is_refused_with_what_to_write(text, message):
    with pytest.raises(UserError, match=message):
        check_window(text)


def test_what_pre_trains_does_not_start_warm():
    with pytest.raises(UserError, match="pre-trains its encoder anew each time; write warm_start: false"):
        parse_settings({"method": "srp4ctr", "warm_start": True}, [])
