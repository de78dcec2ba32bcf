"""Where a run takes up: the window of the newest that came to a verdict, the champion's, and its checkpoints."""

from datetime import UTC, datetime

import pytest

from components.dataset.errors import UserError
from components.dataset.window import Window
from components.registry import client, tracking
from components.registry.connection import connect
from components.registry.continuation import CHECKPOINTS, champion_checkpoints, window_of, window_tags
from components.run import read_json
from tests.components.registry.making import add_version, promote

DAYS = {"a": (1, 3), "b": (4, 6), "c": (7, 9)}


def day(number):
    return datetime(2026, 5, number, tzinfo=UTC)


def run_of(dataset, run_id, verdict, timed=True):
    """A run in the registry, as the register step leaves it; its version."""
    learnt, end = (day(number).isoformat() for number in DAYS[run_id])
    version = add_version(dataset, run_id)
    mlflow = connect()
    run = tracking.parent_run(mlflow, client.model_name(dataset), run_id, {})
    said = {"learnt_until": learnt, "end": end, "arrived_until": end, "rows_before": 7}
    tags = window_tags({"window": said} if timed else {})
    for key, value in {**tags, tracking.DATASET_TAG: dataset, client.VERDICT_TAG: verdict}.items():
        mlflow.set_tag(run.info.run_id, key, value)
    return version, run.info.run_id


@pytest.mark.usefixtures("home")
def test_a_window_begins_where_the_newest_finished_run_stopped_learning(dataset):
    assert window_of(dataset, "since-last-success") == Window()
    first, _ = run_of(dataset, "a", "promoted")
    promote(dataset, first, None)
    run_of(dataset, "b", "kept")
    run_of(dataset, "c", "rejected")
    assert window_of(dataset, "since-last-success") == Window(start=day(4), seen=day(6), arrived=day(6), before=7)
    assert window_of(dataset, "since-champion") == Window(start=day(1), seen=day(3), arrived=day(3), before=7)


@pytest.mark.usefixtures("home")
def test_without_a_champion_or_time_stamps_it_is_the_whole_log(dataset):
    version, _ = run_of(dataset, "a", "promoted", timed=False)
    assert window_of(dataset, "since-champion") == Window()
    promote(dataset, version, None)
    assert window_of(dataset, "since-champion") == Window()
    assert window_of(dataset, "since-last-success") == Window()


@pytest.mark.usefixtures("home")
def test_another_data_set_in_the_same_experiment_is_not_followed(dataset, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"shared-{dataset}")
    run_of(f"{dataset}-other", "a", "promoted")
    assert window_of(dataset, "since-last-success") == Window()


@pytest.mark.usefixtures("home")
def test_explicit_windows_ask_no_registry(dataset):
    assert window_of(dataset, "2026-05-01/2026-05-03") == Window(day(1), day(3))
    assert window_of(dataset, "all") == Window()


@pytest.mark.usefixtures("home")
def test_the_champions_checkpoints_are_fetched_with_whose_they_are(dataset, tmp_path):
    assert champion_checkpoints(dataset, True, tmp_path / "none") is None
    assert read_json(tmp_path / "none" / "champion.json") == {}
    version, run = run_of(dataset, "a", "promoted")
    promote(dataset, version, None)
    with pytest.raises(UserError, match="has kept no checkpoints"):
        champion_checkpoints(dataset, True, tmp_path / "unkept")
    for arm in ("collaborative", "candidate"):
        connect().log_text(run, f"weights of {arm}", f"{CHECKPOINTS}/{arm}/model.safetensors")
    connect().log_text(run, "{}", f"{CHECKPOINTS}/vocabulary.json")
    found = champion_checkpoints(dataset, True, tmp_path / "kept")
    said = {"name": client.model_name(dataset), "version": version, "run_id": "a"}
    assert read_json(found / "champion.json") == said
    names = sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file())
    arms = [f"{arm}/model.safetensors" for arm in ("candidate", "collaborative")]
    assert names == [arms[0], "champion.json", arms[1], "vocabulary.json"]


@pytest.mark.usefixtures("home")
def test_who_does_not_start_warm_fetches_nothing(dataset, tmp_path):
    version, _ = run_of(dataset, "a", "promoted")
    promote(dataset, version, None)
    assert champion_checkpoints(dataset, False, tmp_path / "kept") is None
    assert read_json(tmp_path / "kept" / "champion.json") == {}


def test_looking_makes_no_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert window_of("shop", "since-last-success") == Window()
    assert champion_checkpoints("shop", True, tmp_path / "kept") is None
    assert not list(tmp_path.rglob("*.db"))
