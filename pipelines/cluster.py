"""Talk with Kubeflow Pipelines through its own client: connect, start a run, follow it."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.dataset.catalog import dataset_names, locate
from components.dataset.errors import UserError
from pipelines.settings import RunSettings

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

PipelineKind = Literal["training", "materialize", "materialize+rows"]
#: Parameters of each kind that are settings; training has them all.
PARAMETERS = {"materialize": ("dataset", "validate"), "materialize+rows": ("dataset", "validate", "encode")}
#: States of a run that it does not leave any more.
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
PAGE = 100
#: File with a token for the API, as kfp's client itself reads it inside the cluster.
TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105  (the variable's name)


class Cluster:
    """One experiment of one Kubeflow Pipelines installation."""

    def __init__(
        self,
        host: str | None,
        namespace: str | None,
        experiment: str,
        account: str,
        unpinned: bool = False,
    ) -> None:
        """Connect, and make the experiment where there is none.

        Args:
            host: Address of the API; KF_PIPELINES_ENDPOINT, or what the kubeconfig leads to, if None.
            namespace: The profile's namespace on a multi-user installation.
            experiment: Name of the experiment.
            account: The service account of the runs.
            unpinned: Take an image without a digest.

        Raises:
            UserError: nobody answers there, or not to us; or the token's file is missing.
        """
        token = os.environ.get(TOKEN)
        if token and not Path(token).is_file():
            raise UserError(f"{TOKEN}: {token} is no file; write a token for the API into it, or unset the variable")
        with _errors(host):
            import kfp
            from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

            # Outside of the cluster the client looks at the variable only if it is told to.
            credentials = ServiceAccountTokenVolumeCredentials(token) if token else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # says that it needs version 2
                self.client = kfp.Client(host=host, namespace=namespace or "kubeflow", credentials=credentials)
            found = self.client.create_experiment(experiment, namespace=namespace)
        self.host, self.experiment_id, self.namespace = host, str(found.experiment_id), namespace
        self.account, self.unpinned = account, unpinned

    def call(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call a method of the client.

        Raises:
            UserError: the API cannot be reached or refuses.
        """
        with _errors(self.host):
            return function(*given, **named)

    def recurring_runs(self) -> Iterator[Any]:
        """Every recurring run of the experiment."""
        yield from self._pages(self.client.list_recurring_runs, "recurring_runs")

    def runs(self) -> Iterator[Any]:
        """Every run of the experiment, the newest first."""
        yield from self._pages(self.client.list_runs, "runs", sort_by="created_at desc")

    def _pages(self, method: Callable[..., Any], name: str, **named: Any) -> Iterator[Any]:
        token = ""
        while True:
            given = {"experiment_id": self.experiment_id, "page_token": token, "page_size": PAGE, **named}
            answer = self.call(method, **given)
            yield from getattr(answer, name) or []
            token = answer.next_page_token or ""
            if not token:
                return

    def delete_recurring_run(self, recurring_run_id: str) -> None:
        """Delete a recurring run, and leave its runs alone.

        Unless it is told otherwise Kubernetes deletes with it the Workflows that it started, one in progress and its
        exit handler too (kubeflow/pipelines#12573). The client's own method cannot tell it so.

        Raises:
            UserError: as `call` does.
        """
        delete = self.client._recurring_run_api.recurring_run_service_delete_recurring_run
        self.call(delete, recurring_run_id, propagation_policy="ORPHAN")

    def start(self, name: str, kind: PipelineKind, settings: RunSettings) -> str:
        """Start one run; its id.

        Raises:
            UserError: as `call` does, or the image is not pinned.
        """
        with compiled(kind, settings, self.unpinned) as package:
            given = {"params": parameters(kind, settings), "service_account": self.account}
            found = self.call(self.client.run_pipeline, self.experiment_id, name, str(package), **given)
        return str(found.run_id)

    def follow(self, run_id: str, tasks: Mapping[str, str], seconds: float, tell: Callable[[str], None]) -> Any:
        """Wait for a run's end, and tell each step's change of state; the run as it ended.

        Args:
            run_id: The run.
            tasks: The step that each task of the pipeline is, by the task's name.
            seconds: Between two looks.
            tell: Is told lines.

        Raises:
            UserError: as `call` does.
        """
        seen: dict[str, str] = {}
        while True:
            run = self.call(self.client.get_run, run_id)
            for task in (run.run_details.task_details if run.run_details else None) or []:
                if task.display_name in tasks and task.state and seen.get(task.task_id) != task.state:
                    seen[task.task_id] = task.state
                    tell(f"{tasks[task.display_name]}: {task.state.lower()}")
            if run.state in ENDED:
                return run
            time.sleep(seconds)


