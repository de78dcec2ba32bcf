"""The mirror of the registry, on a registry of SQLite."""

from __future__ import annotations

import pytest

from components.registry import aliases, client
from components.registry.connection import connect
from components.registry.mirror import mirror, read_aliases
from tests.components.registry.making import add_version, new_dataset, promote


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mirror"


def held(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_it_follows_promotion_and_rollback(folder):
    dataset = new_dataset()
    assert mirror(dataset, folder) == {"champion": None, "candidate": None}
    promote(dataset, add_version(dataset, "a", "first weights"), None)
    promote(dataset, add_version(dataset, "b", "second weights"), "1")
    connect().set_registered_model_alias(client.model_name(dataset), aliases.CANDIDATE, "1")
    assert mirror(dataset, folder) == read_aliases(folder) == {"champion": "2", "candidate": "1"}
    assert (folder / "2" / "model.onnx").read_text() == "second weights"
    assert (folder / "1" / "model.onnx").read_text() == "first weights"
    client.rollback(dataset)
    assert mirror(dataset, folder)["champion"] == "1"


def test_a_version_that_cannot_be_fetched_leaves_the_folder_as_it_was(folder, tmp_path):
    dataset = new_dataset()
    promote(dataset, add_version(dataset, "a", "weights"), None)
    mirror(dataset, folder)
    version = connect().create_model_version(
        client.model_name(dataset), str(tmp_path / "nowhere"), await_creation_for=0
    )
    promote(dataset, version.version, "1")
    with pytest.raises(RuntimeError, match="cannot fetch"):
        mirror(dataset, folder)
    assert read_aliases(folder)["champion"] == "1"
    assert held(folder) == ["1"]


def test_old_versions_are_tidied_away_and_pinned_ones_stay(folder):
    dataset = new_dataset()
    champion = None
    for number in range(7):
        version = add_version(dataset, f"run-{number}", "weights")
        promote(dataset, version, champion)
        champion = version
        mirror(dataset, folder, pinned="2" if number else None)
    assert held(folder) == ["2", "4", "5", "6", "7"]
