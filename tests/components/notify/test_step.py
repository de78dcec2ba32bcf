"""What the webhook is told of a run on the cluster, from its Workflow and what its steps have left."""

from __future__ import annotations

from datetime import datetime
from functools import partial

import pytest
import yaml
from kubernetes.client import ApiException, Configuration
from kubernetes.config import load_kube_config

from components.dataset.errors import UserError
from components.notify import webhook
from components.notify.step import notify
from components.run import FAILURE, VERDICT, step, write_json
from tests.components.listener import listening
from tests.components.notify.argo import GROUP, NAME, NAMESPACE, TIME, node, packed, serving, task, workflow

TASKS = {"validate": "validate", "retrieve": "retrieve", "prompt-transform": "prompt-transform", "encode": "encode"}
TASKS |= {"finetune": "finetune-collaborative", "finetune-2": "finetune-ctrl", "register": "register"}
DONE = [task(name, ("Succeeded", 1, 2)) for name in ("validate", "retrieve")]
CARD = {"text": "# Promoted: ctrl on shop", "run_id": "r1", "verdict": "promoted", "reasons": ["better"]}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with serving() as server:
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
        address = f"http://127.0.0.1:{server.server_port}"
        config |= {"clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "u", "user": {}}]}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        # A pod's own account is a file at a place of its own, and takes an address with TLS.
        account = partial(load_kube_config, str(tmp_path / "kubeconfig"))
        monkeypatch.setattr("kubernetes.config.load_incluster_config", account)
        yield server
    Configuration.set_default(None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The run's folder, on the volume that its steps share."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    monkeypatch.setenv("TANDEM_RUN_ID", "r1")
    return tmp_path / "runs/r1"


@pytest.fixture
def told(cluster, folder, monkeypatch):
    """Lets the exit handler of a run with these nodes run; the messages that the webhook got."""
    with listening() as (listener, address):
        monkeypatch.setenv(webhook.ADDRESS, address)

        def run(*nodes, pack=False, **more):
            found = workflow(*nodes, **more)
            cluster.content = packed(found) if pack else {"nodes": found}
            notify(NAME, NAMESPACE, TASKS)
            return listener.told

        yield run


def left(folder, name, minute, message="no column 'clicked'", kind="user"):
    """What a step that failed at a minute has said of itself."""
    at = datetime.fromisoformat(TIME.format(minute)).timestamp()
    write_json(folder / FAILURE, {"step": name, "kind": kind, "message": message, "at": at})


def test_a_run_that_came_to_a_verdict_is_its_gate_card(told, folder):
    write_json(folder / VERDICT, CARD)
    (message,) = told(*DONE, task("register", ("Succeeded", 3, 4)), ended="Succeeded")
    assert message == {**CARD, "event": "judged"}


def test_a_step_that_failed_is_told_in_its_own_words(told, folder):
    left(folder, "prompt_transform", 5)
    (message,) = told(*DONE, task("prompt-transform", ("Failed", 4, 5, "Error (exit code 1)")))
    assert message == {
        "text": "Tandem run r1: step prompt_transform failed (user): no column 'clicked'",
        "event": "failed",
        "step": "prompt_transform",
        "kind": "user",
        "message": "no column 'clicked'",
        "run_id": "r1",
    }


@pytest.mark.parametrize(
    "reason", ["OOMKilled (exit code 137)", "pod deleted", "Pod was active on the node longer than the deadline"]
)
def test_a_step_that_was_killed_is_named_with_what_killed_it(told, reason):
    (message,) = told(*DONE, task("finetune-2", ("Failed", 4, 9, reason)))
    assert (message["event"], message["step"], message["kind"]) == ("failed", "finetune-ctrl", "lost")
    assert message["message"] == reason


def test_what_an_earlier_try_said_is_not_why_the_last_one_was_killed(told, folder):
    left(folder, "encode", 5, "connection reset", "error")
    tries = ("Failed", 4, 5, "Error (exit code 1)"), ("Failed", 6, 9, "OOMKilled (exit code 137)")
    (message,) = told(*DONE, task("encode", *tries))
    assert (message["kind"], message["message"]) == ("lost", "OOMKilled (exit code 137)")
    left(folder, "encode", 8, "still no connection", "error")
    assert told(task("encode", *tries))[-1]["message"] == "still no connection"


def test_a_try_that_was_made_good_is_no_failure(told, folder):
    left(folder, "retrieve", 2, "connection reset", "error")
    write_json(folder / VERDICT, CARD)
    (message,) = told(task("retrieve", ("Failed", 1, 2, "Error (exit code 1)"), ("Succeeded", 3, 4)), ended="Succeeded")
    assert message["event"] == "judged"


@pytest.mark.parametrize("pack", [False, True])
def test_one_shard_among_many(told, pack):
    """A loop's iterations lie deep; a status that long is packed."""
    inside = f"{GROUP}.for-loop-2.iteration-iterations({{0}}:{{0}}).iteration-item"
    shards = [task("encode", ("Succeeded", 4, 6), within=inside.format(shard)) for shard in range(100)]
    shards[7] = task("encode", ("Failed", 4, 5, "pod deleted"), within=inside.format(7))
    loop = [node(f"{GROUP}.for-loop-2", "Failed", 4, 6), node(inside.format(7).rsplit(".", 1)[0], "Failed", 4, 5)]
    (message,) = told(*DONE, loop, *shards, pack=pack)
    assert (message["step"], message["message"]) == ("encode", "pod deleted")


def test_every_step_that_failed_is_told_the_first_one_first(told):
    later, first = ("Failed", 4, 9, "OOMKilled (exit code 137)"), ("Failed", 4, 6, "pod deleted")
    (message,) = told(*DONE, task("finetune", later), task("finetune-2", first))
    assert message["step"] == "finetune-ctrl"
    assert message["text"].splitlines() == [
        "Tandem run r1: step finetune-ctrl failed (lost): pod deleted",
        "step finetune-collaborative failed (lost): OOMKilled (exit code 137)",
    ]


def test_a_failure_after_the_verdict_is_told_with_it(told, folder):
    """The champion may have moved all the same."""
    write_json(folder / VERDICT, CARD)
    (message,) = told(*DONE, task("register", ("Failed", 4, 9, "pod deleted")))
    assert (message["event"], message["verdict"]) == ("failed", "promoted")
    assert message["text"].endswith(CARD["text"])


def test_a_task_whose_inputs_cannot_be_resolved(told):
    """Its driver fails, and the task itself never begins."""
    driver = node(f"{GROUP}.retrieve-driver", "Error", 3, 4, "failed to resolve inputs", "Plugin")
    (message,) = told(DONE[0], driver, node(f"{GROUP}.retrieve", "Omitted"))
    assert (message["step"], message["message"]) == ("retrieve", "failed to resolve inputs")


def test_what_belongs_to_no_step_is_told_by_its_own_name(told):
    (message,) = told(node(f"{GROUP}-driver", "Error", 1, 2, "no such bucket"))
    assert (message["step"], message["message"]) == ("exit-handler-1", "no such bucket")


def test_a_run_without_failure_and_verdict_tells_nothing(told):
    """Materialising succeeds every hour."""
    assert told(*DONE, ended="Succeeded") == []


def test_who_may_not_read_the_workflow_is_told_what_to_allow(cluster, folder):
    cluster.status = 403
    with pytest.raises(UserError, match=r"verb get on workflows of argoproj\.io"):
        notify(NAME, NAMESPACE, TASKS)
    cluster.status = 503
    with pytest.raises(ApiException):
        notify(NAME, NAMESPACE, TASKS)


def test_a_step_says_when_it_failed(folder, told):
    """The real words of a real step, whose last try began before it said them."""
    with pytest.raises(ValueError, match="no number"), step("encode"):
        raise ValueError("the loss is no number")
    (message,) = told(*DONE, task("encode", ("Failed", 4, 9, "Error (exit code 1)")))
    assert (message["kind"], message["message"]) == ("error", "the loss is no number")
