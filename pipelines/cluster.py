"""What the cluster offers, as far as `kubectl` can tell, before a run asks for it."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from chexradinet.errors import ConfigError

_TIMEOUT_S = 15
_PODS_SHOWN, _LINES_SHOWN, _LINES_READ = 3, 8, 60
_LAUNCHER = re.compile(r"[IWEF]\d{4} |time=.* argo=true|Error: exit status")
"""Lines that Kubeflow's launcher and Argo write after those of the step."""
_NODE = "workflows.argoproj.io/node-name"
"""Annotation with the path of a pod's node from the root of the run."""


def check_accelerators(accelerator_type: str, count: int, selector: Mapping[str, str]) -> str:
    """Refuse accelerators that no node has; return a note if that cannot be known.

    Args:
        accelerator_type: Kubernetes resource, such as `nvidia.com/gpu`; empty asks for none.
        count: Accelerators that one step wants.
        selector: Labels that the step's node must have.

    Returns:
        Why it could not be checked; empty if it was, or if nothing is asked for.

    Raises:
        ConfigError: the cluster of kubectl's current context has no node that fits.
    """
    if not accelerator_type or count < 1:
        return ""
    nodes = _nodes()
    if isinstance(nodes, str):
        return f"cannot tell whether the cluster has {count} x {accelerator_type}: {nodes}"
    fitting = [node for node in nodes if _has_labels(node, selector)]
    offered = [_offered(node, accelerator_type) for node in fitting]
    if any(number >= count for number in offered):
        return ""
    labels = f" with labels {dict(selector)}" if selector else ""
    raise ConfigError(
        f"each step asks for {count} x {accelerator_type}, but of {len(nodes)} nodes the best"
        f"{labels} offers {max(offered, default=0)} (kubectl's current context); use a cluster "
        "that has some, --set accelerator_count=0 to run on processors, or --no-check-cluster "
        "if nodes are added on demand"
    )


def failed_pods(run_id: str, namespace: str) -> str:
    """Return the failed pods of a run with the end of their logs, or how to look for them.

    Args:
        run_id: The run; Kubeflow labels each of its pods with it.
        namespace: Namespace of its pods.
    """
    place = ["--namespace", namespace]
    listing = ["get", "pods", *place, "--selector", f"pipeline/runid={run_id}"]
    found = kubectl(*listing, "--field-selector", "status.phase=Failed", "--output", "json")
    pods = [] if isinstance(found, Unknown) else json.loads(found or "{}").get("items", [])
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    lines = []
    for pod in pods[-_PODS_SHOWN:]:
        name = pod["metadata"]["name"]
        logs = ["logs", *place, name, "--container", "main"]
        said = kubectl(*logs, f"--tail={_LINES_READ}").splitlines()
        said = [line for line in said if not _LAUNCHER.match(line)][-_LINES_SHOWN:]
        step = re.sub(r"\(\d+(:\d+)?\)", "", pod["metadata"].get("annotations", {}).get(_NODE, ""))
        lines.append(f"pod {name} ({step.partition('.root.')[2] or 'step unknown'}) failed:")
        lines += [f"    {line}" for line in said]
        lines.append(f"    all of it: kubectl {' '.join(logs)}")
    if not lines:
        lines = [f"what failed shows: kubectl {' '.join(listing)}"]
    return "\n".join(lines)


class Unknown(str):
    """Why kubectl gave no answer."""

    __slots__ = ()


def kubectl(*words: str, given: str | None = None) -> str:
    """Return what a kubectl command prints, or `Unknown`: why it printed nothing.

    Args:
        words: The command.
        given: Text for its standard input.
    """
    if shutil.which("kubectl") is None:
        return Unknown("kubectl is not installed")
    command = ["kubectl", *words, f"--request-timeout={_TIMEOUT_S}s"]
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=2 * _TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Unknown(f"kubectl did not answer within {2 * _TIMEOUT_S} s")
    if done.returncode:
        return Unknown(f"kubectl says {(done.stderr.strip().splitlines() or ['nothing'])[-1]!r}")
    return done.stdout


def _nodes() -> list[dict[str, Any]] | str:
    """Return the cluster's nodes, or why they are not known."""
    found = kubectl("get", "nodes", "--output", "json")
    if isinstance(found, Unknown):
        return found
    try:
        items: list[dict[str, Any]] = json.loads(found or "{}").get("items", [])
    except ValueError:
        return "kubectl's output is not JSON"
    return items


def _has_labels(node: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    labels = node.get("metadata", {}).get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def _offered(node: Mapping[str, Any], accelerator_type: str) -> int:
    return int(node.get("status", {}).get("allocatable", {}).get(accelerator_type, 0))
