"""Which steps of a run on the cluster failed and why, from the Argo Workflow that Kubeflow Pipelines makes of it.

The API of Kubeflow Pipelines could name the steps alone: its tasks bear no reasons (kubeflow/pipelines#14007), nor does
PipelineTaskFinalStatus; it is told of the Workflow's state later than the exit handler begins; and on a multi-user
installation a pod needs a token of another audience to ask it. The Workflow says it all, and to read it takes a verb
in the role of the runs' account.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import datetime
from typing import Any

from components.dataset.errors import UserError
from components.notify.report import LOST, Failure

#: Group, version and plural of the resource.
WORKFLOWS = "argoproj.io", "v1alpha1", "workflows"
FAILED, SUCCEEDED = ("Failed", "Error"), "Succeeded"
SECONDS = 30
#: A task is a node of its own name, beside one of this ending which resolves its inputs.
DRIVER = "-driver"

Node = Mapping[str, Any]


def nodes_of(workflow: str, namespace: str) -> list[Node]:
    """The nodes of a Workflow: its graphs, tasks, tries and pods, each named by its path from the Workflow on.

    Raises:
        UserError: the account may not read it.
        kubernetes.client.ApiException: there is none of this name, or the API is in trouble.
    """
    from kubernetes import client, config

    config.load_incluster_config()
    where = (*WORKFLOWS[:2], namespace, WORKFLOWS[2], workflow)
    try:
        found = client.CustomObjectsApi().get_namespaced_custom_object(*where, _request_timeout=SECONDS)
    except client.ApiException as error:
        if error.status not in (401, 403):
            raise
        raise UserError(
            f"the account may not read Workflow {workflow}, so that nobody is told how the run ended; give it the verb "
            "get on workflows of argoproj.io, as infra/kustomize/base/pipelines/account.yaml does"
        ) from None
    status = found.get("status", {})
    # A status too long for etcd is packed.
    packed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes") or {}
    return list(nodes.values())


def failures(
    nodes: Sequence[Node], tasks: Mapping[str, str], own: str, told: tuple[Failure, float] | None
) -> list[Failure]:
    """The steps that failed for good, in the order in which they ended; a try that a later one made good is none.

    Args:
        nodes: Of the Workflow.
        tasks: The step that each task of the pipeline is, by the task's name.
        own: Name of the task that asks.
        told: What the step that failed last said of itself, and when.
    """
    found: dict[str, Node] = {}
    for node in sorted(_innermost(nodes), key=lambda node: node.get("finishedAt") or ""):
        task = _task(node, {*tasks, own})
        if task != own:
            # Of several tries the last one counts, in the place of the first.
            found[tasks.get(task, task)] = node
    return [_failure(step, node, told) for step, node in found.items()]


def _innermost(nodes: Sequence[Node]) -> Iterator[Node]:
    """The failed nodes under which no other failed, and above which none succeeded: a try after them did."""
    phases = {node["name"]: node.get("phase") for node in nodes}
    above = {name: list(_above(name)) for name in phases}
    outer = {other for name, phase in phases.items() if phase in FAILED for other in above[name]}
    for node in nodes:
        name = node["name"]
        cured = any(phases.get(other) == SUCCEEDED for other in above[name])
        if phases[name] in FAILED and name not in outer and not cured:
            yield node


def _above(name: str) -> Iterator[str]:
    """Names of the nodes that one lies in: a.b of a.b.executor, a.b.executor of its try a.b.executor(1)."""
    return (name[: found.start()] for found in re.finditer(r"[.(]", name))


def _task(node: Node, tasks: Set[str]) -> str:
    """The task that a node is of; the graph's driver or the Workflow, where it is of none."""
    parts = [part.removesuffix(DRIVER) for part in re.split(r"\([^)]*\)\.?|\.", node["name"]) if part]
    return next((part for part in reversed(parts) if part in tasks), parts[-1])


def _failure(step: str, node: Node, told: tuple[Failure, float] | None) -> Failure:
    if told and _same(told[0].step, step) and told[1] >= _seconds(node.get("startedAt")):
        return told[0]
    return Failure(step, LOST, node.get("message") or f"ended as {node['phase']}, and nothing says why")


def _same(one: str, other: str) -> bool:
    """Whether two names are of one step: Kubeflow's have hyphens where ours have underscores."""
    return one.replace("_", "-") == other.replace("_", "-")


def _seconds(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
