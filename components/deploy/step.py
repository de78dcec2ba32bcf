"""Bring the online features up to date, move the service on this machine, and build the Bento of a promoted bundle."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.dataset.bundle import MANIFEST, Bundle, BundleError
from components.dataset.catalog import load_spec
from components.dataset.spec import DatasetSpec
from components.registry.client import champion_of
from components.registry.mirror import mirror
from components.run import StepRecord, home, read_json, write_json

log = logging.getLogger("tandem.deploy")
PROMOTED = "promoted"
#: What the service imports of ours.
SOURCES = (
    "serving/*.py",
    "components/__init__.py",
    "components/run.py",
    "components/dataset/*.py",
)
PROJECT = Path(__file__).resolve().parents[2]
#: What the Bento installs; each at the version that is here, which is the one that was tested.
PACKAGES = ("bentoml", "feast[redis]", "fsspec", "msgspec", "numpy", "onnxruntime", "pyarrow", "pydantic", "pyyaml")


def deploy(bundle: Path, validated: Path, dataset: str, verdict: str, output: Path) -> dict[str, Any]:
    """Deploy a promoted bundle; for any other verdict only refresh the features of the model that stays.

    Returns:
        What was deployed: the Bento's tag, the version of each alias, and the rows materialised by view.

    Raises:
        BundleError: the bundle is not what the register step wrote.
        RuntimeError: the registry's champion cannot be fetched.
    """
    began = time.time()
    spec = load_spec(dataset)
    opened = Bundle.open(bundle)
    rows = refresh_features(spec, validated) if verdict == PROMOTED or _same_features(spec) else {}
    served = mirror(spec.name, serving_home(spec))
    write_json(home() / "serving" / "latest.json", {"dataset": spec.name})
    deployed: dict[str, Any] = {"verdict": verdict, "materialised": rows, "served": served, "bento": None}
    if verdict == PROMOTED:
        deployed["bento"] = push(opened, spec)
        log.info("deployed %s", deployed["bento"])
    else:
        log.info("verdict %s: the model that is served stays", verdict)
    write_json(output / "deployment.json", deployed)
    _track(spec, str(opened.manifest["run_id"]), began)
    return deployed


def serving_home(spec: DatasetSpec) -> Path:
    """Folder of the versions that a service on this machine follows."""
    return home() / "serving" / spec.identifier


def _same_features(spec: DatasetSpec) -> bool:
    """Whether the champion that stays reads the features that the spec defines now; true where there is none."""
    from feature_repo.definitions import feature_service_hash

    with champion_of(spec.name) as path:
        if path is None or read_json(path / MANIFEST)["feature_service_hash"] == feature_service_hash(spec):
            return True
    log.warning("the features have changed and the candidate was not promoted: the champion keeps those it was given")
    return False


def _track(spec: DatasetSpec, run_id: str, began: float) -> None:
    """Show this step under its run in MLflow, as the register step has done for those before it."""
    from components.registry import tracking
    from components.registry.client import model_name
    from components.registry.connection import connect

    client = connect()
    parent = tracking.parent_run(client, model_name(spec.name), run_id, {})
    tracking.log_steps(client, parent, [tracking.StepRun(StepRecord("deploy", began, time.time() - began, 0), {})])


def refresh_features(spec: DatasetSpec, validated: Path) -> dict[str, int]:
    """Apply the definitions to the shared store and materialise every view; keys by view."""
    from feature_repo.materialise import refresh

    return {name: view.keys for name, view in refresh(spec, validated).items()}


def push(bundle: Bundle, spec: DatasetSpec) -> str:
    """Put the bundle into the BentoML model store under `home()`, build a Bento that serves it, and return its tag.

    A step that is tried again finds what it has stored; what was left half-written is made anew.
    """
    os.environ.setdefault("BENTOML_HOME", str(home() / "bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    import bentoml

    number = re.sub(r"[^a-z0-9_.-]", "-", str(bundle.manifest["run_id"]).lower())
    tag = f"tandem-{spec.name}:{number}"
    if not _holds(tag, bundle):
        _delete(bentoml.bentos, tag)
        _delete(bentoml.models, tag)
        labels = {"arm": str(bundle.manifest["arm"]), "backbone": str(bundle.manifest["backbone"])}
        with bentoml.models.create(tag, labels=labels) as model:
            shutil.copytree(bundle.path, model.path, dirs_exist_ok=True)
    try:
        bentoml.bentos.get(tag)
    except bentoml.exceptions.BentoMLException:
        _delete(bentoml.bentos, tag)
        _pack(tag, spec.name, number)
    return tag


def _pack(tag: str, name: str, number: str) -> None:
    import bentoml

    bentoml.bentos.build(
        "serving.service:Tandem",
        name=f"tandem-{name}",
        version=number,
        build_ctx=str(PROJECT),
        include=list(SOURCES),
        python={"packages": [_pinned(package) for package in PACKAGES], "lock_packages": False},
        models=[tag],
        docker={"env": {"TANDEM_SERVE_MODEL": tag}},
    )


def _pinned(package: str) -> str:
    return f"{package}=={version(package.partition('[')[0])}"


def _holds(tag: str, bundle: Bundle) -> bool:
    """Whether the model store holds this very bundle, whole, under the tag."""
    import bentoml

    try:
        return Bundle.open(Path(bentoml.models.get(tag).path)).manifest == bundle.manifest
    except (bentoml.exceptions.BentoMLException, BundleError):
        return False


def _delete(store: Any, tag: str) -> None:
    import bentoml

    with suppress(bentoml.exceptions.NotFound):
        store.delete(tag)
