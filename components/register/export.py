"""Writing the bundle: what is served, checked against the model that it was made from."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.bundle import (
    GOLDEN,
    ITEMS,
    MODEL,
    RANKER,
    ROW_MAPS,
    SPEC,
    VOCABULARY,
    file_digest,
    write_manifest,
)
from components.dataset.errors import UserError
from components.dataset.events import MOMENTS
from components.dataset.layout import CANDIDATE, REQUEST, InputLayout
from components.dataset.profile import PROFILES, FeatureProfile
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, USER_KEY
from components.dataset.training_set import TrainingSet
from components.dataset.vocabulary import Vocabulary
from components.register.proof import UsedPlm, prove
from components.register.settings import RunInfo
from components.run import aside, write_json

if TYPE_CHECKING:
    from components.models.base import CollaborativeModel

log = logging.getLogger("tandem.register")

Ids = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]

DEGRADATION = "degradation.json"
GOLDEN_ROWS, RANDOM_ROWS = 64, 256
#: Rows of the train part from which the features' profiles are taken.
PROFILE_ROWS = 100_000
#: Requests, of every golden and random row's item each, that a folded model is compared in.
REQUESTS = 16
#: Furthest that a probability of the ONNX model may lie from the torch model's.
TOLERANCE = 1e-5
SEED = 7
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """What a bundle is made from: the training set, the evaluation's and the candidate's folder, the PLM if any."""

    training_set: Path
    evaluation: Path
    model: Path
    plm: UsedPlm | None
    prompt_hash: str | None


def write_bundle(source: Source, output: Path, run: RunInfo) -> dict[str, Any]:
    """Export the candidate and write the bundle around it.

    Args:
        source: What it is made from.
        output: The bundle's folder.
        run: The run, its run_id given.

    Returns:
        The manifest.

    Raises:
        UserError: the candidate was trained on another training set.
        RuntimeError: the ONNX model does not give the torch model's probabilities.
        PlmFoundError: the ONNX model may hold something of the PLM.
    """
    from components.training.checkpoints import load_model

    model = load_model(source.model).eval()
    data = TrainingSet.open(source.training_set).for_model(model.reads_history)
    if model.layout != data.layout:
        raise UserError(f"{source.model}: the model was trained on another training set; run finetune again")
    with aside(output) as draft:
        draft.mkdir(parents=True)
        exported = write_model(draft, model, data.vocabulary, _golden_rows(data), source.plm)
        write_json(draft / PROFILES, _profiles(data))
        _copy(source, draft)
        _describe(draft, data.layout.width)
        return write_manifest(draft, {**_content(source, data, model, run, exported["proof"]), **exported})


def write_model(
    draft: Path, model: CollaborativeModel, vocabulary: Vocabulary, golden: pa.Table, plm: UsedPlm | None
) -> dict[str, Any]:
    """Export a model into a bundle's folder, whole and, where its backbone allows it, folded: checked and proven.

    Args:
        draft: The folder.
        model: The torch model in eval mode.
        vocabulary: Its input.
        golden: Raw columns of the rows that are written with the model's probabilities.
        plm: The PLM that it was trained with, if any.

    Returns:
        What the manifest says of it: folded and proof.

    Raises:
        RuntimeError: the ONNX model does not give the torch model's probabilities.
        PlmFoundError: the ONNX model may hold something of the PLM.
    """
    from components.models.export import export_folded, export_onnx

    export_onnx(model, draft / MODEL)
    golden_ids = vocabulary.encode({name: golden[name] for name in golden.column_names})
    ids = np.concatenate([golden_ids, random_ids(vocabulary.layout)])
    expected = torch_probabilities(model, ids)
    check_same(draft / MODEL, ids, expected)
    folded = export_folded(model, draft / ITEMS, draft / RANKER)
    if folded:
        check_folded(draft, model, ids)
    pq.write_table(golden.append_column("probability", pa.array(expected[: len(golden)])), draft / GOLDEN)
    vocabulary.save(draft / VOCABULARY)
    proof = _proof(model, draft, plm, folded)
    log.info("bundle: %d numbers, free of the PLM, ONNX within %g of torch", proof["parameters"], TOLERANCE)
    return {"folded": folded, "proof": proof}


def check_same(model: Path, ids: Ids, expected: Probabilities) -> None:
    """Compare an ONNX model's probabilities of ids [n, width] with the expected ones [n].

    Raises:
        RuntimeError: one of them is further off than TOLERANCE.
    """
    _refuse_unfaithful(model.name, onnx_probabilities(model, ids), expected)


def check_folded(bundle: Path, model: CollaborativeModel, ids: Ids) -> None:
    """Compare the folded model's probabilities with the torch model's: some rows' users and contexts with all items.

    Args:
        bundle: Folder that holds ITEMS and RANKER.
        model: The torch model.
        ids: Whole rows [n, width].

    Raises:
        RuntimeError: one of them is further off than TOLERANCE.
    """
    from components.dataset.scoring import FoldedModel

    folded = FoldedModel(bundle / ITEMS, bundle / RANKER)
    parts = folded.parts(model.layout.ids_of(CANDIDATE, ids))
    for place in np.linspace(0, len(ids) - 1, REQUESTS).astype(int):
        asked = ids[place : place + 1]
        rows = ids.copy()
        for slots in (*model.layout.fields, *model.layout.history):
            if slots.side in REQUEST:
                rows[:, slots.start : slots.stop] = asked[:, slots.start : slots.stop]
        found = folded.probabilities(model.layout.ids_of(REQUEST, asked), parts)
        _refuse_unfaithful(RANKER, found, torch_probabilities(model, rows))


def _refuse_unfaithful(name: str, found: Probabilities, expected: Probabilities) -> None:
    worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
    # A NaN compares as false, and so never passes.
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"{name}: its probabilities of {len(expected)} rows are up to {worst:.2g} away from the trained model's; "
            f"at most {TOLERANCE:g} is allowed. The export is not faithful, and nothing was registered"
        )


def torch_probabilities(model: CollaborativeModel, ids: Ids) -> Probabilities:
    """Probabilities [n] that the torch model gives for ids [n, width]."""
    import torch

    with torch.inference_mode():
        found = torch.sigmoid(model.eval()(torch.from_numpy(ids))).numpy()
    return np.asarray(found, dtype=np.float32)


def onnx_probabilities(model: Path, ids: Ids) -> Probabilities:
    """Probabilities [n] that an ONNX model gives for ids [n, width], on one thread as in the service."""
    from components.dataset.scoring import WholeModel

    return WholeModel(model).probabilities(ids)


def random_ids(layout: InputLayout, rows: int = RANDOM_ROWS) -> Ids:
    """Random ids [rows, layout.width] that fit the layout, the reserved ones too; multi fields and histories padded."""
    generator = np.random.default_rng(SEED)
    ids = np.empty((rows, layout.width), dtype=np.int64)
    for slots in (*layout.fields, *layout.history):
        drawn = generator.integers(slots.offset, slots.offset + slots.size, (rows, slots.width))
        filled = generator.integers(0 if slots in layout.history else 1, slots.width + 1, (rows, 1))
        place = np.arange(slots.width)
        if slots in layout.history:
            place = place[::-1]
        ids[:, slots.start : slots.stop] = np.where(place < filled, drawn, 0)
    return ids


def _golden_rows(data: TrainingSet) -> pa.Table:
    """Rows spread evenly over the test part: keys and every raw column that the model reads."""
    columns = list(dict.fromkeys((USER_KEY, ITEM_KEY, *data.vocabulary.columns)))
    return _spread(data.table("test", columns), GOLDEN_ROWS).combine_chunks()


def _profiles(data: TrainingSet) -> dict[str, Any]:
    """How the raw features are spread in the train part; moments are left out, they never stay the same."""
    columns = [name for name in data.vocabulary.columns if name not in {EVENT_TIMESTAMP, MOMENTS}]
    rows = _spread(data.table("train", columns), PROFILE_ROWS)
    profiles = {name: FeatureProfile.of(rows[name]) for name in columns}
    return {name: profile.to_json() for name, profile in profiles.items() if profile is not None}


def _spread(table: pa.Table, rows: int) -> pa.Table:
    """At most so many rows, spread evenly over a table."""
    return table.take(pa.array(np.unique(np.linspace(0, table.num_rows - 1, rows).astype(int))))


def _copy(source: Source, draft: Path) -> None:
    (draft / SPEC).write_bytes((source.training_set / SPEC).read_bytes())
    if (source.evaluation / DEGRADATION).is_file():
        (draft / DEGRADATION).write_bytes((source.evaluation / DEGRADATION).read_bytes())


def _proof(model: CollaborativeModel, draft: Path, plm: UsedPlm | None, folded: bool) -> dict[str, Any]:
    """The proof of the whole model, and under `folded` that of each of the files that it was cut into."""
    from components.models.export import export_folded, export_onnx

    with TemporaryDirectory() as folder:
        fresh, unlearnt = Path(folder), fresh_like(model)
        export_onnx(unlearnt, fresh / MODEL)
        proof = prove(draft / MODEL, fresh / MODEL, plm)
        if folded:
            export_folded(unlearnt, fresh / ITEMS, fresh / RANKER)
            cut = {name: prove(draft / name, fresh / name, plm) for name in (ITEMS, RANKER)}
            proof["folded"] = {name: {"tensors": found["tensors"]} for name, found in cut.items()}
        return proof


def fresh_like(model: CollaborativeModel) -> CollaborativeModel:
    """A model of the same kind, settings and input with random numbers everywhere.

    Random, not as initialised: an exporter drops what is zero and joins what is equal.
    """
    import torch

    fresh = type(model)(model.layout, model.config).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return fresh


def _describe(draft: Path, width: int) -> None:
    """Write MLmodel: the signature, and how MLflow's own tools load the model."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = Schema([TensorSpec(np.dtype(np.int64), (-1, width), "ids")])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1,), "probability")])
    described = Model(signature=ModelSignature(inputs, outputs))
    described.add_flavor("onnx", data=MODEL, onnx_version=version("onnx"), providers=["CPUExecutionProvider"])
    described.add_flavor("python_function", loader_module="mlflow.onnx", data=MODEL)
    described.save(str(draft / "MLmodel"))


