"""Resources, secrets, retries and timeouts of each class of task, in one place.

A cluster gets it from the compiled platform spec; a local run ignores it, and takes the retries out.
"""

from kfp import dsl, kubernetes

#: Environment of every task: MLFLOW_TRACKING_URI, TANDEM_FEAST, TANDEM_HOME, TANDEM_DATA.
CONFIG_MAP = "tandem-config"
#: Credentials of every task, key by key the environment variable of the same name.
SECRETS = {
    "tandem-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "tandem-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "tandem-feast": ("TANDEM_FEAST_REGISTRY", "TANDEM_FEAST_REDIS"),
    "tandem-webhook": ("TANDEM_WEBHOOK",),
}
CONFIG = ("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "TANDEM_FEAST", "TANDEM_HOME", "TANDEM_DATA")
GPU = "nvidia.com/gpu"


def _common(task: dsl.PipelineTask) -> dsl.PipelineTask:
    for secret, keys in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in CONFIG}, optional=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=10001, run_as_group=10001, run_as_non_root=True)
    return task


def on_cpu(task: dsl.PipelineTask, cpu: str = "2", memory: str = "8Gi") -> dsl.PipelineTask:
    """A task without an accelerator; tried again twice after a lost node."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="10m")
    kubernetes.set_timeout(task, seconds=4 * 3600)
    return _common(task)


def on_gpu(task: dsl.PipelineTask, cpu: str = "4", memory: str = "32Gi") -> dsl.PipelineTask:
    """A task on one GPU node, which may be pre-empted: limit, selector and toleration belong together."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_accelerator_type(GPU).set_accelerator_limit(1)
    task.set_retry(num_retries=5, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="30m")
    kubernetes.add_node_selector(task, "tandem.dev/accelerator", "gpu")
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    kubernetes.set_timeout(task, seconds=12 * 3600)
    return _common(task)
