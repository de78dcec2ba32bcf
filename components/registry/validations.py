"""What validation found in the runs before: the registry keeps it, since steps share no disk on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components.registry.client import VERDICT_TAG, model_name
from components.registry.connection import connect, exists
from components.registry.tracking import DATASET_TAG, find_experiment

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: The validate step's summary among a run's artefacts.
VALIDATION = "validation.json"
REJECTED = "rejected"


def previous_validation(dataset: str) -> dict[str, Any] | None:
    """The validation's summary of the newest run that was not rejected; None where there is none.

    A run that was stopped, failed or was rejected is no measure for the next.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
    """
    name = model_name(dataset)
    if not exists():
        return None
    client = connect()
    experiment = find_experiment(client, name)
    if experiment is None:
        return None
    asked = f"tags.`{DATASET_TAG}` = '{name.removeprefix('tandem-')}' and tags.`{VERDICT_TAG}` != '{REJECTED}'"
    for run in client.search_runs([experiment], asked, order_by=["start_time DESC"]):
        if any(file.path == VALIDATION for file in client.list_artifacts(run.info.run_id)):
            return _read(client, run.info.run_id)
    return None


def _read(client: MlflowClient, run_id: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="tandem-validation-") as folder:
        path = client.download_artifacts(run_id, VALIDATION, folder)
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found
