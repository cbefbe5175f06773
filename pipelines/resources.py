"""Where a task runs and for how long: image, memory, accelerator, node, labels, limits.

Image, memory, accelerator, node selector and tolerations are set when a run is submitted; what the
SDK takes only as constants (timeout, retries, labels) stands in `STAGES`.

Every task has a volume at `/tmp`, the one place beside its artifacts that it writes to: so it runs
where an admission policy makes root file systems read-only.

Training has a larger `/dev/shm`, where NCCL exchanges gradients between a pod's accelerators. Other
stages need none: ingest, radiomics and scoring spawn processes that get their work over pipes and
read pixels from memory-mapped files, and keep only a few semaphores there: kilobytes of the usual
64 MiB.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_channel

from chexradinet import __version__
from chexradinet.errors import ConfigError
from pipelines.parameters import NIGHTLY, STUDY, TRAINING

STORE_SECRET = "chexradinet-object-store-{identity}"  # noqa: S105 - a Secret's name, not a secret
"""Secret of an identity of the object store; the key `sessiontoken` may be missing."""

STORE_CONFIG = "chexradinet-run"
"""ConfigMap with the addresses that a stage reads from its environment."""

ARCHIVE_SECRET = "chexradinet-dicomweb"  # noqa: S105 - the name of a Secret, not a secret
"""Secret with the credentials of the PACS to read, keys `token`, or `user` and `password`."""

RESULTS_ARCHIVE_SECRET = "chexradinet-archive"  # noqa: S105 - the name of a Secret, not a secret
"""Secret with the credentials of the archive that results are sent to, with the same keys."""

AUTHORITIES = "chexradinet-ca"
"""ConfigMap with the certificates of private authorities, key `ca.crt`."""

AUTHORITIES_FOLDER = "/etc/chexradinet/ca"
"""Where it is mounted; `AWS_CA_BUNDLE` and `DICOMWEB_CA_BUNDLE` name the file in it."""

DEIDENTIFICATION_SECRET = "chexradinet-deidentification"  # noqa: S105 - a Secret's name
"""Secret with the key that patient identifiers are hashed with, key `key`."""

RUN_ACCOUNT = "chexradinet-runner"
"""ServiceAccount of runs, with the least that Kubeflow and Argo need."""

SCRATCH_LIMIT = "32Gi"
"""Most that a step may write to `/tmp`; Kubernetes evicts a pod that writes more."""

SHARED_MEMORY_LIMIT = "2Gi"
"""Most that a training may write to `/dev/shm`; what is written counts as the step's memory."""

RUN_AS_USER = 65532
"""User and group of every step, as in the worker image."""

IDENTITIES = {
    TRAINING: "training",
    STUDY: "training",
    NIGHTLY: "night",
    "ingest": "ingest",
    "publish": "publish",
}
"""Identity of the object store that a stage acts as, by its name or else its pipeline."""
_HOUR_S = 3600
_NODE_WAIT_S = 24 * _HOUR_S
"""Time that an attempt may wait for a node; a pod's own limit does not count it, Argo's does."""
_BACKOFF_S, _BACKOFF_FACTOR = 30, 2.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Constants of a stage's pods."""

    pipeline: str
    """Name of the pipeline that the stage's cost belongs to."""
    timeout_s: int
    """Seconds after which Kubernetes ends a pod of the stage; each attempt has its own."""
    retries: int
    """Attempts after the first. A stage that reads or writes storage or may be evicted has some."""

    @property
    def backoff_max_s(self) -> int:
        """Seconds for all attempts together, from the start of the first, waiting included.

        kfp's `backoff_max_duration` (one hour unless set) becomes a deadline of every attempt: a
        pod that runs at that time is ended, and a failure after it is not retried.
        """
        waits = sum(_BACKOFF_S * _BACKOFF_FACTOR**number for number in range(self.retries))
        return int(waits) + (self.timeout_s + _NODE_WAIT_S) * (self.retries + 1)


