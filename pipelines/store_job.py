"""A Job beside the bucket Job, as the store's administrator, from the worker image."""

import copy
import json
import time
from collections.abc import Mapping
from typing import Any

import yaml

from chexradinet.errors import ChexRadiNetError
from pipelines.check_cluster import BUCKETS_JOB, STORE_NAMESPACE
from pipelines.cluster import Unknown, kubectl

_POLL_S = 3.0


def bucket_job_template() -> dict[str, Any]:
    """Return the pod template of the bucket Job.

    Raises:
        ChexRadiNetError: there is no bucket Job.
    """
    place = ("--namespace", STORE_NAMESPACE, "--output", "json")
    found = kubectl("get", "job", BUCKETS_JOB, *place)
    if isinstance(found, Unknown):
        raise ChexRadiNetError(
            f"job {BUCKETS_JOB} in {STORE_NAMESPACE}: {found}; apply the manifests again"
        )
    template: dict[str, Any] = json.loads(found)["spec"]["template"]
    return template


def run_store_job(
    template: Mapping[str, Any], name: str, script: str, within_s: float = 1200.0
) -> None:
    """Run a Python script where the bucket Job runs, with its credentials.

    Args:
        template: What `bucket_job_template` returned.
        name: Name of the Job, which is removed at the end.
        script: Python source.
        within_s: Most seconds that it may take.

    Raises:
        ChexRadiNetError: the script failed or took too long.
    """
    place = ("--namespace", STORE_NAMESPACE)
    labels = template["metadata"]["labels"]
    ours = {key: value for key, value in labels.items() if not key.endswith(("-uid", "job-name"))}
    spec = copy.deepcopy(template["spec"])
    spec["containers"][0] |= {
        "command": ["python3", "-c", script],
        "args": [],
        "resources": {
            "requests": {"cpu": "100m", "memory": "1Gi"},
            "limits": {"memory": "2Gi"},
        },
    }
    for volume in spec.get("volumes", []):
        if "emptyDir" in volume:
            volume["emptyDir"] = {"sizeLimit": "1Gi"}
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": ours}, "spec": spec}},
    }
    made = kubectl("apply", *place, "-f", "-", given=yaml.safe_dump(manifest))
    if isinstance(made, Unknown):
        raise ChexRadiNetError(f"job {name}: {made}")
    try:
        _await_end(name, within_s)
    finally:
        kubectl("delete", "job", name, *place, "--wait=false")


def _await_end(name: str, within_s: float) -> None:
    place = ("--namespace", STORE_NAMESPACE)
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        found = kubectl("get", "job", name, *place, "--output", "json")
        status = {} if isinstance(found, Unknown) else json.loads(found).get("status", {})
        if status.get("succeeded"):
            return
        if status.get("failed"):
            log = kubectl("logs", f"job/{name}", *place)
            raise ChexRadiNetError(f"job {name} failed: {' '.join(log.split()[-40:])}")
        time.sleep(_POLL_S)
    raise ChexRadiNetError(f"job {name} did not end within {within_s:.0f} s")