def failing_step(run: Any, tasks: Mapping[str, str]) -> str:
    """The step of a run that failed first.

    The API bears no reasons (kubeflow/pipelines#14007): those are in the step's log and in what the webhook is told.

    Args:
        run: As the API tells of it.
        tasks: The step that each task of the pipeline is, by the task's name. The API's own tasks are all of the
            Workflow's nodes: graphs, drivers and tries too, of which one that failed may have been made good.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    failed = [one for one in details if one.state == "FAILED" and one.display_name in tasks]
    if not failed:
        return (run.error.message if run.error else "") or "no step says why; see the run's graph"
    first = min(failed, key=lambda one: one.end_time.timestamp() if one.end_time else math.inf)
    return f"{tasks[first.display_name]}; see its log"


def pipeline_of(kind: PipelineKind, settings: RunSettings) -> BaseComponent:
    """What a cluster runs: the pipeline of a kind, with the settings as its defaults and its exit handler.

    Raises:
        UserError: as `check_for_cluster` does.
    """
    from pipelines.exit_handler import with_exit_handler

    return with_exit_handler(steps_of(kind, settings))


def check_for_cluster(kind: PipelineKind, settings: RunSettings) -> None:
    """Refuse what no step on a cluster could find, and settings that the pipeline would not read.

    Raises:
        UserError: the data set is neither an embedded one nor an absolute path; or a setting is of training alone.
    """
    path, _ = locate(settings.dataset)
    if settings.dataset not in dataset_names() and not path.is_absolute():
        from pipelines.policy import STATE_PATH

        raise UserError(
            f"dataset {path}: the steps would look for it in their image; put it on the volume that they share, and "
            f"write its path there, such as {STATE_PATH}/data/{path.name}"
        )
    if kind != "training":
        given = {RunSettings.model_fields[name].alias or name for name in settings.model_fields_set}
        unread = sorted(given - {"method", *PARAMETERS[kind]})
        if unread:
            raise UserError(
                f"pipeline {kind} reads the settings {', '.join(PARAMETERS[kind])} alone; leave out {', '.join(unread)}"
            )


def steps_of(kind: PipelineKind, settings: RunSettings) -> BaseComponent:
    """The pipeline of a kind without its exit handler.

    Raises:
        UserError: as `check_for_cluster` does.
    """
    check_for_cluster(kind, settings)
    from pipelines.materialize import materialize_pipeline, rows_pipeline
    from pipelines.training import training_pipeline

    if kind == "training":
        return training_pipeline(settings)
    if kind == "materialize":
        return materialize_pipeline(settings.dataset, settings.checks)
    return rows_pipeline(settings.dataset, settings.checks, settings.encode)


def parameters(kind: PipelineKind, settings: RunSettings) -> dict[str, Any]:
    """The arguments of a run."""
    given = settings.parameters()
    return given if kind == "training" else {name: given[name] for name in PARAMETERS[kind]}


@contextmanager
def compiled(kind: PipelineKind, settings: RunSettings, unpinned: bool = False) -> Iterator[Path]:
    """The compiled pipeline as a file.

    Raises:
        UserError: the image is not pinned by digest; or as `check_for_cluster` does.
    """
    from kfp import compiler

    from components.image import TRAIN_IMAGE
    from pipelines.policy import check_pinned

    if not unpinned:
        check_pinned(TRAIN_IMAGE)
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        package = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline_of(kind, settings), str(package))
        yield package


@contextmanager
def _errors(host: str | None) -> Iterator[None]:
    """Say of an error of the API what the user can do about it; the client's own prints go to stderr."""
    import kfp_server_api
    import urllib3

    try:
        with redirect_stdout(sys.stderr):
            yield
    except kfp_server_api.ApiException as error:
        hint = f"; let {TOKEN} name a file with a token for it" if error.status == 401 else ""
        raise UserError(f"Kubeflow Pipelines refuses ({error.status} {error.reason}): {error.body}{hint}") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        where = host or "KF_PIPELINES_ENDPOINT"
        raise UserError(f"Kubeflow Pipelines cannot be reached; check --host, now {where}: {error}") from None
