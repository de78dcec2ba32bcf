"""Where a run takes up what earlier runs have done: from when on its rows are new, and whose weights it begins with.

The registry knows it, since runs share no disk on a cluster: each run's window stands in its tags, and beside the
bundle lie the checkpoints of its arms, which are never served.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.dataset.errors import UserError
from components.dataset.window import ALL, SINCE, Since, Window
from components.registry.client import VERDICT_TAG, Registered, champion, model_name
from components.registry.connection import connect, exists, tracking_uri
from components.registry.tracking import DATASET_TAG, find_experiment
from components.run import CHAMPION, aside, write_json

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger("tandem.registry")

#: Where the checkpoints lie among a run's artefacts: a folder for each arm, and the vocabulary that they share.
CHECKPOINTS = "checkpoints"
#: End of the window (exclusive), and the first moment in it that no arm was trained on.
END_TAG, LEARNT_TAG = "tandem.window_end", "tandem.learnt_until"
#: When the newest row of its log had arrived, where rows say that; and how many rows were dated before LEARNT_TAG.
ARRIVED_TAG, BEFORE_TAG = "tandem.arrived_until", "tandem.rows_before"
FINISHED = ("promoted", "kept")


def window_of(dataset: str, asked: str) -> Window:
    """The window that a run's setting means now.

    A window since an earlier run begins where that run stopped learning: its validation and test rows are learnt now,
    and so are rows from before that arrived after it, where the log says when a row arrived.
    Where no run has come to a verdict yet it is the whole log.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        asked: The setting: all, since-last-success, since-champion, or START/END.

    Raises:
        UserError: the setting is none of these.
    """
    if asked == ALL:
        return Window()
    if asked not in SINCE:
        return Window.parse(asked)
    run = _earlier(dataset, asked)
    if run is None:
        log.info("%s: no earlier run; the window is the whole log", asked)
        return Window()
    learnt, end, arrived = (_moment(run, tag) for tag in (LEARNT_TAG, END_TAG, ARRIVED_TAG))
    before = run.data.tags.get(BEFORE_TAG)
    return Window(start=learnt, seen=end, arrived=arrived, before=int(before) if before else None)


def window_tags(meta: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which a later run finds where this one stopped; none for rows without time stamps."""
    window = meta.get("window") or {}
    said = {END_TAG: "end", LEARNT_TAG: "learnt_until", ARRIVED_TAG: "arrived_until", BEFORE_TAG: "rows_before"}
    return {tag: str(window[name]) for tag, name in said.items() if window.get(name) is not None}


def champion_checkpoints(dataset: str, wanted: bool, destination: Path) -> Path | None:
    """Fetch the checkpoints that a warm start begins with into a folder, which always holds CHAMPION afterwards.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        wanted: Whether the run starts warm at all.
        destination: The folder; of checkpoints, or of CHAMPION alone.

    Returns:
        The folder, where there is a champion to begin with.

    Raises:
        UserError: the champion's run has kept no checkpoints.
    """
    found = champion(dataset) if wanted and exists() else None
    with aside(destination) as draft:
        draft.mkdir(parents=True)
        if found is not None:
            _fetch(found, draft)
        said = {} if found is None else {"name": found.name, "version": found.version, "run_id": found.run_id}
        write_json(draft / CHAMPION, said)
    if wanted:
        log.info("warm start: %s", f"{found.name} version {found.version}" if found else "no champion yet")
    return None if found is None else destination


def _fetch(version: Registered, folder: Path) -> None:
    client = connect()
    from mlflow.artifacts import download_artifacts

    if not version.mlflow_run or not client.list_artifacts(version.mlflow_run, CHECKPOINTS):
        raise UserError(
            f"{version.name} version {version.version} has kept no checkpoints to begin with; write warm_start: false"
        )
    where = {"run_id": version.mlflow_run, "dst_path": str(folder), "tracking_uri": tracking_uri()}
    found = Path(download_artifacts(artifact_path=CHECKPOINTS, **where))
    # MLflow keeps the path among the artefacts below the folder that it is given.
    for file in list(found.iterdir()):
        file.rename(folder / file.name)
    found.rmdir()


def _earlier(dataset: str, since: Since | str) -> Run | None:
    """The run that a window follows: the champion's, or the newest that came to a verdict other than rejected."""
    name = model_name(dataset)
    if not exists():
        return None
    client = connect()
    if since == "since-champion":
        found = champion(dataset)
        run = client.get_run(found.mlflow_run) if found and found.mlflow_run else None
        return run if run is not None and END_TAG in run.data.tags else None
    experiment = find_experiment(client, name)
    if experiment is None:
        return None
    asked = f"tags.`{DATASET_TAG}` = '{name.removeprefix('tandem-')}' and tags.`{END_TAG}` != ''"
    runs = client.search_runs([experiment], asked, order_by=["start_time DESC"])
    return next((run for run in runs if run.data.tags.get(VERDICT_TAG) in FINISHED), None)


def _moment(run: Run, tag: str) -> datetime | None:
    said = run.data.tags.get(tag)
    return datetime.fromisoformat(said) if said else None
