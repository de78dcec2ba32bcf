"""The cluster files, rendered: valid, restricted, closed to all but what is named, in step with the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.notify.workflow import WORKFLOWS
from pipelines.policy import CONFIG, CONFIG_MAP, EXIT_SECRETS, SECRETS, STATE_CLAIM, STATE_PATH, USER
from serving.settings import ServeSettings
from tests.pipelines.shop import tandem

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "infra" / "kustomize"
OVERLAYS = ("dev", "staging", "prod")
#: What the API server itself does not know: checked by the operator that brings it.
FOREIGN = {"ExternalSecret"}
PINNED_OVERLAYS = ("staging", "prod")
#: What kube-state-metrics tells of a CronJob, as far as the alerts ask.
CRONJOB_METRICS = {
    "kube_cronjob_created",
    "kube_cronjob_status_last_schedule_time",
    "kube_cronjob_status_last_successful_time",
}
Objects = list[dict[str, Any]]


def rendered(overlay: str) -> str:
    return built(KUSTOMIZE / "overlays" / overlay)


def built(folder: Path) -> str:
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def objects(overlay) -> Objects:
    return list(yaml.safe_load_all(rendered(overlay)))


def of_kind(objects: Objects, *kinds: str) -> Iterator[dict[str, Any]]:
    return (found for found in objects if found["kind"] in kinds)


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """The pod template of each workload by its name."""
    found = of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
    return {
        workload["metadata"]["name"]: workload["spec"].get("jobTemplate", workload)["spec"]["template"]
        for workload in found
    }


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def test_every_object_is_valid_for_the_api(objects):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for found in objects:
        if found["kind"] not in FOREIGN:
            validate.validate(found, "1.32", strict=True)


def test_the_job_that_makes_the_sample_is_valid_and_restricted():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    job = yaml.safe_load((ROOT / "infra" / "jobs" / "sample.yaml").read_text())
    validate.validate(job, "1.32", strict=True)
    spec = job["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsUser"] == USER
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] == STATE_PATH
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == STATE_CLAIM


def test_names_are_unique(objects):
    names = [(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))


def test_namespaces_hold_pods_to_the_restricted_standard(objects):
    spaces = {space["metadata"]["name"]: space["metadata"]["labels"] for space in of_kind(objects, "Namespace")}
    assert set(spaces) == {"tandem", "tandem-pipelines"}
    assert all(labels["pod-security.kubernetes.io/enforce"] == "restricted" for labels in spaces.values())
    assert {found["metadata"]["namespace"] for found in objects if found["kind"] != "Namespace"} == set(spaces)


def test_every_pod_is_restricted(objects):
    for name, template in pods(objects).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] == USER, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert spec["automountServiceAccountToken"] is False, name
        assert "hostNetwork" not in spec
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), name


def test_nothing_secret_is_in_a_file(objects):
    assert not list(of_kind(objects, "Secret"))
    for template in pods(objects).values():
        for container in containers(template):
            for variable in container.get("env", []):
                words = ("PASSWORD", "TOKEN", "SECRET", "KEY")
                assert not any(word in variable["name"] for word in words) or "valueFrom" in variable


def test_every_secret_and_map_that_a_pod_reads_is_there(objects):
    given = {
        (found["metadata"]["namespace"], found["metadata"]["name"]) for found in of_kind(objects, "ExternalSecret")
    }
    maps = {(found["metadata"]["namespace"], found["metadata"]["name"]) for found in of_kind(objects, "ConfigMap")}
    for template in pods(objects).values():
        volumes = template["spec"].get("volumes", [])
        sources = [source for container in containers(template) for source in container.get("envFrom", [])]
        secrets = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
        secrets |= {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
        configs = {source["configMapRef"]["name"] for source in sources if "configMapRef" in source}
        configs |= {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
        assert {("tandem", name) for name in secrets} <= given
        assert {("tandem", name) for name in configs} <= maps


def test_what_the_compiled_pipeline_asks_for_is_there(objects):
    inside = [found for found in objects if found["metadata"].get("namespace") == "tandem-pipelines"]
    (config,) = of_kind(inside, "ConfigMap")
    assert config["metadata"]["name"] == CONFIG_MAP
    assert set(config["data"]) <= set(CONFIG)
    assert config["data"]["TANDEM_HOME"] == STATE_PATH
    assert {found["metadata"]["name"] for found in of_kind(inside, "ExternalSecret")} == {*SECRETS, *EXIT_SECRETS}
    assert [found["metadata"]["name"] for found in of_kind(inside, "PersistentVolumeClaim")] == [STATE_CLAIM]


def test_the_service_is_told_only_what_it_understands(objects):
    (config,) = (found for found in of_kind(objects, "ConfigMap") if "TANDEM_SERVE_MODELS" in found["data"])
    ServeSettings.read(config["data"])
    for name in ("tandem-serving", "tandem-serving-canary"):
        template = pods(objects).get(name)
        if template is None:
            continue
        own = {variable["name"]: variable["value"] for variable in template["spec"]["containers"][0].get("env", [])}
        settings = ServeSettings.read({**config["data"], **own})
        assert settings.canary == (1 if name.endswith("canary") else 0)
        mounted = [mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]]
        assert str(settings.models) in mounted
        assert str(settings.feature_store.parent) in mounted


def test_what_the_service_writes_is_what_the_pusher_reads(objects):
    templates = pods(objects)
    claims = set()
    for name, container in (("tandem-serving", "serve"), ("tandem-push", "push")):
        (found,) = (one for one in templates[name]["spec"]["containers"] if one["name"] == container)
        (mount,) = (mount for mount in found["volumeMounts"] if mount["name"] == "served")
        assert mount["mountPath"] == "/served"
        assert not mount.get("readOnly")
        (volume,) = (volume for volume in templates[name]["spec"]["volumes"] if volume["name"] == "served")
        claims.add(volume["persistentVolumeClaim"]["claimName"])
    (config,) = (found for found in of_kind(objects, "ConfigMap") if "TANDEM_SERVE_MODELS" in found["data"])
    assert str(ServeSettings.read(config["data"]).log) == "/served"
    given = {
        found["metadata"]["name"]
        for found in of_kind(objects, "PersistentVolumeClaim")
        if found["metadata"]["namespace"] == "tandem"
    }
    assert claims == given == {"tandem-served"}


def test_one_pusher_runs_and_is_told_where_everything_is(objects):
    (workload,) = (one for one in of_kind(objects, "Deployment") if one["metadata"]["name"] == "tandem-push")
    assert (workload["spec"]["replicas"], workload["spec"]["strategy"]["type"]) == (1, "Recreate")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    words = container["args"]
    folders = {words[words.index(flag) + 1] for flag in ("--models", "--log")}
    assert folders <= set(mounted)
    alive = words[words.index("--alive") + 1]
    for kind in ("startup", "readiness", "liveness"):
        assert alive in container[f"{kind}Probe"]["exec"]["command"][-1]
    own = {variable["name"]: variable["value"] for variable in container["env"]}
    assert str(Path(own["TANDEM_FEAST"]).parent) in mounted
    shown = tandem("push", "--help").stdout
    assert all(word in shown for word in words if word.startswith("--"))


def monitoring(objects: Objects) -> dict[str, Any]:
    (workload,) = of_kind(objects, "CronJob")
    assert workload["metadata"]["name"] == "tandem-monitor"
    return workload


def test_the_monitor_reads_what_the_service_writes_and_fails_loudly(objects):
    workload = monitoring(objects)
    spec = workload["spec"]["jobTemplate"]["spec"]
    assert (workload["spec"]["concurrencyPolicy"], spec["backoffLimit"]) == ("Forbid", 0)
    template = spec["template"]["spec"]
    assert template["restartPolicy"] == "Never"
    (container,) = template["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "served")
    assert (mount["mountPath"], mount["readOnly"]) == ("/served", True)
    (volume,) = (volume for volume in template["volumes"] if volume["name"] == "served")
    assert volume["persistentVolumeClaim"] == {"claimName": "tandem-served", "readOnly": True}
    command, *words = container["args"]
    shown = tandem(command, "--help").stdout
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert all(flag in shown for flag in flags)
    assert {"--log", "--max-psi", "--max-degraded", "--min-auc", "--calibration", "--min-rows", "--min-each"} <= flags


def test_the_alarm_is_about_the_monitor_that_there_is(objects):
    name = monitoring(objects)["metadata"]
    groups = yaml.safe_load((ROOT / "infra" / "monitoring" / "jobs.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        asked = set(re.findall(r'(kube_\w+)\{namespace="([^"]+)", cronjob="([^"]+)"\}', rule["expr"]))
        assert {one[1:] for one in asked} == {(name["namespace"], name["name"])}
        assert {one[0] for one in asked} <= CRONJOB_METRICS
        assert rule["for"]
        assert set(rule["annotations"]) == {"summary", "action"}


def test_with_the_published_tables_the_monitor_replays(tmp_path, overlay):
    own = {
        "resources": [os.path.relpath(KUSTOMIZE / "overlays" / overlay, tmp_path)],
        "components": [os.path.relpath(KUSTOMIZE / "components" / "replay", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = list(yaml.safe_load_all(built(tmp_path)))
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in (one for one in found if one["kind"] not in FOREIGN):
        validate.validate(one, "1.32", strict=True)
    template = pods(found)["tandem-monitor"]["spec"]
    (container,) = template["containers"]
    assert "--replay=1000" in container["args"]
    assert {"secretRef": {"name": "tandem-feast"}} in container["envFrom"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "state")
    assert (mount["mountPath"], mount["readOnly"]) == (STATE_PATH, True)
    (volume,) = (volume for volume in template["volumes"] if volume["name"] == "state")
    (claim,) = (
        one
        for one in of_kind(found, "PersistentVolumeClaim")
        if one["metadata"]["name"] == volume["persistentVolumeClaim"]["claimName"]
    )
    (disk,) = of_kind(found, "PersistentVolume")
    assert claim["metadata"]["namespace"] == "tandem"
    assert claim["spec"]["accessModes"] == disk["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert claim["spec"]["volumeName"] == disk["metadata"]["name"]
    bound = {"namespace": "tandem", "name": claim["metadata"]["name"]}
    assert disk["spec"]["claimRef"] == bound


def test_only_the_service_is_watched_moved_and_scaled_as_one(objects):
    template = pods(objects)["tandem-serving"]
    serve = template["spec"]["containers"][0]
    probes = {kind: serve[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    keys = [spread["topologyKey"] for spread in template["spec"]["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "tandem-serving"


def test_the_canary_is_behind_the_same_service(objects, overlay):
    templates = pods(objects)
    if overlay == "dev":
        assert "tandem-serving-canary" not in templates
        return
    (service,) = (found for found in of_kind(objects, "Service") if found["metadata"]["name"] == "tandem-serving")
    labels = [templates[name]["metadata"]["labels"] for name in ("tandem-serving", "tandem-serving-canary")]
    assert all(service["spec"]["selector"].items() <= one.items() for one in labels)
    assert labels[0]["tandem.dev/track"] != labels[1]["tandem.dev/track"]


@pytest.mark.parametrize("name", PINNED_OVERLAYS)
def test_images_are_pinned_outside_of_dev(name):
    for template in pods(list(yaml.safe_load_all(rendered(name)))).values():
        for container in containers(template):
            assert "@sha256:" in container["image"]


# --- the network -----------------------------------------------------------------------------------------------------


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", {})
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return wanted.items() <= labels.items()


class Network:
    """What the policies of all namespaces let through, for the pods that are described and some strangers."""

    def __init__(self, objects: Objects) -> None:
        self.policies = list(of_kind(objects, "NetworkPolicy"))
        self.spaces = {
            found["metadata"]["name"]: found["metadata"]["labels"] for found in of_kind(objects, "Namespace")
        }
        self.spaces |= {"elsewhere": {}, "gateway": {"tandem.dev/calls-serving": "true"}}
        for name, labels in self.spaces.items():
            labels["kubernetes.io/metadata.name"] = name

    def open(self, source: tuple[str, str], target: tuple[str, str], port: int) -> bool:
        """Whether a pod (namespace, app) may reach a port of another: its egress and the other's ingress must agree."""
        return self._allows("Egress", source, target, port) and self._allows("Ingress", target, source, port)

    def _allows(self, direction: str, here: tuple[str, str], there: tuple[str, str], port: int) -> bool:
        mine = [policy["spec"] for policy in self.policies if self._covers(policy, direction, here)]
        if not mine:
            return True
        rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
        return any(self._rule(rule, "to" if direction == "Egress" else "from", here, there, port) for rule in rules)

    def _covers(self, policy: dict[str, Any], direction: str, pod: tuple[str, str]) -> bool:
        spec = policy["spec"]
        inside = policy["metadata"]["namespace"] == pod[0] and direction in spec["policyTypes"]
        return inside and selected(spec["podSelector"], {"app.kubernetes.io/name": pod[1]})

    def _rule(self, rule: dict[str, Any], side: str, here: tuple[str, str], there: tuple[str, str], port: int) -> bool:
        if rule.get("ports") and port not in {entry["port"] for entry in rule["ports"]}:
            return False
        peers = rule.get(side)
        return peers is None or any(self._peer(peer, here, there) for peer in peers)

    def _peer(self, peer: dict[str, Any], here: tuple[str, str], there: tuple[str, str]) -> bool:
        if "ipBlock" in peer:
            return False
        spaces = peer.get("namespaceSelector")
        near = there[0] == here[0] if spaces is None else selected(spaces, self.spaces[there[0]])
        return near and selected(peer.get("podSelector", {}), {"app.kubernetes.io/name": there[1]})


