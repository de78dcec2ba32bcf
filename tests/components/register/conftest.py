"""A small trained model, its evaluation, and a bundle, made once: the export takes seconds."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from components.dataset.training_set import TrainingSet, write_training_set
from components.run import write_json
from tests.components.dataset.making import rows, spec_of
from tests.components.register.making import lines, metrics
from tests.components.registry.making import own_registry


@dataclass(frozen=True)
class Made:
    """Folders of the steps before, and of the bundle."""

    training_set: Path
    model: Path
    evaluation: Path
    bundle: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    import torch

    from components.models.config import BackboneConfig
    from components.models.registry import build_backbone
    from components.training.checkpoints import save_model

    folder = tmp_path_factory.mktemp("made")
    found = Made(*(folder / name for name in ("training_set", "model", "evaluation", "bundle")))
    parts: dict[str, pa.Table] = {"train": rows(200), "valid": rows(40), "test": rows(100)}
    meta = {"feature_service": "ctr_films", "feature_service_hash": "f" * 64, "dataset_digest": "d" * 64}
    write_training_set(found.training_set, spec_of(), parts, meta)
    torch.manual_seed(0)
    config = BackboneConfig(embedding_dim=4, hidden=(8, 4))
    model = build_backbone("wide_deep", TrainingSet.open(found.training_set).layout, config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) - 0.3 if tensor.ndim > 1 else torch.rand_like(tensor))
    curve = {"arm": "ctrl", "best_epoch": 1, "history": [{"epoch": 1, "train_loss": 0.5, "valid_auc": 0.7}]}
    save_model(found.model, model, {"arm": "ctrl"}, {"curve.json": curve})
    found.evaluation.mkdir()
    write_json(found.evaluation / "metrics.json", metrics())
    write_json(found.evaluation / "curves.json", {"arms": {"ctrl": lines()}, "champion": None})
    write_json(
        found.evaluation / "degradation.json", {"rows": 0, "table": [], "defaults": {}, "notes": [], "complete": {}}
    )
    return found


@pytest.fixture(scope="session")
def bundle(made) -> Path:
    """The bundle of the made model, by a run named 'made'."""
    from components.register.export import Source, write_bundle
    from components.register.settings import RunInfo

    run = RunInfo(run_id="made", dataset="films", method="ctrl", backbone="wide_deep", seed=1)
    write_bundle(Source(made.training_set, made.evaluation, made.model, None, "p" * 64), made.bundle, run)
    return made.bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with own_registry(tmp_path_factory.mktemp("home")) as folder:
        yield folder
