"""Where a task runs: image, memory, accelerator, node. All of it set when a run is submitted."""

from typing import Any, NamedTuple

from kfp import dsl, kubernetes

STORE_SECRET = "chexradinet-object-store"  # noqa: S105 - the name of a Secret, not a secret
"""Secret with the object store's credentials, keys `accesskey` and `secretkey`."""

STORE_CONFIG = "chexradinet-run"
"""ConfigMap with the addresses that a stage reads from its environment."""

DEIDENTIFICATION_SECRET = "chexradinet-deidentification"  # noqa: S105 - a Secret's name
"""Secret with the key that patient identifiers are hashed with, key `key`."""


class Placement(NamedTuple):
    """Run-time parameters that place a task; members are pipeline parameters, not values."""

    image: Any
    accelerator_type: Any
    node_selector: Any
    tolerations: Any


def on_processor(task: dsl.PipelineTask, placement: Placement, memory: str) -> dsl.PipelineTask:
    """Run a task on ordinary nodes with this much memory."""
    task.set_container_image(placement.image)
    task.set_cpu_request("1").set_memory_request(memory).set_memory_limit(memory)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "chexradinet")
    return task


def on_accelerator(
    task: dsl.PipelineTask, placement: Placement, memory: str, count: object
) -> dsl.PipelineTask:
    """Run a task on accelerator nodes; a count of 0 or an empty type asks for none."""
    on_processor(task, placement, memory)
    task.set_accelerator_type(placement.accelerator_type).set_accelerator_limit(count)
    kubernetes.add_node_selector_json(task, placement.node_selector)
    kubernetes.add_toleration_json(task, placement.tolerations)
    return task


def with_store(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task the object store's address and credentials, and let it try again on failure."""
    kubernetes.use_secret_as_env(
        task,
        secret_name=STORE_SECRET,
        secret_key_to_env={"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"},
        optional=True,
    )
    kubernetes.use_config_map_as_env(
        task,
        config_map_name=STORE_CONFIG,
        config_map_key_to_env={
            "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL",
            "AWS_REGION": "AWS_REGION",
            "PUSHGATEWAY_URL": "PUSHGATEWAY_URL",
        },
        optional=True,
    )
    return task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0)
