"""A server that behaves as the v2beta1 API of Kubeflow Pipelines is specified, as far as it is spoken to.

Every body is read with kfp-server-api's models: a field that they do not have, or a value that they refuse, is a 400.
`python -m tests.pipelines.kfp_server LOG` prints its port. Each request that changes something is a line of LOG, with
how many recurring runs of each name are enabled after it. A run whose parameter `seed` is 13 fails in its second task.
A recurring run that is deleted takes its runs in progress with it, unless the request says ORPHAN, as Kubernetes does.
With TOKEN in the environment a request without it, but for its health, is a 401, as on a multi-user installation.
`DELETE /everything`, which the API does not know, empties server and log for the next test.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse
from uuid import uuid4

import kfp_server_api as api
from google.protobuf.json_format import ParseDict
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.answering import Answering

ROOT = "/apis/v2beta1"
STORE: dict[str, dict[str, dict]] = {"experiments": {}, "recurringruns": {}, "runs": {}}
MODELS = {
    "experiments": (api.V2beta1Experiment, "experiment_id"),
    "recurringruns": (api.V2beta1RecurringRun, "recurring_run_id"),
    "runs": (api.V2beta1Run, "run_id"),
}
LISTS = {"experiments": "experiments", "recurringruns": "recurringRuns", "runs": "runs"}
CRON = re.compile(r"^[\d*,/?-]+( [\d*,/?-]+){5}$")


class Refused(Exception):
    """A request that the API would refuse."""


def checked(content, model):
    """The content, which must be one of the model: no other fields, values of its types."""
    known = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for name, value in content.items():
        if name not in known:
            raise Refused(f"{model.__name__} has no field {name}")
        inner = getattr(api, known[name], None)
        if inner is not None and isinstance(value, dict) and hasattr(inner, "openapi_types"):
            checked(value, inner)
    try:
        client = api.ApiClient()
        client.deserialize(SimpleNamespace(data=json.dumps(content)), model)
    except (ValueError, TypeError) as error:
        raise Refused(f"{model.__name__}: {error}") from error
    return content


def check_run(content):
    """What holds of runs and recurring runs alike: an experiment that is there, a pipeline, parameters it takes."""
    if content.get("experiment_id") not in STORE["experiments"]:
        raise Refused("no such experiment")
    documents = content.get("pipeline_spec") or {}
    spec = ParseDict(documents.get("pipeline_spec", documents), pipeline_spec_pb2.PipelineSpec())
    takes = set(spec.root.input_definitions.parameters)
    given = set((content.get("runtime_config") or {}).get("parameters") or {})
    if not takes or given - takes:
        raise Refused(f"the pipeline does not take {sorted(given - takes)}")


def made(kind, content):
    """A new resource as the server returns it."""
    model, key = MODELS[kind]
    checked(content, model)
    resource = {**content, key: str(uuid4()), "created_at": dt.datetime.now(dt.UTC).isoformat()}
    if kind == "recurringruns":
        check_run(content)
        if not CRON.match(content["trigger"]["cron_schedule"]["cron"]):
            raise Refused("cron: six fields")
        if not 1 <= int(content["max_concurrency"]) <= 10:
            raise Refused("max_concurrency is from 1 to 10")
        resource["status"] = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[resource.pop("mode")]
        resource["max_concurrency"] = str(content["max_concurrency"])
    if kind == "runs":
        check_run(content)
        resource |= {"state": "PENDING", "looked_at": 0}
    STORE[kind][resource[key]] = resource
    return resource


def advanced(run):
    """The run after one more look at it: two tasks, one after the other, the first of which is tried twice."""
    run["looked_at"] += 1
    fails = (run.get("runtime_config") or {}).get("parameters", {}).get("seed") == 13
    looked = run["looked_at"]
    second = ("FAILED" if fails else "SUCCEEDED") if looked > 2 else "RUNNING"
    nodes = [("root", second), ("root-driver", "SUCCEEDED"), ("exit-handler-1", second)]
    nodes += [("validate-driver", "SUCCEEDED"), ("executor(0)", "FAILED")]
    nodes += [(name, "SUCCEEDED" if looked > 1 else "RUNNING") for name in ("executor(1)", "validate")]
    if looked > 1:
        nodes += [("retrieve-driver", "SUCCEEDED"), ("executor(0)", second), ("retrieve", second)]
    # The nodes of the Workflow, as the backend knows them: by their names alone, and without a reason.
    tasks = [{"task_id": str(place), "display_name": name, "state": state} for place, (name, state) in enumerate(nodes)]
    run |= {"run_details": {"task_details": tasks}, "state": second if looked > 2 else "RUNNING"}
    return shown(run)


def shown(resource):
    return {name: value for name, value in resource.items() if name != "looked_at"}


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
        if (method, url.path) == ("DELETE", "/everything"):
            for kind in STORE.values():
                kind.clear()
            self.server.log.unlink(missing_ok=True)
            return self.reply(200, {})
        if not url.path.startswith(ROOT):
            return self.reply(404, {"error": "not here"})
        known = self.headers.get("authorization") == f"Bearer {os.environ.get('TOKEN')}"
        if "TOKEN" in os.environ and not known and not url.path.endswith("/healthz"):
            return self.reply(401, {"error": "there is no user identity header", "code": 16})
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            answer = self.route(method, url.path.removeprefix(ROOT).strip("/"), query, content)
        except Refused as error:
            return self.reply(400, {"error": str(error), "code": 3})
        except KeyError as error:
            return self.reply(404, {"error": f"not found: {error}", "code": 5})
        if method != "GET":
            enabled = Counter(r["display_name"] for r in STORE["recurringruns"].values() if r["status"] == "ENABLED")
            with self.server.log.open("a") as file:
                file.write(json.dumps({"method": method, "path": url.path, "enabled": enabled}) + "\n")
        return self.reply(200, answer)

    def route(self, method, path, query, content):
        kind, _, rest = path.partition("/")
        if kind == "healthz":
            return {"multi_user": False}
        identifier, _, verb = rest.partition(":")
        if method == "POST" and not rest:
            return shown(made(kind, content))
        if method == "GET" and not rest:
            return self.listed(kind, query)
        resource = STORE[kind][identifier]
        if method == "DELETE":
            policy = query.get("propagation_policy", "BACKGROUND")
            if policy not in api.V2beta1DeletePropagationPolicy.allowable_values:
                raise Refused(f"propagation_policy {policy}")
            if policy != "ORPHAN":
                STORE["runs"] = {
                    name: run
                    for name, run in STORE["runs"].items()
                    if run.get("recurring_run_id") != identifier or run["state"] in {"SUCCEEDED", "FAILED"}
                }
            del STORE[kind][identifier]
            return {}
        if verb:
            resource["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[verb]
            return {}
        return advanced(resource) if kind == "runs" else shown(resource)

    def listed(self, kind, query):
        found = list(STORE[kind].values())
        if "experiment_id" in query:
            found = [one for one in found if one.get("experiment_id") == query["experiment_id"]]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] in {"EQUALS", 1}, predicate
            wanted = predicate.get("stringValue") or predicate.get("string_value")
            found = [one for one in found if one[predicate["key"]] == wanted]
        # No page is longer than two, whatever is asked for: whoever does not turn the page misses the rest.
        first = int(query.get("page_token") or 0)
        last = first + min(2, int(query.get("page_size") or 2))
        token = {"next_page_token": str(last)} if last < len(found) else {}
        return {LISTS[kind]: [shown(one) for one in found[first:last]], "total_size": len(found), **token}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log = Path(sys.argv[1])
    print(server.server_port, flush=True)
    server.serve_forever()