SERVING, REDIS, MLFLOW = ("tandem", "tandem-serving"), ("tandem", "redis"), ("tandem", "mlflow")
PUSH, MONITOR = ("tandem", "tandem-push"), ("tandem", "tandem-monitor")
STEP, STRANGER, GATEWAY = ("tandem-pipelines", "step"), ("elsewhere", "stranger"), ("gateway", "gateway")


def test_every_namespace_is_closed_by_default(objects):
    closed = {
        policy["metadata"]["namespace"]
        for policy in of_kind(objects, "NetworkPolicy")
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    assert closed == {"tandem", "tandem-pipelines"}


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        (GATEWAY, SERVING, 3000),
        (SERVING, REDIS, 6379),
        (SERVING, MLFLOW, 5000),
        (PUSH, REDIS, 6379),
        (PUSH, MLFLOW, 5000),
        (MONITOR, MLFLOW, 5000),
        (STEP, REDIS, 6379),
        (STEP, MLFLOW, 5000),
        (STEP, STEP, 29500),
    ],
)
def test_who_needs_a_part_reaches_it(objects, source, target, port):
    assert Network(objects).open(source, target, port)


@pytest.mark.parametrize("target", [SERVING, REDIS, MLFLOW, PUSH, MONITOR, STEP, ("tandem", "postgres")])
@pytest.mark.parametrize("port", [80, 3000, 5000, 5432, 6379, 29500])
def test_strangers_reach_nothing(objects, target, port):
    assert not Network(objects).open(STRANGER, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        (REDIS, MLFLOW, 5000),
        (MLFLOW, REDIS, 6379),
        (REDIS, SERVING, 3000),
        (SERVING, STEP, 443),
        (GATEWAY, REDIS, 6379),
        (GATEWAY, PUSH, 3000),
        (PUSH, SERVING, 3000),
        (SERVING, PUSH, 3000),
        (MONITOR, REDIS, 6379),
        (MONITOR, SERVING, 3000),
        (GATEWAY, MONITOR, 3000),
    ],
)
def test_parts_that_have_no_business_with_each_other_do_not_meet(objects, source, target, port):
    assert not Network(objects).open(source, target, port)


