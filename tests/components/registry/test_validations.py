"""What a run is held against: the validation of the newest run that came to a verdict other than rejected."""

import pytest

from components.registry import client, tracking
from components.registry.connection import connect
from components.registry.validations import VALIDATION, previous_validation


def run_of(dataset: str, run_id: str, verdict: str | None, rows: int | None) -> None:
    """A run in the registry, as the register step leaves it."""
    mlflow, name = connect(), client.model_name(dataset)
    tags = {tracking.DATASET_TAG: dataset} | ({client.VERDICT_TAG: verdict} if verdict else {})
    run = tracking.parent_run(mlflow, name, run_id, tags)
    if rows is not None:
        mlflow.log_dict(run.info.run_id, {"rows": rows}, VALIDATION)


@pytest.mark.usefixtures("home")
def test_the_newest_run_that_was_not_rejected_is_the_measure(dataset):
    assert previous_validation(dataset) is None
    run_of(dataset, "a", "promoted", 1)
    run_of(dataset, "b", "kept", 2)
    assert previous_validation(dataset) == {"rows": 2}
    run_of(dataset, "c", "rejected", 3)
    run_of(dataset, "d", None, 4)
    run_of(dataset, "e", "promoted", None)
    assert previous_validation(dataset) == {"rows": 2}


@pytest.mark.usefixtures("home")
def test_another_data_set_in_the_same_experiment_is_no_measure(dataset, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"shared-{dataset}")
    run_of("another", "a", "promoted", 1)
    assert previous_validation(dataset) is None
    run_of(dataset, "b", "promoted", 2)
    assert previous_validation(dataset) == {"rows": 2}


def test_looking_makes_no_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert previous_validation("shop") is None
    assert not list(tmp_path.rglob("*.db"))
