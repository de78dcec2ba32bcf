"""Argo Workflows as its controller keeps them, and a server that gives them out as the Kubernetes API does.

Each node has the path of its place as its name: the Workflow, its graphs, a task (a graph of its own, named `executor`
inside), and where a task may be tried again each try in brackets.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
from contextlib import contextmanager
from http.server import HTTPServer

from tests.answering import Answering

NAME, NAMESPACE = "tandem-training-ctrl-x7k2p", "team"
GROUP = f"{NAME}.root.exit-handler-1"
#: Minutes of the day at which something began or ended.
TIME = "2026-05-04T03:{:02d}:00Z"


def node(name, phase, began=0, ended=None, message=None, kind="DAG"):
    """A node; what has not ended has no time of its end, as in the API."""
    times = {"startedAt": TIME.format(began), "finishedAt": None if ended is None else TIME.format(ended)}
    shown = name.removeprefix(f"{NAME}.").rsplit(".", 1)[-1]
    content = {"id": f"{NAME}-{abs(hash(name))}", "name": name, "displayName": shown, "type": kind, "phase": phase}
    return content | times | ({"message": message} if message else {})


def task(name, *tries, phase=None, within=GROUP):
    """A task's nodes: its driver, its graph and its tries, each with its phase, beginning, end and message."""
    ended = phase or tries[-1][0]
    path = f"{within}.{name}"
    last = tries[-1][2] if len(tries[-1]) > 2 else None
    outer = [node(f"{path}-driver", "Succeeded", kind="Plugin"), node(path, ended, tries[0][1], last)]
    more = "No more retries left" if ended == "Failed" else None
    outer.append(node(f"{path}.executor", ended, tries[0][1], last, more, kind="Retry"))
    return [*outer, *(node(f"{path}.executor({n})", *one, kind="Pod") for n, one in enumerate(tries))]


def workflow(*nodes, ended="Failed"):
    """A Workflow whose exit handler is running."""
    own = task("notify", ("Failed", 40, 41, "Error (exit code 1)"), ("Running", 42), within=f"{GROUP}.onExit")
    outer = [node(NAME, "Running"), node(f"{NAME}.root-driver", "Succeeded"), node(f"{NAME}.root", "Running")]
    outer.append(node(GROUP, ended, 0, 39))
    flat = [one for part in nodes for one in (part if isinstance(part, list) else [part])]
    return {one["id"]: one for one in (*outer, *flat, *own)}


def packed(nodes):
    """A status as Argo keeps it where it is too long for etcd."""
    return {"compressedNodes": base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()}


class Handler(Answering):
    def do_GET(self):
        known = self.path == f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows/{NAME}"
        status = self.server.status if known else 404
        metadata = {"name": NAME, "namespace": NAMESPACE}
        found = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata}
        found["status"] = {"phase": "Running", **self.server.content}
        refused = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": "not so"}
        self.reply(status, found if status == 200 else refused)


@contextmanager
def serving():
    """A server on a port of its own, which answers with its `status`, and its `content` as the Workflow's status."""
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.status, server.content = 200, {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
