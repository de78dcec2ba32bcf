import shutil
import subprocess
import sys

import pytest

from components.dataset.errors import UserError
from components.registry import client
from components.registry.connection import artifact_location, connect, tracking_uri
from components.run import read_json
from tests.components.dataset.making import content
from tests.components.registry.making import add_version, promote


def test_the_same_run_twice_is_one_version(dataset):
    assert add_version(dataset, "a") == add_version(dataset, "a") == "1"
    assert add_version(dataset, "b") == "2"


def test_no_champion(dataset, tmp_path):
    add_version(dataset, "a")
    assert client.champion(dataset) is None
    assert client.champion_bundle(dataset, tmp_path / "bundle") is None
    with client.champion_of(dataset) as bundle:
        assert bundle is None


def test_the_champion_is_fetched_whole_and_named(dataset, tmp_path):
    promote(dataset, add_version(dataset, "a", "weights"), None)
    found = client.champion(dataset)
    assert (found.version, found.run_id, found.name) == ("1", "a", f"tandem-{dataset}")
    bundle = client.champion_bundle(dataset, tmp_path / "bundle")
    assert (bundle / "model.onnx").read_text() == "weights"
    assert read_json(bundle / client.REGISTERED) == {"name": f"tandem-{dataset}", "version": "1", "run_id": "a"}
    with client.champion_of(dataset) as temporary:
        assert (temporary / "model.onnx").read_text() == "weights"
    assert not temporary.exists()


def test_a_champion_whose_files_are_gone_is_said(dataset, home, tmp_path):
    promote(dataset, add_version(dataset, "a"), None)
    shutil.rmtree(home / "mlartifacts" / f"tandem-{dataset}")
    with pytest.raises(RuntimeError, match=f"tandem-{dataset} version 1: cannot fetch"):
        client.champion_bundle(dataset, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_data_set_may_be_given_by_its_file(tmp_path):
    import yaml

    path = tmp_path / "films.yaml"
    path.write_text(yaml.safe_dump(content()))
    assert client.model_name(str(path)) == client.model_name("films") == "tandem-films"
    with pytest.raises(UserError, match="no such file"):
        client.model_name(str(tmp_path / "none.yaml"))


def test_the_registry_is_under_home_unless_the_environment_says_otherwise(home, monkeypatch):
    assert tracking_uri() == f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert tracking_uri() == "http://mlflow.example:5000"
    assert artifact_location("x") is None
    for folder in ("file:///tmp/runs", "mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", folder)
        with pytest.raises(UserError, match="write sqlite:///FILE or http://HOST"):
            connect()


def test_looking_at_the_command_line_imports_no_mlflow():
    code = "import sys, components.registry.client; print([m for m in ('mlflow', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