def test_postgres_inside_is_reached_by_those_who_use_it(objects, overlay):
    if overlay != "dev":
        pytest.skip("PostgreSQL is managed elsewhere")
    network = Network(objects)
    assert all(network.open(source, ("tandem", "postgres"), 5432) for source in (SERVING, PUSH, MONITOR, MLFLOW, STEP))
    assert not network.open(REDIS, ("tandem", "postgres"), 5432)


def test_the_service_has_no_rights_in_the_cluster(objects):
    subjects = [
        subject["name"]
        for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    ]
    assert subjects == ["tandem-pipeline"]
    assert not list(of_kind(objects, "ClusterRole", "ClusterRoleBinding"))
    (role,) = of_kind(objects, "Role")
    for rule in role["rules"]:
        assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}


def test_the_exit_handler_may_read_the_workflow(objects):
    group, _, resource = WORKFLOWS
    (role,) = of_kind(objects, "Role")
    assert {"apiGroups": [group], "resources": [resource], "verbs": ["get"]} in role["rules"]


@pytest.mark.slow
def test_checkov_has_nothing_to_say(overlay, tmp_path):
    """Every check that is skipped says why: as an annotation of the object, or beside it in the overlay."""
    program = shutil.which("checkov") or shutil.which(str(ROOT / ".venv-checkov" / "bin" / "checkov"))
    if program is None:
        pytest.skip("checkov is not installed; 'make lint-manifests' installs it into a place of its own")
    path = tmp_path / f"{overlay}.yaml"
    path.write_text(rendered(overlay))
    command = [program, "--skip-download", "--quiet", "--compact", "--framework", "kubernetes", "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
