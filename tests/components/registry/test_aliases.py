import subprocess
import sys

import pytest

from components.dataset.errors import UserError
from components.registry import aliases, client
from components.registry.connection import connect
from tests.components.registry.making import add_version, new_dataset, pointed, promote, said


def test_the_first_champion_has_no_predecessor(dataset):
    promote(dataset, add_version(dataset, "a"), None)
    assert pointed(dataset) == ("1", None)
    assert said(dataset) == [("promoted", "1")]


def test_each_promotion_keeps_the_one_before(dataset):
    for number, run_id in enumerate("abc"):
        promote(dataset, add_version(dataset, run_id), str(number) if number else None)
    assert pointed(dataset) == ("3", "2")
    assert [move["previous"] for move in client.history(dataset)] == [None, "1", "2"]
    assert [move["number"] for move in client.history(dataset)] == [1, 2, 3]


def test_a_champion_that_was_not_compared_with_stays(dataset):
    promote(dataset, add_version(dataset, "a"), None)
    promote(dataset, add_version(dataset, "b"), "1")
    version = add_version(dataset, "c")
    with pytest.raises(aliases.ChampionMovedError, match="version 2") as caught:
        promote(dataset, version, "1")
    assert caught.value.champion == "2"
    assert pointed(dataset) == ("2", "1")
    assert said(dataset) == [("promoted", "1"), ("promoted", "2")]


def test_promoted_twice_is_promoted_once(dataset):
    version = add_version(dataset, "a")
    promote(dataset, version, None)
    promote(dataset, add_version(dataset, "b"), version)
    promote(dataset, version, None)  # the first run, tried again after the second one was done
    assert pointed(dataset) == ("2", "1")
    assert len(said(dataset)) == 2


def test_the_champion_alias_is_written_last(dataset, monkeypatch):
    promote(dataset, add_version(dataset, "a"), None)
    version = add_version(dataset, "b")
    written = []
    mlflow = connect()
    set_alias = type(mlflow).set_registered_model_alias

    def spy(self, name, alias, number):
        written.append(alias)
        set_alias(self, name, alias, number)

    monkeypatch.setattr(type(mlflow), "set_registered_model_alias", spy)
    aliases.claim(mlflow, client.model_name(dataset), version, "1", "b")
    assert written == []  # what was claimed is in the log only
    assert said(dataset)[-1] == ("promoted", "2")
    aliases.settle(mlflow, client.model_name(dataset))
    assert written == ["previous_champion", "champion"]


def test_who_comes_next_finishes_a_move_that_was_cut_off(dataset):
    mlflow, name = connect(), client.model_name(dataset)
    promote(dataset, add_version(dataset, "a"), None)
    aliases.claim(mlflow, name, add_version(dataset, "b"), "1", "b")  # and its process dies here
    assert pointed(dataset) == ("1", None)
    with pytest.raises(aliases.ChampionMovedError):
        promote(dataset, add_version(dataset, "c"), "1")
    assert pointed(dataset) == ("2", "1")


def test_rollback_goes_back_one_champion_at_a_time(dataset):
    for number, run_id in enumerate("abc"):
        promote(dataset, add_version(dataset, run_id), str(number) if number else None)
    assert client.rollback(dataset)["version"] == "2"
    assert pointed(dataset) == ("2", "1")
    client.rollback(dataset)
    assert pointed(dataset) == ("1", None)
    with pytest.raises(UserError, match="no earlier champion"):
        client.rollback(dataset)
    assert said(dataset)[-2:] == [("rolled back", "2"), ("rolled back", "1")]


def test_rollback_after_a_new_promotion_skips_what_was_rolled_back(dataset):
    promote(dataset, add_version(dataset, "a"), None)
    promote(dataset, add_version(dataset, "b"), "1")
    client.rollback(dataset)
    promote(dataset, add_version(dataset, "c"), "1")
    assert pointed(dataset) == ("3", "1")
    client.rollback(dataset)
    assert pointed(dataset) == ("1", None)


def test_rollback_passes_over_deleted_versions(dataset):
    for number, run_id in enumerate("abc"):
        promote(dataset, add_version(dataset, run_id), str(number) if number else None)
    connect().delete_model_version(client.model_name(dataset), "2")
    client.rollback(dataset)
    assert pointed(dataset) == ("1", None)


def test_rollback_without_any_model(dataset):
    with pytest.raises(UserError, match="no earlier champion"):
        client.rollback(dataset)
    assert client.history(dataset) == []


def test_an_alias_moved_by_hand_is_respected_and_enters_the_log(dataset):
    mlflow, name = connect(), client.model_name(dataset)
    promote(dataset, add_version(dataset, "a"), None)
    promote(dataset, add_version(dataset, "b"), "1")
    mlflow.set_registered_model_alias(name, "champion", "1")
    promote(dataset, add_version(dataset, "c"), "1")
    assert said(dataset)[2:] == [("moved by hand", "1"), ("promoted", "3")]
    assert pointed(dataset) == ("3", "1")
    mlflow.delete_registered_model_alias(name, "champion")
    promote(dataset, add_version(dataset, "d"), None)
    assert said(dataset)[4:] == [("moved by hand", None), ("promoted", "4")]


CHALLENGER = """
import sys
from pathlib import Path
from components.registry.aliases import ChampionMovedError
from tests.components.registry.making import add_version, promote
run_id, meetings, *datasets = sys.argv[1:]
for dataset in datasets:
    version = add_version(dataset, run_id)
    Path(meetings, f"{dataset}.{run_id}").touch()
    while len(list(Path(meetings).glob(f"{dataset}.*"))) < 2:
        pass
    try:
        promote(dataset, version, "1")
        print("promoted", version)
    except ChampionMovedError as error:
        print("kept", version, error.champion)
"""
ROUNDS = 6


def test_of_two_processes_one_wins_and_nothing_is_lost(tmp_path):
    datasets = [new_dataset() for _ in range(ROUNDS)]
    for dataset in datasets:
        promote(dataset, add_version(dataset, "first"), None)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHALLENGER, run_id, tmp_path, *datasets], stdout=subprocess.PIPE, text=True
        )
        for run_id in ("left", "right")
    ]
    told = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for dataset, *lines in zip(datasets, *told, strict=True):
        (kept, loser, seen), (promoted, winner) = sorted(line.split() for line in lines)
        assert (kept, promoted, seen) == ("kept", "promoted", winner)
        assert {winner, loser} == {"2", "3"}
        assert pointed(dataset) == (winner, "1")
        assert said(dataset) == [("promoted", "1"), ("promoted", winner)]
        name = client.model_name(dataset)
        assert {client.find_version(connect(), name, run_id).version for run_id in ("left", "right")} == {"2", "3"}
