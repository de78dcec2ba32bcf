"""A server that behaves as the Kubernetes API is specified for TrainJobs, with the controller's part done for real.

`python -m tests.components.training.trainer_server LOG` prints its port. A TrainJob is read with the models that come
with the CRD: what they do not have is a 400. Its machines are processes of this one: the runtime's container with the
TrainJob's command, environment and what Trainer's torch plugin adds (PET_NNODES, PET_NODE_RANK, ...). While there is a
file LOG.full the cluster has no room: machines wait. Each request that changes something is a line of LOG.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import yaml
from kubeflow_trainer_api import models

from tests.answering import Answering
from tests.services.servers import free_port

ROOT = Path(__file__).resolve().parents[3]
RUNTIME = yaml.safe_load((ROOT / "infra/trainer/runtime.yaml").read_text())
GROUP = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default"
PODS = "/api/v1/namespaces/default/pods"
NAME = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def strictly(model, content):
    """The content as a model, which must have all of its fields and take all of its values."""
    try:
        found = model.from_dict(content)
    except ValueError as error:
        raise Refused(400, str(error)) from error
    if found.to_dict() != content:
        raise Refused(400, f"{model.__name__} has other fields: {found.to_dict()} is not {content}")
    return found


class Job:
    """One TrainJob and its machines."""

    def __init__(self, content, folder, room):
        strictly(models.TrainerV1alpha1TrainJob, content)
        name, spec = content["metadata"]["name"], content["spec"]
        if not NAME.match(name):
            raise Refused(422, f"{name} is no name")
        if spec["runtimeRef"] != {"name": "torch-distributed", "kind": "TrainingRuntime"}:
            raise Refused(422, "no such runtime")
        for patch in spec.get("runtimePatches", []):
            jobs = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
            if {job["name"] for job in jobs} - {"node"}:
                raise Refused(422, "the runtime has no such job")
        self.content, self.name, self.port = content, name, free_port()
        self.content["metadata"] |= {"namespace": "default", "creationTimestamp": datetime.now(UTC).isoformat()}
        self.nodes = [self.start(rank, folder) if room else None for rank in range(spec["trainer"]["numNodes"])]

    def start(self, rank, folder):
        """A machine's process, in an environment that holds nothing but what its pod would."""
        trainer = self.content["spec"]["trainer"]
        told = {entry["name"]: entry["value"] for entry in trainer["env"]}
        plugin = {"PET_NNODES": trainer["numNodes"], "PET_NPROC_PER_NODE": trainer.get("numProcPerNode", 1)}
        plugin |= {"PET_NODE_RANK": rank, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": self.port}
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        image |= {"TOKENIZERS_PARALLELISM": "false", "HOME": str(folder)}
        with (folder / f"{self.name}-{rank}.log").open("wb") as log:
            environment = {**image, **told, **{key: str(value) for key, value in plugin.items()}}
            return subprocess.Popen(
                trainer["command"], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )

    def shown(self):
        codes = [node and node.poll() for node in self.nodes]
        done = None if None in codes else "Complete" if not any(codes) else "Failed"
        conditions = [{"type": done, "status": "True", "reason": "x", "message": "x",
                       "lastTransitionTime": datetime.now(UTC).isoformat()}] if done else []  # fmt: skip
        return {**self.content, "status": {"conditions": conditions}}

    def pods(self):
        (job,) = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
        for rank, node in enumerate(self.nodes):
            phase = {None: "Running", 0: "Succeeded"}.get(node.poll(), "Failed") if node else "Pending"
            labels = {"jobset.sigs.k8s.io/jobset-name": self.name, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
            labels["batch.kubernetes.io/job-completion-index"] = str(rank)
            metadata = {"name": f"{self.name}-node-0-{rank}", "namespace": "default", "labels": labels,
                        "creationTimestamp": datetime.now(UTC).isoformat()}  # fmt: skip
            yield {
                "metadata": metadata,
                "spec": job["template"]["spec"]["template"]["spec"],
                "status": {"phase": phase},
            }

    def stop(self):
        for node in self.nodes:
            if node and node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()


class Handler(Answering):
    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def do_DELETE(self):
        self.answer("DELETE")

    def answer(self, method):
        url = urlparse(self.path)
        size = int(self.headers.get("content-length") or 0)
        content = json.loads(self.rfile.read(size) or "{}")
        try:
            answer = self.route(method, url, content)
            status = 201 if method == "POST" else 200
        except Refused as error:
            status, answer = error.status, {"kind": "Status", "status": "Failure", "message": str(error)}
        except KeyError as error:
            status, answer = 404, {"kind": "Status", "status": "Failure", "message": f"{error} not found"}
        if method != "GET":
            with self.server.log.open("a") as file:
                file.write(
                    json.dumps({"method": method, "path": url.path, "status": status, "content": content}) + "\n"
                )
        return self.reply(status, answer)

    def route(self, method, url, content):
        jobs = self.server.jobs
        if url.path == f"{GROUP}/trainingruntimes/torch-distributed":
            return {**RUNTIME, "metadata": {**RUNTIME["metadata"], "namespace": "default"}}
        if url.path == PODS:
            chosen = re.search(r"jobset-name%3D([^%&]+)", url.query)[1]
            items = list(jobs[chosen].pods()) if chosen in jobs else []
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        if url.path.startswith(PODS):
            pod = url.path.removeprefix(f"{PODS}/").removesuffix("/log")
            job, _, rank = pod.rpartition("-node-0-")
            return (self.server.log.parent / f"{job}-{rank}.log").read_text()
        kind, _, name = url.path.removeprefix(f"{GROUP}/").partition("/")
        if kind != "trainjobs":
            raise Refused(404, "not here")
        if method == "POST":
            if content["metadata"]["name"] in jobs:
                raise Refused(409, "already exists")
            log = self.server.log
            job = Job(content, log.parent, room=not log.with_suffix(".full").exists())
            jobs[job.name] = job
            return job.shown()
        if method == "DELETE":
            jobs.pop(name).stop()
            return {"kind": "Status", "status": "Success"}
        return jobs[name].shown()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log, server.jobs = Path(sys.argv[1]), {}
    print(server.server_port, flush=True)
    try:
        server.serve_forever()
    finally:
        for one in server.jobs.values():
            one.stop()
