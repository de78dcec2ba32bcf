"""What has moved since the previous run is a warning by name; a first run is held against nothing."""

from __future__ import annotations

import pandas as pd
import pytest

from components.dataset.errors import ValidationStoppedError
from components.validate.settings import ValidateSettings
from components.validate.step import validate
from tests.components.validate.making import sample_spec, write


def run(place, tables, spec=None, **settings):
    place.mkdir(exist_ok=True)
    ref = write(place, tables, spec or sample_spec())
    return validate(ref, place / "out", place / "docs", ValidateSettings(**settings))


def warned(summary):
    return [finding.sentence for finding in summary.failed if "previous run" in finding.words]


def fewer_rows(tables):
    tables["impressions"] = tables["impressions"].tail(len(tables["impressions"]) // 3)


def more_rows(tables):
    tables["users"] = pd.concat([tables["users"], tables["users"].assign(user=lambda t: t["user"] + "x")])


def empty_values(tables):
    tables["items"].loc[tables["items"].index[::3], "category"] = None


def other_categories(tables):
    tables["impressions"]["device"] = "fridge"


def other_shares(tables):
    first = tables["impressions"]["device"].iloc[0]
    tables["impressions"].loc[tables["impressions"].index[: int(0.8 * len(tables["impressions"]))], "device"] = first


def dearer(tables):
    number = next(name for name, column in tables["items"].items() if column.dtype.kind == "f")
    tables["items"][number] *= 3


def more_clicks(tables):
    clicks = tables["impressions"]
    label = next(name for name in ("clicked", "label", "click") if name in clicks)
    clicks.loc[clicks.index[::2], label] = 1


def ends_earlier(tables):
    tables["impressions"] = tables["impressions"].head(len(tables["impressions"]) - 300)


MOVED = {
    "fewer rows": (fewer_rows, ["impressions: expected that there are 50% to 150%"]),
    "more rows": (more_rows, ["users: expected that there are 50% to 150%"]),
    "empty values": (empty_values, ["category are empty"]),
    "another category": (other_categories, ["shares of the values of device"]),
    "other shares": (other_shares, ["shares of the values of device"]),
    "more clicks": (more_clicks, ["share of positives"]),
    "a log that ends earlier": (ends_earlier, ["the log reaches as far"]),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_has_moved_is_named(tmp_path, tables, name):
    assert warned(run(tmp_path / "first", tables)) == []
    change, said = MOVED[name]
    change(tables)
    found = warned(run(tmp_path / "second", tables))
    for words in said:
        assert any(words in sentence for sentence in found), found


def test_the_same_log_again_has_not_moved(tmp_path, tables):
    run(tmp_path / "first", tables)
    again = run(tmp_path / "second", tables)
    assert warned(again) == []
    assert any("previous run" in finding.words for finding in again.findings), "it was compared"


def test_another_spec_is_held_against_nothing(tmp_path, tables):
    run(tmp_path / "first", tables)
    other_categories(tables)
    spec = sample_spec()
    spec["split"] = {"by": "time", "ratios": [0.7, 0.15, 0.15]}
    assert warned(run(tmp_path / "second", tables, spec)) == []


def test_a_run_that_was_stopped_is_no_measure_for_the_next(tmp_path, tables):
    run(tmp_path / "first", tables)
    spoilt = {name: table.copy() for name, table in tables.items()}
    other_categories(spoilt)
    with pytest.raises(ValidationStoppedError, match="device"):
        run(tmp_path / "second", spoilt, stop_on="warning")
    assert warned(run(tmp_path / "third", tables)) == []
