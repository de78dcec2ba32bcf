"""The deploy step on a real bundle, a real BentoML store and a real online store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.pipelines.shop import ROOT


@pytest.fixture
def inputs(shop, tmp_path):
    """What the register and validate steps of a finished run left, the spec, and a folder for a home of its own."""
    return *left_by(shop), tmp_path


def left_by(shop):
    (bundle,) = shop.glob("home/runs/first/artifacts/*/register/bundle")
    (validated,) = shop.glob("home/runs/first/artifacts/*/validate/validated")
    return bundle, validated, str(shop / "shop.yaml")


def deploy(bundle, validated, dataset, verdict, folder, fails=False):
    """Run the step in a process of its own, as a pipeline does: BentoML reads its home once in a process."""
    code = "import sys; from pathlib import Path; from components.deploy.step import deploy; a = sys.argv; "
    code += "deploy(Path(a[1]), Path(a[2]), a[3], a[4], Path(a[5]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TANDEM_HOME": str(folder / "home")}
    environment.pop("BENTOML_HOME", None)
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(dataset).parent / 'home' / 'mlflow.db'}"
    command = [sys.executable, "-c", code, bundle, validated, dataset, verdict, folder / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if fails:
        assert done.returncode, "it was to fail"
        return done.stderr
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out/deployment.json").read_text())


def online_user(folder):
    from feast import FeatureStore

    store = FeatureStore(fs_yaml_file=folder / "home" / "feast" / "shop.yaml")
    answer = store.get_online_features(features=["user_profile:gender"], entity_rows=[{"user_id": "c0"}])
    return answer.to_dict()["gender"]


@pytest.fixture(scope="module")
def promoted(shop, tmp_path_factory):
    """The inputs of a promoted bundle, after the step has run once, and what it told."""
    folder = tmp_path_factory.mktemp("promoted")
    inputs = left_by(shop)
    return (*inputs, folder, deploy(*inputs, "promoted", folder))


def test_a_promoted_bundle_is_pushed_and_packed(promoted):
    bundle, _, _, folder, deployed = promoted
    assert (deployed["bento"], deployed["served"]) == ("tandem-shop:first", {"champion": "1", "candidate": None})
    stored = folder / "home/bentoml/models/tandem-shop/first"
    assert (stored / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert json.loads((folder / "home/serving/latest.json").read_text()) == {"dataset": "shop"}
    mirrored = folder / "home/serving/shop"
    assert json.loads((mirrored / "aliases.json").read_text()) == deployed["served"]
    assert (mirrored / "1" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert online_user(folder) in (["F"], ["M"])


def test_the_bento_holds_the_service_and_nothing_of_training(promoted):
    folder = promoted[3]
    bento = folder / "home/bentoml/bentos/tandem-shop/first"
    requirements = (bento / "env/python/requirements.txt").read_text()
    assert f"onnxruntime=={version('onnxruntime')}" in requirements
    assert f"feast[redis]=={version('feast')}" in requirements
    assert "torch" not in requirements
    packed = {path.relative_to(bento / "src").as_posix() for path in (bento / "src").rglob("*.py")}
    assert "serving/service.py" in packed
    assert not [path for path in packed if path.startswith(("components/models", "components/training", "pipelines"))]
    described = yaml.safe_load((bento / "bento.yaml").read_text())
    assert described["models"][0]["tag"] == "tandem-shop:first"


@pytest.mark.parametrize("verdict", ["kept", "rejected"])
def test_any_other_verdict_leaves_the_model_and_refreshes_the_features(inputs, verdict):
    bundle, validated, dataset, folder = inputs
    deployed = deploy(bundle, validated, dataset, verdict, folder)
    assert (deployed["bento"], deployed["served"]["champion"]) == (None, "1")
    assert deployed["materialised"]["user_profile"] == 60
    assert online_user(folder) in (["F"], ["M"])
    assert not (folder / "home/bentoml").exists()


def test_features_of_a_champion_that_stays_do_not_change(inputs, shop):
    """A spec that defines other features than the champion's, whose candidate was not promoted."""
    bundle, validated, _, folder = inputs
    spec = yaml.safe_load((shop / "shop.yaml").read_text())
    spec["fields"][1]["name"], spec["fields"][1]["column"] = "sex", "gender"
    changed = shop / "changed.yaml"
    changed.write_text(yaml.safe_dump(spec))
    deployed = deploy(bundle, validated, str(changed), "kept", folder)
    assert deployed["materialised"] == {}
    assert not (folder / "home/feast").exists()


def test_twice_is_once_and_half_is_made_whole(promoted):
    bundle, validated, dataset, folder, once = promoted
    again = deploy(bundle, validated, dataset, "promoted", folder)
    assert once == again
    stores = folder / "home/bentoml"
    model = stores / "models/tandem-shop/first/model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    deploy(bundle, validated, dataset, "promoted", folder)
    assert model.read_bytes() == (bundle / "model.onnx").read_bytes()
    assert [path.name for path in (stores / "models/tandem-shop").iterdir() if path.is_dir()] == ["first"]
    assert [path.name for path in (stores / "bentos/tandem-shop").iterdir() if path.is_dir()] == ["first"]


def test_a_bundle_that_has_changed_since_is_refused(inputs):
    bundle, validated, dataset, folder = inputs
    shutil.copytree(bundle, folder / "bundle")
    model = folder / "bundle" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    message = deploy(folder / "bundle", validated, dataset, "promoted", folder, fails=True)
    assert "model.onnx" in message
    assert not (folder / "home/serving").exists()
    assert not (folder / "home/bentoml").exists()
