"""A Job beside the bucket Job, as the store's administrator, from the worker image."""

import json
import time

import yaml

from chexradinet.errors import ChexRadiNetError
from pipelines.check_cluster import BUCKETS_JOB, STORE_NAMESPACE
from pipelines.cluster import Unknown, kubectl

_POLL_S = 3.0


def run_store_job(name: str, script: str, within_s: float = 1200.0) -> str:
    """Run a Python script where the bucket Job runs, with its credentials; return its log.

    Raises:
        ChexRadiNetError: there is no bucket Job, or the script failed or took too long.
    """
    place = ("--namespace", STORE_NAMESPACE)
    found = kubectl("get", "job", BUCKETS_JOB, *place, "--output", "json")
    if isinstance(found, Unknown):
        raise ChexRadiNetError(f"job {BUCKETS_JOB} in {STORE_NAMESPACE}: {found}")
    template = json.loads(found)["spec"]["template"]
    labels = template["metadata"]["labels"]
    ours = {key: value for key, value in labels.items() if not key.endswith(("-uid", "job-name"))}
    container = template["spec"]["containers"][0]
    container |= {"command": ["python3", "-c", script], "args": []}
    container["resources"] = {
        "requests": {"cpu": "100m", "memory": "1Gi"},
        "limits": {"memory": "2Gi"},
    }
    for volume in template["spec"].get("volumes", []):
        if "emptyDir" in volume:
            volume["emptyDir"] = {"sizeLimit": "1Gi"}
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": ours}, "spec": template["spec"]},
        },
    }
    made = kubectl("apply", *place, "-f", "-", given=yaml.safe_dump(manifest))
    if isinstance(made, Unknown):
        raise ChexRadiNetError(f"job {name}: {made}")
    try:
        return _ended(name, within_s)
    finally:
        kubectl("delete", "job", name, *place, "--wait=false")


def _ended(name: str, within_s: float) -> str:
    place = ("--namespace", STORE_NAMESPACE)
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        found = kubectl("get", "job", name, *place, "--output", "json")
        status = {} if isinstance(found, Unknown) else json.loads(found).get("status", {})
        if status.get("succeeded") or status.get("failed"):
            log = kubectl("logs", f"job/{name}", *place)
            if status.get("succeeded"):
                return log
            raise ChexRadiNetError(f"job {name} failed: {' '.join(log.split()[-40:])}")
        time.sleep(_POLL_S)
    raise ChexRadiNetError(f"job {name} did not end within {within_s:.0f} s")
