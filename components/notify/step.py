"""The exit handler of a run on the cluster: tell the webhook how it ended, also where a step was killed."""

from __future__ import annotations

from collections.abc import Mapping

from components.notify.report import report, said
from components.notify.workflow import failures, nodes_of
from components.run import run_dir

#: Its own name among the Workflow's tasks.
TASK = "notify"


def notify(workflow: str, namespace: str, tasks: Mapping[str, str]) -> None:
    """Tell how the run ended.

    Args:
        workflow: Name of the run's Argo Workflow.
        namespace: Where it is.
        tasks: The step that each task of the pipeline is, by the task's name.

    Raises:
        UserError: the account may not read the Workflow.
    """
    folder = run_dir()
    report(folder, failures(nodes_of(workflow, namespace), tasks, TASK, said(folder)))