STAGES = {
    "ingest": Stage(pipeline=TRAINING, timeout_s=24 * _HOUR_S, retries=2),
    "train": Stage(pipeline=TRAINING, timeout_s=72 * _HOUR_S, retries=2),
    "configure": Stage(pipeline=TRAINING, timeout_s=_HOUR_S, retries=1),
    "heatmap": Stage(pipeline=TRAINING, timeout_s=12 * _HOUR_S, retries=2),
    "radiomics": Stage(pipeline=TRAINING, timeout_s=24 * _HOUR_S, retries=2),
    "retrain": Stage(pipeline=TRAINING, timeout_s=72 * _HOUR_S, retries=2),
    "evaluate": Stage(pipeline=TRAINING, timeout_s=12 * _HOUR_S, retries=2),
    "publish": Stage(pipeline=TRAINING, timeout_s=2 * _HOUR_S, retries=2),
    "plan": Stage(pipeline=NIGHTLY, timeout_s=2 * _HOUR_S, retries=2),
    "score": Stage(pipeline=NIGHTLY, timeout_s=8 * _HOUR_S, retries=2),
    "collect": Stage(pipeline=NIGHTLY, timeout_s=4 * _HOUR_S, retries=2),
    "study-plan": Stage(pipeline=STUDY, timeout_s=_HOUR_S, retries=1),
    "study-run": Stage(pipeline=STUDY, timeout_s=72 * _HOUR_S, retries=2),
    "study-report": Stage(pipeline=STUDY, timeout_s=4 * _HOUR_S, retries=2),
    "upload": Stage(pipeline=NIGHTLY, timeout_s=4 * _HOUR_S, retries=2),
    "report-outcome": Stage(pipeline=NIGHTLY, timeout_s=_HOUR_S // 2, retries=2),
}
"""Every stage by the name of its component."""


class Placement(NamedTuple):
    """Run-time parameters that place a task; members are pipeline parameters, not values."""

    image: Any
    accelerator_type: Any
    node_selector: Any
    tolerations: Any


def on_processor(task: dsl.PipelineTask, placement: Placement, memory: object) -> dsl.PipelineTask:
    """Run a task on ordinary nodes, with its stage's limits, labels and Pushgateway.

    Args:
        task: Task of a stage in `STAGES`.
        placement: Image of the task.
        memory: Request and limit, such as `8Gi`, or a text parameter of the pipeline.

    Raises:
        ConfigError: `STAGES` does not know the task's stage.
    """
    name = str(task.component_spec.name)
    if name not in STAGES:
        raise ConfigError(f"stage {name!r} has no limits; add it to STAGES in {__name__}")
    stage = STAGES[name]
    task.set_container_image(placement.image)
    task.set_cpu_request("1").set_memory_request(memory).set_memory_limit(memory)
    _hand_on(task, memory)
    # Eviction and a failed download look the same to Kubernetes: both end the pod.
    task.set_retry(
        num_retries=stage.retries,
        backoff_duration=f"{_BACKOFF_S}s",
        backoff_factor=_BACKOFF_FACTOR,
        backoff_max_duration=f"{stage.backoff_max_s}s",
    )
    kubernetes.set_timeout(task, stage.timeout_s)
    kubernetes.set_security_context(
        task, run_as_user=RUN_AS_USER, run_as_group=RUN_AS_USER, run_as_non_root=True
    )
    kubernetes.empty_dir_mount(
        task,
        volume_name="tmp",
        mount_path="/tmp",  # noqa: S108 - in the pod
        size_limit=SCRATCH_LIMIT,
    )
    kubernetes.use_config_map_as_volume(
        task, config_map_name=AUTHORITIES, mount_path=AUTHORITIES_FOLDER, optional=True
    )
    _label(task, name, stage)
    # The second not for the stage alone: Kubeflow's launcher runs in the same container, moves the
    # artifacts of every stage, and reads it as the stages do, an empty text as nothing.
    return _with_addresses(task, "PUSHGATEWAY_URL", "AWS_CA_BUNDLE")


def on_accelerator(
    task: dsl.PipelineTask, placement: Placement, memory: object, count: object
) -> dsl.PipelineTask:
    """Run a task on accelerator nodes; a count of "0" or an empty type asks for none.

    Args:
        task: Task of a stage in `STAGES`.
        placement: Image, accelerator and nodes of the task.
        memory: As `on_processor` takes it.
        count: Text, or a parameter or task output of type text: the driver reads a number as
            nothing and starts the task without an accelerator (`lint.numbers_as_settings`).
    """
    on_processor(task, placement, memory)
    task.set_accelerator_type(placement.accelerator_type).set_accelerator_limit(count)
    _hand_on(task, placement.accelerator_type, count)
    kubernetes.add_node_selector_json(task, placement.node_selector)
    kubernetes.add_toleration_json(task, placement.tolerations)
    return task


def with_shared_memory(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task whose processes exchange gradients a `/dev/shm` that is large enough for it."""
    kubernetes.empty_dir_mount(
        task,
        volume_name="shared-memory",
        mount_path="/dev/shm",  # noqa: S108 - in the pod
        medium="Memory",
        size_limit=SHARED_MEMORY_LIMIT,
    )
    return task


def with_store(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task the object store's address, and the credentials of its stage's identity."""
    name = str(task.component_spec.name)
    identity = IDENTITIES.get(name) or IDENTITIES[STAGES[name].pipeline]
    kubernetes.use_secret_as_env(
        task,
        secret_name=STORE_SECRET.format(identity=identity),
        secret_key_to_env={
            "accesskey": "AWS_ACCESS_KEY_ID",
            "secretkey": "AWS_SECRET_ACCESS_KEY",
            "sessiontoken": "AWS_SESSION_TOKEN",
        },
        optional=True,
    )
    return _with_addresses(task, "AWS_ENDPOINT_URL", "AWS_REGION")


def with_archive(task: dsl.PipelineTask, secret: str = ARCHIVE_SECRET) -> dsl.PipelineTask:
    """Give a task what it needs to speak DICOMweb with a PACS."""
    kubernetes.use_secret_as_env(
        task,
        secret_name=secret,
        secret_key_to_env={
            "token": "DICOMWEB_TOKEN",
            "user": "DICOMWEB_USER",
            "password": "DICOMWEB_PASSWORD",
        },
        optional=True,
    )
    return _with_addresses(task, "DICOMWEB_CA_BUNDLE")


def with_deidentification(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task the key that patient identifiers are hashed with."""
    kubernetes.use_secret_as_env(
        task,
        secret_name=DEIDENTIFICATION_SECRET,
        secret_key_to_env={"key": "CHEXRADINET_DEIDENTIFICATION_KEY"},
        optional=True,
    )
    return task


def with_model_registry(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task the address of the Model Registry."""
    return _with_addresses(task, "MODEL_REGISTRY_URL")


def with_checkpoints(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task the store and a folder in it, so that its retry continues where it was ended."""
    return _with_addresses(with_store(task), "CHEXRADINET_CHECKPOINT_URI")


def _with_addresses(task: dsl.PipelineTask, *names: str) -> dsl.PipelineTask:
    kubernetes.use_config_map_as_env(
        task,
        config_map_name=STORE_CONFIG,
        config_map_key_to_env={name: name for name in names},
        optional=True,
    )
    return task


def _label(task: dsl.PipelineTask, name: str, stage: Stage) -> None:
    # The run's id needs no label of ours: Kubeflow puts `pipeline/runid` on every pod of a run.
    labels = {
        "app.kubernetes.io/part-of": "chexradinet",
        "app.kubernetes.io/name": stage.pipeline,
        "app.kubernetes.io/component": name,
        "app.kubernetes.io/version": __version__,
    }
    for key, value in labels.items():
        kubernetes.add_pod_label(task, key, value)


def _hand_on(task: dsl.PipelineTask, *settings: object) -> None:
    # A loop hands on only what its tasks take as input, and kfp counts no resource setting as one.
    channels = pipeline_channel.extract_pipeline_channels_from_any(list(settings))
    task.register_pipeline_channels(channels)
