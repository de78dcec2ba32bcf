"""The runtime of trainings on several machines: what the CRD takes, as closed as the rest, in step with the policy."""

from pathlib import Path

import yaml
from kubeflow_trainer_api import models

from components.training.trainjob import RUNTIME
from pipelines.policy import GPU, GPU_NODES, SCRATCH, STATE_CLAIM, STATE_PATH, USER

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "trainer"
CONTENT = yaml.safe_load((FOLDER / "runtime.yaml").read_text())


def pod():
    (job,) = CONTENT["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    return job["template"]["spec"]["template"]["spec"]


def test_the_crd_takes_every_field():
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(CONTENT).to_dict() == CONTENT
    assert CONTENT["metadata"]["name"] == RUNTIME
    assert yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["namespace"] == "tandem-pipelines"


def test_a_machine_is_restricted():
    (container,) = pod()["containers"]
    assert pod()["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}.items()
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert pod()["automountServiceAccountToken"] is False


def test_it_has_the_gpu_the_node_and_the_volumes_of_a_gpu_task():
    (container,) = pod()["containers"]
    assert container["resources"]["limits"][GPU] == "1"
    assert pod()["nodeSelector"] == dict([GPU_NODES])
    assert [entry["key"] for entry in pod()["tolerations"]] == [GPU]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"state": STATE_PATH, **SCRATCH}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"] == {"claimName": STATE_CLAIM}
    assert set(volumes) == set(mounts)
