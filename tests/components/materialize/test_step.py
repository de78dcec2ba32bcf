"""The materialize step, and its pipeline run for real through the command line."""

import json
from datetime import UTC, datetime

import pytest

from components.dataset.errors import UserError
from components.dataset.window import parsed
from tests.pipelines.shop import tandem, write_shop


def test_moments_are_understood():
    assert parsed("") is None
    assert parsed("2026-05-31T18:30:00Z") == parsed("2026-05-31 18:30") == datetime(2026, 5, 31, 18, 30, tzinfo=UTC)
    with pytest.raises(UserError, match="end 'tomorrow' is no moment; write it as 2026"):
        parsed("tomorrow")


@pytest.mark.slow
def test_the_second_time_there_is_nothing_to_write(tmp_path):
    """A command, a compiled pipeline, two steps each in its process: nothing is trained for it."""
    spec, home = write_shop(tmp_path), tmp_path / "home"
    spec.write_text(spec.read_text() + "\nactivity: {windows: [1d]}\n")
    reports = []
    for words in ((), ("--end", "2999-01-01")):
        done = tandem("materialize", "--dataset", spec, "--json", *words, home=home)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = reports
    assert first["user_profile"] == {"keys": 60, "written": 60, "newest": None, "age_seconds": None}
    assert [view["keys"] for view in second.values()] == [view["keys"] for view in first.values()]
    assert {view["written"] for view in second.values()} == {0}
    assert second["user_activity"]["age_seconds"] > first["user_activity"]["age_seconds"] > 0
    assert not (home / "mlflow.db").exists()
