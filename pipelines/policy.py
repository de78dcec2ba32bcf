"""Resources, secrets, retries, timeouts and security of each class of task, in one place.

A cluster gets it from the compiled platform spec; a local run ignores it, and takes the retries out. What the spec
has no word for is the namespace's: Kubeflow's backend (from 2.17 on) drops every capability, forbids privilege
escalation and sets the seccomp profile RuntimeDefault for each task, and infra/kustomize holds the namespace to the
pod security standard.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kfp import dsl, kubernetes

from components.dataset.errors import UserError
from components.image import TRAIN_IMAGE

#: Addresses and places, the same for every task.
CONFIG_MAP = "tandem-config"
CONFIG = ("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "TANDEM_FEAST", "TANDEM_HOME", "TANDEM_DATA")
#: Credentials of every step, key by key the environment variable of the same name.
SECRETS = {
    "tandem-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "tandem-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "tandem-feast": ("TANDEM_FEAST_REGISTRY", "TANDEM_FEAST_REDIS"),
}
#: Credentials of the exit handler, which alone has these and none of the others.
EXIT_SECRETS = {"tandem-webhook": ("TANDEM_WEBHOOK",)}
#: The claim of the volume that all steps share (source data, published features, kept encodings), and where it lies.
STATE_CLAIM, STATE_PATH = "tandem-state", "/var/lib/tandem"
#: What a task may write to besides, so that its root file system can be read-only: its HOME and its scratch.
SCRATCH = {"home": "/home/tandem", "tmp": "/tmp"}  # noqa: S108  (a volume of the pod's own)
SCRATCH_LIMIT = "20Gi"
#: The images' user, and its group.
USER = 10001
GPU = "nvidia.com/gpu"
GPU_NODES = ("tandem.dev/accelerator", "gpu")
PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Patience:
    """How long a class of task is borne with, in seconds: before its first further try and, doubled each time, at most.

    `limit` is for each try: Kubernetes ends its pod then.
    """

    retries: int
    first: int
    longest: int
    limit: int

    def grant(self, task: dsl.PipelineTask) -> None:
        """Let a task have it."""
        before, longest = f"{self.first}s", f"{self.longest}s"
        task.set_retry(self.retries, backoff_duration=before, backoff_factor=2.0, backoff_max_duration=longest)
        kubernetes.set_timeout(task, seconds=self.limit)


#: A lost node; a node that is pre-empted, maybe more than once while the cluster is full; a webhook that is waited for.
CPU_PATIENCE = Patience(retries=2, first=30, longest=600, limit=4 * 3600)
GPU_PATIENCE = Patience(retries=5, first=60, longest=1800, limit=12 * 3600)
EXIT_PATIENCE = Patience(retries=2, first=30, longest=120, limit=600)


def check_pinned(image: str) -> None:
    """Refuse an image that is not pinned by digest: a tag moves, and the backend's cache goes by the name alone.

    Raises:
        UserError: the image has no digest.
    """
    if not PINNED.fullmatch(image):
        raise UserError(
            f"image {image} is not pinned; write it as NAME@sha256:DIGEST in TANDEM_TRAIN_IMAGE, or for "
            "tandem compile in --image; say --unpinned if the tag never moves"
        )


def _common(task: dsl.PipelineTask, secrets: Mapping[str, Sequence[str]] = SECRETS) -> dsl.PipelineTask:
    for secret, keys in secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in CONFIG}, optional=True)
    # Steps of one run write beside each other, and not among those of another run.
    kubernetes.use_field_path_as_env(task, "TANDEM_RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.mount_pvc(task, STATE_CLAIM, STATE_PATH)
    for name, path in SCRATCH.items():
        kubernetes.empty_dir_mount(task, name, path, size_limit=SCRATCH_LIMIT)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    # The backend's cache goes by the names of artefacts and not by what they hold (kubeflow/pipelines#12751): a
    # scheduled run would be given last night's rows. What is worth keeping is kept by content: encodings, checkpoints.
    task.set_caching_options(False)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    return task


def on_cpu(task: dsl.PipelineTask, cpu: str = "2", memory: str = "8Gi") -> dsl.PipelineTask:
    """A task without an accelerator."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    CPU_PATIENCE.grant(task)
    return _common(task)


def on_nodes(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task that lets several machines train, and only watches them: it needs no GPU, and their image."""
    task.set_env_variable("TANDEM_TRAIN_IMAGE", TRAIN_IMAGE)
    return on_cpu(task)


def on_gpu(task: dsl.PipelineTask, cpu: str = "4", memory: str = "32Gi") -> dsl.PipelineTask:
    """A task on one GPU node, which may be pre-empted: limit, selector and toleration belong together."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_accelerator_type(GPU).set_accelerator_limit(1)
    kubernetes.add_node_selector(task, *GPU_NODES)
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    GPU_PATIENCE.grant(task)
    return _common(task)


def on_exit(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """The exit handler: a small task that reads how the run ended, and is handed where to read it."""
    task.set_cpu_request("500m").set_cpu_limit("1").set_memory_request("512Mi").set_memory_limit("1Gi")
    EXIT_PATIENCE.grant(task)
    kubernetes.use_field_path_as_env(task, "TANDEM_NAMESPACE", "metadata.namespace")
    return _common(task, EXIT_SECRETS)
