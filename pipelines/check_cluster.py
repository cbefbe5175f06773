"""What an installation has of what a run needs, before one is started."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import kfp_server_api as kfp_api
import yaml
from rich.console import Console
from rich.table import Table

from pipelines.api import TIMEOUT_S, Api, explained
from pipelines.cluster import Unknown, kubectl
from pipelines.resources import (
    DEIDENTIFICATION_SECRET,
    IDENTITIES,
    RUN_ACCOUNT,
    STORE_CONFIG,
    STORE_SECRET,
)

MINIMUM_VERSION = (2, 17)
STORE_NAMESPACE = "chexradinet-store"
BUCKETS_JOB = "chexradinet-buckets"


class State(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    subject: str
    state: State
    detail: str


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where to look."""

    api: Api
    namespace: str
    """Namespace of the runs."""
    kubeflow_namespace: str
    """Namespace of Kubeflow Pipelines itself."""
    image: str
    """Worker image; empty if runs use another."""
    memory: str
    """Largest memory of a step, as a Kubernetes quantity."""


def check_cluster(site: Site) -> list[Finding]:
    """Return what the installation has and lacks; nothing is changed."""
    checks: tuple[Callable[[Site], Iterator[Finding]], ...] = (
        _version,
        _retries,
        _objects,
        _buckets,
        _nodes,
    )
    return [finding for check in checks for finding in check(site)]


def show(findings: list[Finding], console: Console) -> bool:
    """Print findings as a table; return whether none failed."""
    table = Table(box=None, pad_edge=False)
    for title in ("check", "state", "detail"):
        table.add_column(title, overflow="fold")
    for one in findings:
        table.add_row(one.subject, one.state.value, one.detail)
    console.print(table, highlight=False)
    return all(one.state != State.FAILED for one in findings)


def _version(site: Site) -> Iterator[Finding]:
    with explained(site.api.endpoint, "asking for the version"):
        client = site.api.runs.api_client
        kfp_api.HealthzServiceApi(client).healthz_service_get_healthz(_request_timeout=TIMEOUT_S)
    # The generated model lacks the field that the server sends; the web interface renames it.
    said = json.loads(client.last_response.data)
    found = str(said.get("tag_name") or said.get("apiServerTagName") or "unknown")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    enough = len(numbers) == 2 and numbers >= MINIMUM_VERSION
    needed = "" if enough else "; it must be 2.17 or later"
    yield Finding("Kubeflow Pipelines", State.OK if enough else State.FAILED, found + needed)


def _retries(site: Site) -> Iterator[Finding]:
    """Tell which retries Argo grants: docs/operations.md, Evictions."""
    subject = "Argo's retries"
    found = _get("configmap", "workflow-controller-configmap", site.kubeflow_namespace)
    if isinstance(found, Unknown):
        yield Finding(subject, State.WARNING, f"not known: {found}")
        return
    defaults = yaml.safe_load(found.get("data", {}).get("workflowDefaults", "")) or {}
    strategy = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
    policy, limit = strategy.get("retryPolicy", "OnFailure"), str(strategy.get("limit", "none"))
    text = f"retryPolicy {policy}, limit {limit}: "
    if policy == "Always" and limit == "0":
        yield Finding(subject, State.OK, text + "failed and deleted pods are tried again")
    elif policy == "OnError":
        text += "a failed container ends the run; see manifests/options/argo-retries"
        yield Finding(subject, State.WARNING, text)
    else:
        text += "DAGs repeat their steps, or lost pods are not tried again; set limit '0', Always"
        yield Finding(subject, State.WARNING, text)


def _objects(site: Site) -> Iterator[Finding]:
    secrets = {STORE_SECRET.format(identity="artifacts"), DEIDENTIFICATION_SECRET}
    secrets |= {STORE_SECRET.format(identity=one) for one in IDENTITIES.values()}
    wanted = [
        ("serviceaccount", RUN_ACCOUNT),
        ("configmap", STORE_CONFIG),
        ("configmap", "kfp-launcher"),
        *(("secret", name) for name in sorted(secrets)),
    ]
    for kind, name in wanted:
        subject = f"{kind} {name}"
        # Names alone: the values of a Secret are nobody's business here.
        found = kubectl("get", kind, name, "--namespace", site.namespace, "--output", "name")
        if isinstance(found, Unknown):
            yield Finding(subject, State.FAILED, str(found))
        else:
            yield Finding(subject, State.OK, f"in {site.namespace}")


def _buckets(site: Site) -> Iterator[Finding]:
    subject = f"job {BUCKETS_JOB}"
    found = _get("job", BUCKETS_JOB, STORE_NAMESPACE)
    if isinstance(found, Unknown):
        yield Finding(subject, State.WARNING, f"buckets and policies not known: {found}")
    elif found.get("status", {}).get("succeeded"):
        yield Finding(subject, State.OK, "made buckets, users and policies")
    else:
        yield Finding(subject, State.FAILED, f"has not succeeded in {STORE_NAMESPACE}")


def _nodes(site: Site) -> Iterator[Finding]:
    listed, pods = kubectl("get", "nodes", "-o", "json"), kubectl("get", "pods", "-A", "-o", "json")
    for answer in (listed, pods):
        if isinstance(answer, Unknown):
            yield Finding("nodes", State.WARNING, f"not known: {answer}")
            return
    nodes: list[dict[str, Any]] = json.loads(listed)["items"]
    free = list(_free(nodes, json.loads(pods)["items"]))
    fits = any(cores >= 1 and memory >= quantity(site.memory) for cores, memory in free)
    cores, memory = max(free, default=(0.0, 0.0))
    text = f"{len(nodes)}; the emptiest has {cores:.1f} cores and {memory / 2**30:.0f} GiB free"
    needed = f"; a step needs 1 core and {site.memory} on one node"
    yield Finding("nodes", State.OK if fits else State.FAILED, text + ("" if fits else needed))
    if site.image:
        yield _image(site.image, nodes)


def _free(nodes: list[dict[str, Any]], pods: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """Yield the cores and bytes of each node that no pod but those of runs, which end, asks for."""
    for node in nodes:
        asked = [
            container.get("resources", {}).get("requests", {})
            for pod in pods
            if pod["spec"].get("nodeName") == node["metadata"]["name"]
            and pod["status"].get("phase") not in ("Succeeded", "Failed")
            and "pipeline/runid" not in pod["metadata"].get("labels", {})
            for container in pod["spec"]["containers"]
        ]
        offered = node["status"]["allocatable"]
        cores, memory = (
            quantity(offered[kind]) - sum(quantity(one.get(kind, "0")) for one in asked)
            for kind in ("cpu", "memory")
        )
        yield cores, memory


def _image(image: str, nodes: list[dict[str, Any]]) -> Finding:
    names = {image, f"docker.io/library/{image}"}
    having = sum(
        any(names & set(held.get("names") or []) for held in node["status"].get("images", []))
        for node in nodes
    )
    text = f"{image} is on {having} of {len(nodes)} nodes"
    if having == len(nodes):
        return Finding("worker image", State.OK, text)
    # A registry may have it; without one, only nodes that were given it can start it.
    return Finding("worker image", State.WARNING if "/" in image else State.FAILED, text)


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number: cores, or bytes."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")}
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * units[unit]
    return float(text)


def _get(kind: str, name: str, namespace: str) -> Any:  # noqa: ANN401 - an object, or Unknown
    found = kubectl("get", kind, name, "--namespace", namespace, "--output", "json")
    return found if isinstance(found, Unknown) else json.loads(found)