def _content(
    source: Source, data: TrainingSet, model: CollaborativeModel, run: RunInfo, proof: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest says besides what it finds for itself."""
    signature = {
        "inputs": {"ids": {"type": "int64", "shape": [None, data.layout.width]}},
        "outputs": {"probability": {"type": "float32", "shape": [None]}},
    }
    return {
        "name": data.spec.name,
        "backbone": run.backbone,
        "arm": run.method,
        "run_id": run.run_id,
        "feature_service": data.meta.get("feature_service"),
        "feature_service_hash": data.meta.get("feature_service_hash"),
        "signature": signature,
        "proof": dict(proof),
        "lineage": _lineage(source, data, model, run, proof),
    }


def _lineage(
    source: Source, data: TrainingSet, model: CollaborativeModel, run: RunInfo, proof: Mapping[str, Any]
) -> dict[str, Any]:
    plm = proof["plm"] or {}
    said = partial(data.meta.get)
    return {
        "run_id": run.run_id,
        "pipeline_run": run.pipeline_run,
        "dataset": data.spec.name,
        "dataset_digest": said("dataset_digest"),
        "window": said("window"),
        "spec_digest": data.spec.digest,
        "vocabulary_digest": data.vocabulary.digest,
        "feature_service": said("feature_service"),
        "feature_service_hash": said("feature_service_hash"),
        "prompt_hash": source.prompt_hash,
        "plm": plm.get("name"),
        "plm_revision": plm.get("revision"),
        "plm_digest": plm.get("digest"),
        "row_maps": file_digest(source.model / ROW_MAPS) if (source.model / ROW_MAPS).is_file() else None,
        "backbone": run.backbone,
        "model": model.config.model_dump(mode="json"),
        "arm": run.method,
        "seed": run.seed,
        "git_commit": git_commit(),
        **{package: _installed(package) for package in ("tandem-ctr", "torch", "onnx", "onnxruntime")},
    }


def git_commit() -> str | None:
    """The commit of the code: TANDEM_GIT_COMMIT, else that of the checkout it runs from; None where there is none."""
    given = os.environ.get("TANDEM_GIT_COMMIT")
    if given or not (ROOT / ".git").exists():
        return given or None
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
