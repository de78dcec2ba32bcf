import math

import pytest

from components.registry import client, tracking
from components.registry.connection import connect
from components.run import StepRecord
from tests.components.registry.making import new_dataset


@pytest.fixture
def name():
    return client.model_name(new_dataset())


@pytest.fixture
def mlflow():
    return connect()


def data_of(mlflow, run):
    return mlflow.get_run(run.info.run_id).data


def test_a_run_is_found_again_by_its_id(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {"tandem.arm": "ctrl"})
    assert tracking.parent_run(mlflow, name, "a", {}).info.run_id == run.info.run_id
    assert tracking.parent_run(mlflow, name, "b", {}).info.run_id != run.info.run_id
    assert data_of(mlflow, run).tags["tandem.arm"] == "ctrl"


def test_an_injected_run_is_used_and_left_open(mlflow, name, monkeypatch):
    injected = mlflow.create_run(mlflow.create_experiment("kubeflow-" + name), run_name="from the backend")
    monkeypatch.setenv("MLFLOW_RUN_ID", injected.info.run_id)
    run = tracking.parent_run(mlflow, name, "a", {})
    tracking.finish(mlflow, run)
    assert run.info.run_id == injected.info.run_id
    assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
    assert data_of(mlflow, run).tags["tandem.run_id"] == "a"
    assert mlflow.get_experiment_by_name(name) is None


def test_a_run_of_ours_is_closed(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {})
    tracking.finish(mlflow, run)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_failed_run_says_where_and_why(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {})
    tracking.log_failure(mlflow, run, "align", "the loss is no number" + "!" * 9000)
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"
    tags = data_of(mlflow, run).tags
    assert tags[tracking.FAILED_STEP_TAG] == "align"
    assert tags[tracking.FAILURE_TAG].startswith("the loss is no number!")


def test_the_environment_names_the_experiment(mlflow, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team-" + name)
    run = tracking.parent_run(mlflow, name, "a", {})
    assert run.info.experiment_id == mlflow.get_experiment_by_name("team-" + name).experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("other-" + name))
    other = tracking.parent_run(mlflow, name, "a", {})
    assert other.info.experiment_id == mlflow.get_experiment_by_name("other-" + name).experiment_id


def test_files_lie_under_home(mlflow, name, home):
    run = tracking.parent_run(mlflow, name, "a", {})
    assert run.info.artifact_uri.startswith((home / "mlartifacts" / name).as_uri())


def test_figures_that_are_no_numbers_stay_out(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {})
    odd = {"none": None, "nan": math.nan, "inf": -math.inf, "yes": True, "words": "x", "list": [1.0]}
    tracking.log_figures(mlflow, run, {}, {"ctrl": {**odd, "auc": 0.7, "slices": {"a=b (c)": {"rows": 3}}}})
    assert data_of(mlflow, run).metrics == {"ctrl.auc": 0.7, "ctrl.slices.a_b _c_.rows": 3.0}


def test_slices_are_named_by_any_value(mlflow, name):
    """A field of addresses, paths or whole sentences: what a value is like must not fail the run at its end."""
    run = tracking.parent_run(mlflow, name, "a", {})
    values = ("from=https://shop.example.org/a//b", "path=/", "path=../x", "text=" + "long " * 100)
    tracking.log_figures(mlflow, run, {}, {"champion": {"slices": {value: {"rows": 3} for value in values}}})
    assert len(data_of(mlflow, run).metrics) == len(values)


def test_logged_twice_is_logged_once(mlflow, name):
    for _ in range(2):
        run = tracking.parent_run(mlflow, name, "a", {})
        tracking.log_figures(mlflow, run, {"gate": {"min_auc": 0.55}}, {"auc": 0.7})
    # A parameter of MLflow never changes: another value for it must not fail the run.
    tracking.log_figures(mlflow, mlflow.get_run(run.info.run_id), {"gate": {"min_auc": 0.6}}, {"auc": 0.8})
    assert data_of(mlflow, run).params == {"gate.min_auc": "0.55"}
    assert [point.value for point in mlflow.get_metric_history(run.info.run_id, "auc")] == [0.7, 0.8]


def test_more_than_mlflow_takes_in_one_call(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {})
    params = {f"p{i}": "x" * 7000 for i in range(150)}
    tracking.log_figures(mlflow, run, params, {f"m{i}": float(i) for i in range(1100)})
    assert len(data_of(mlflow, run).params) == 150
    assert len(data_of(mlflow, run).metrics) == 1100


def test_a_child_for_each_step(mlflow, name):
    run = tracking.parent_run(mlflow, name, "a", {})
    steps = [
        tracking.StepRun(StepRecord("align", 1000.0, 2.5, 2), {"loss": [0.5, None, 0.4]}),
        tracking.StepRun(StepRecord("finetune", 1004.0, 1.0, 0), {}),
    ]
    for _ in range(2):
        tracking.log_steps(mlflow, run, steps)
    children = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    found = {child.info.run_name: child for child in children}
    assert sorted(found) == ["align", "finetune"] and len(children) == 2
    history = mlflow.get_metric_history(found["align"].info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (3, 0.4)]
    assert (found["align"].info.start_time, found["align"].info.end_time) == (1_000_000, 1_002_500)
    assert found["align"].data.metrics["gpu_seconds"] == 5.0
    assert tracking.parent_run(mlflow, name, "a", {}).info.run_id == run.info.run_id
