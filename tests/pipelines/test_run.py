"""The real chain on a user's own files: every step in its process, then the service and the registry."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from components.dataset.bundle import Bundle
from components.registry.mirror import read_aliases
from tests.pipelines.shop import QUICKLY, tandem, write_shop, write_spec

pytestmark = pytest.mark.slow


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture
def ran(shop):
    """The shop's folder after one run, and what the run printed last."""
    return shop, json.loads((shop / "first.json").read_text())


def test_both_arms_are_measured_and_one_is_promoted(ran):
    _, result = ran
    assert set(result["arms"]) == {"collaborative", "ctrl"}
    for arm in result["arms"].values():
        assert 0 < arm["auc"] < 1
        assert arm["logloss"] > 0
        assert {"cold", "warm", "new_users", "new_items"} <= set(arm["slices"])
    assert result["run_id"] == "first"
    assert result["verdict"] == "promoted"
    assert result["model_version"] == "1"
    assert "no champion" in result["reasons"][0]


def test_every_path_that_is_named_exists(ran):
    _, result = ran
    for name, path in result["paths"].items():
        assert Path(path).exists(), name
    assert "<html" in Path(result["paths"]["report"]).read_text()[:1000]


def test_the_webhook_is_told_the_gate_card_once(ran):
    folder, result = ran
    (told,) = json.loads((folder / "told.json").read_text())
    assert (told["event"], told["verdict"], told["run_id"]) == ("judged", "promoted", "first")
    assert told["text"] == Path(result["paths"]["gate_card"]).read_text()


def test_the_ledger_counts_what_every_step_cost(ran):
    _, result = ran
    cost = json.loads((Path(result["paths"]["evaluation"]) / "lift.json").read_text())["cost"]
    steps = {"validate", "retrieve", "prompt_transform", "encode", "align", "finetune-collaborative", "finetune-ctrl"}
    assert set(cost["steps"]) == steps
    assert all(seconds > 0 for seconds in cost["steps"].values())
    assert cost["alignment_seconds"] > 0


def test_what_is_served_holds_no_language_model(ran):
    folder, _ = ran
    served = read_aliases(folder / "home/serving/shop")["champion"]
    bundle = Bundle.open(folder / "home/serving/shop" / served)
    assert bundle.manifest["arm"] == "ctrl"
    assert bundle.spec.name == "shop"


def test_nothing_is_pickled(ran):
    folder, _ = ran
    found = [path for path in (folder / "home").rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".joblib"}]
    assert not found


def test_the_registry_tells_what_happened(ran):
    folder, _ = ran
    done = tandem("registry", "history", "--dataset", "shop", home=folder / "home")
    (move,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (move["action"], move["version"], move["run_id"]) == ("promoted", "1", "first")


def test_the_same_run_again_is_a_tie_and_encodes_nothing(followed):
    """Same seed, same rows: the candidate equals the champion to the last digit, and the champion stays."""
    first, again = followed.first, followed.again
    assert {arm: m["auc"] for arm, m in again["arms"].items()} == {arm: m["auc"] for arm, m in first["arms"].items()}
    assert again["verdict"] == "kept"
    assert "tie" in again["reasons"][0]
    encoded = next(line for line in Path(again["paths"]["log"]).read_text().splitlines() if "texts encoded" in line)
    assert re.search(r" 0 texts encoded", encoded), encoded
    history = tandem("registry", "history", "--dataset", "shop", home=followed.folder / "home").stdout.splitlines()
    assert "again" not in [json.loads(move)["run_id"] for move in history]


def test_mlflow_knows_the_run_its_steps_and_what_encoding_cost(ran):
    folder, result = ran
    client = MlflowClient(f"sqlite:///{folder / 'home/mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "tandem-shop"]
    runs = client.search_runs([experiment.experiment_id], "tags.`tandem.run_id` = 'first'")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.data.metrics["ctrl.auc"] == pytest.approx(result["arms"]["ctrl"]["auc"])
    assert parent.data.metrics["encode.misses"] > 0
    assert parent.data.metrics["encode.hits"] == 0
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    steps = ["validate", "retrieve", "prompt_transform", "encode", "align", "finetune-collaborative", "finetune-ctrl"]
    assert sorted(child.info.run_name for child in children) == sorted([*steps, "evaluate", "register", "deploy"])
    assert all(child.data.metrics["seconds"] > 0 for child in children)


def test_a_run_id_is_used_once(ran):
    folder, _ = ran
    done = tandem("run", "--dataset", folder / "shop.yaml", "--run-id", "first", home=folder / "home")
    assert done.returncode == 2
    assert "--run-id first" in done.stderr


def test_a_log_without_time_stamps(tmp_path):
    """A random split, no window, no history; values that hold for ever."""
    write_shop(tmp_path)
    text = (tmp_path / "clicks.csv").read_text().splitlines()
    rows = [line.split(",") for line in text]
    (tmp_path / "clicks.csv").write_text("".join(",".join([*row[:2], *row[3:]]) + "\n" for row in rows))
    spec = write_spec(tmp_path, keys={"user": "customer", "item": "sku"}, split={"by": "random"})
    arguments = ["--dataset", spec, "--method", "collaborative", "--json", *QUICKLY]
    result = result_of(tandem("run", *arguments, home=tmp_path / "home"))
    assert (set(result["arms"]), result["verdict"]) == ({"collaborative"}, "promoted")
    assert read_aliases(tmp_path / "home/serving/shop")["champion"] == "1"


def test_a_fault_in_a_step_is_named(ran, tmp_path):
    """A step that fails by no fault of the user's: exit code 1, the step and the log are named."""
    folder, _ = ran
    blocked = tmp_path / "home"
    blocked.mkdir()
    (blocked / "encodings").write_text("a file where a folder must be")
    done = tandem("run", "--dataset", folder / "shop.yaml", "--run-id", "blocked", *QUICKLY, home=blocked)
    assert done.returncode in {1, 2}
    assert "encod" in done.stderr.splitlines()[-1]
    client = MlflowClient(f"sqlite:///{blocked / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "tandem-shop"]
    (failed,) = client.search_runs([experiment.experiment_id])
    assert failed.info.status == "FAILED"
    assert (failed.data.tags["tandem.run_id"], failed.data.tags["tandem.failed_step"]) == ("blocked", "encode")
    assert "encod" in failed.data.tags["tandem.failure"]
    assert failed.data.params["backbone"] == "autoint"
    assert not client.search_registered_models()
    assert yaml.safe_load((folder / "shop.yaml").read_text())["name"] == "shop"
