"""Versions that have gained rows, in the registry: who is champion, what comes after, and the way back."""

import pytest

from components.dataset.errors import UserError
from components.registry import aliases, client
from components.registry.connection import connect
from components.registry.rows import GROWN_TAG, Outcome, add_version, put_in_place
from components.run import write_json
from tests.components.registry.making import add_version as add_trained
from tests.components.registry.making import pointed, promote, said


@pytest.fixture
def folders(tmp_path):
    """A bundle and a checkpoint, as far as the registry looks at them."""
    made = [tmp_path / name for name in ("larger", "grown")]
    for folder in made:
        folder.mkdir()
        write_json(folder / "content.json", {"folder": folder.name})
    return made


def champion_of(dataset):
    found = client.champion(dataset)
    assert found is not None
    return found


def test_more_rows_are_a_version_that_takes_its_predecessors_place(dataset, folders, tmp_path):
    promote(dataset, add_trained(dataset, "a"), None)
    base = champion_of(dataset)
    version = add_version(base, "d1", *folders, "more")
    assert pointed(dataset) == ("1", None)
    assert put_in_place(version, base) is Outcome.ADDED
    assert pointed(dataset) == ("2", "1")
    assert said(dataset) == [("promoted", "1"), ("rows added", "2")]
    # It is the same run's model still: what a later run begins with is found there.
    assert (version.run_id, version.mlflow_run) == (base.run_id, base.mlflow_run)
    assert connect().get_model_version(version.name, version.version).tags[GROWN_TAG] == "1"
    bundle = client.fetch(version, tmp_path / "fetched")
    assert (bundle / "content.json").is_file()
    assert client.find_version(connect(), version.name, "a").version == "1"


def test_the_same_rows_again_are_the_same_version(dataset, folders):
    promote(dataset, add_trained(dataset, "a"), None)
    base = champion_of(dataset)
    first = add_version(base, "d1", *folders, "more")  # and its process dies here
    again = add_version(base, "d1", *folders, "more")
    assert again == first
    assert [put_in_place(again, base), put_in_place(again, base)] == [Outcome.ADDED, Outcome.ADDED]
    assert said(dataset) == [("promoted", "1"), ("rows added", "2")]


def test_what_was_rolled_back_is_not_put_in_place_again(dataset, folders):
    promote(dataset, add_trained(dataset, "a"), None)
    base = champion_of(dataset)
    version = add_version(base, "d1", *folders, "more")
    put_in_place(version, base)
    client.rollback(dataset)
    assert pointed(dataset) == ("1", None)
    assert put_in_place(version, base) is Outcome.ROLLED_BACK
    assert pointed(dataset) == ("1", None)


def test_a_champion_that_came_meanwhile_stays(dataset, folders):
    promote(dataset, add_trained(dataset, "a"), None)
    base = champion_of(dataset)
    promote(dataset, add_trained(dataset, "b"), "1")
    assert put_in_place(add_version(base, "d1", *folders, "more"), base) is Outcome.MOVED
    assert pointed(dataset) == ("2", "1")


def test_the_way_back_may_pass_over_versions_that_gained_rows(dataset, folders):
    """A bad model that has gained rows since: one command leads to the good one before."""
    promote(dataset, add_trained(dataset, "good"), None)
    promote(dataset, add_trained(dataset, "bad"), "1")
    for digest in ("d1", "d2"):
        base = champion_of(dataset)
        put_in_place(add_version(base, digest, *folders, "more"), base)
    assert pointed(dataset) == ("4", "3")
    with pytest.raises(UserError, match="version 7 was no earlier champion; one of: 1, 2, 3"):
        client.rollback(dataset, "7")
    assert client.rollback(dataset, "1")["version"] == "1"
    assert pointed(dataset) == ("1", None)
    assert aliases.alias_version(connect(), client.model_name(dataset), "champion") == "1"
