"""What has moved since the previous run is a warning by name; a first run is held against nothing."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.run import read_json
from components.validate.drift import _moved
from components.validate.profile import TOP
from components.validate.settings import ValidateSettings
from components.validate.step import validate
from tests.components.validate.making import sample_spec, small_log, write

SUMMARY = "out/summary.json"


def run(place, tables, spec=None, before=None):
    place.mkdir(exist_ok=True)
    ref = write(place, tables, spec or sample_spec())
    return validate(ref, place / "out", place / "docs", ValidateSettings(), before and read_json(before / SUMMARY))


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


def other_tags(tables):
    """A field with several values, more of them different than a profile names."""
    tables["items"].loc[tables["items"].index[::2], "tags"] += "|brand new"


def ends_earlier(tables):
    tables["impressions"] = tables["impressions"].head(len(tables["impressions"]) - 300)


MOVED = {
    "fewer rows": (fewer_rows, ["impressions: expected that there are 50% to 150%"]),
    "more rows": (more_rows, ["users: expected that there are 50% to 150%"]),
    "empty values": (empty_values, ["category are empty"]),
    "another category": (other_categories, ["share of each value of device"]),
    "other shares": (other_shares, ["share of each value of device"]),
    "another value among several": (other_tags, ["share of each value of tags"]),
    "more clicks": (more_clicks, ["share of positives"]),
    "a log that ends earlier": (ends_earlier, ["the log reaches as far"]),
}


@pytest.fixture(scope="module")
def before(sample_folder, tmp_path_factory):
    """The folder of the previous run, which is held against nothing."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder / "home"))
        assert warned(run(folder, small_log(sample_folder))) == []
    return folder


@pytest.mark.parametrize("name", MOVED)
def test_what_has_moved_is_named_and_stands_in_the_data_docs(tmp_path, tables, before, name):
    change, said = MOVED[name]
    change(tables)
    found = warned(run(tmp_path / "second", tables, before=before))
    pages = "".join(page.read_text() for page in (tmp_path / "second" / "docs" / "validations").rglob("*.html"))
    for words in said:
        assert any(words in sentence for sentence in found), found
    if change is other_categories:
        assert "the share of each value of device is within 0.1 of the previous run" in pages


def test_the_same_log_again_has_not_moved(tmp_path, tables, before):
    again = run(tmp_path / "second", tables, before=before)
    assert warned(again) == []
    assert any("previous run" in finding.words for finding in again.findings), "it was compared"


def test_another_spec_is_held_against_nothing(tmp_path, tables, before):
    other_categories(tables)
    spec = sample_spec()
    spec["split"] = {"by": "time", "ratios": [0.7, 0.15, 0.15]}
    assert warned(run(tmp_path / "second", tables, spec, before=before)) == []


def values(count):
    """A column of so many different values, each as often as the others."""
    return {"distinct": count, "mean_values": 1.0, "top": {f"v{n:03}": 1 / count for n in range(min(count, TOP))}}


@pytest.mark.parametrize("count", [1, TOP, TOP + 1, 500])
def test_nothing_has_moved_against_itself(count):
    assert set(_moved(values(count), values(count))) == {0.0}


def test_a_value_from_outside_the_most_frequent_is_seen():
    before = values(100)
    now = {**before, "top": {**dict(list(before["top"].items())[:-1]), "new": 0.3}, "mean_values": 1.0}
    assert max(_moved(now, before)) == pytest.approx(0.3 - 0.01)
    assert _moved(now, before)[-1] == pytest.approx(-0.29), "all others together have lost it"


@given(st.data())
def test_what_is_said_to_have_moved_is_no_more_than_the_truth(data):
    """Only the most frequent values are known: a difference is a lower bound of the true one, and exact within them."""
    shares = [data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=60)) for _ in range(2)]
    truths = [{f"v{n}": share / sum(drawn) for n, share in enumerate(drawn)} for drawn in shares]
    found = []
    for truth in truths:
        top = dict(sorted(truth.items(), key=lambda pair: -pair[1])[:TOP])
        found.append({"distinct": len(truth), "mean_values": 1.0, "top": top})
    names = dict.fromkeys((*found[1]["top"], *found[0]["top"]))
    for name, difference in zip(names, _moved(*found), strict=False):
        true = truths[0].get(name, 0.0) - truths[1].get(name, 0.0)
        assert abs(difference) <= abs(true) + 1e-9
        assert difference * true >= 0
        if all(name in one["top"] for one in found):
            assert difference == pytest.approx(true)
