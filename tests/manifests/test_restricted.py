"""The *restricted* Pod Security Standard and what we ask beyond it, for every pod template.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline, restricted).
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Object = dict[str, Any]
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"}


def containers(pod: Object) -> list[Object]:
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return [container for kind in kinds for container in pod.get(kind, [])]


def violations(template: Object) -> Iterator[str]:
    """Yield the name of each control that a pod template breaks."""
    pod = template["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield "host namespaces"
    for volume in pod.get("volumes", []):
        if set(volume) - {"name"} - VOLUMES:
            yield "volume types"
    annotations = template.get("metadata", {}).get("annotations", {})
    if any(key.startswith("container.apparmor") for key in annotations):
        yield "apparmor"
    outer = pod.get("securityContext", {})
    if any(sysctl["name"] not in SYSCTLS for sysctl in outer.get("sysctls", [])):
        yield "sysctls"
    for container in containers(pod):
        yield from container_violations(container, outer)


def container_violations(container: Object, outer: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = outer | own
    checks = {
        "privileged": bool(own.get("privileged")),
        "privilege escalation": own.get("allowPrivilegeEscalation") is not False,
        "capabilities drop": own.get("capabilities", {}).get("drop") != ["ALL"],
        "capabilities add": bool(
            set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}
        ),
        "run as non-root": both.get("runAsNonRoot") is not True,
        "root user": both.get("runAsUser") == 0,
        "seccomp": both.get("seccompProfile", {}).get("type")
        not in {"RuntimeDefault", "Localhost"},
        "proc mount": own.get("procMount", "Default") != "Default",
        "selinux": set(both.get("seLinuxOptions", {})) & {"user", "role"} != set(),
        "host ports": any(port.get("hostPort") for port in container.get("ports", [])),
        # Ours, beyond the standard:
        "numeric user": both.get("runAsUser") != 65532,
        "read-only root": own.get("readOnlyRootFilesystem") is not True,
        "writable /tmp": "/tmp"  # noqa: S108 - a mount path, nothing is written here
        not in [mount["mountPath"] for mount in container.get("volumeMounts", [])],
        "requests": set(container.get("resources", {}).get("requests", {})) != {"cpu", "memory"},
        "memory limit": "memory" not in container.get("resources", {}).get("limits", {}),
    }
    yield from (control for control, broken in checks.items() if broken)


def templates(overlays: dict[str, list[Object]]) -> Iterator[tuple[str, Object]]:
    for overlay, objects in overlays.items():
        for thing in objects:
            spec = thing.get("spec", {})
            template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
            if template and "containers" in template.get("spec", {}):
                yield f"{overlay}/{thing['metadata']['name']}", template


def test_every_pod_template_is_restricted(overlays: dict[str, list[Object]]) -> None:
    found = {name: list(violations(template)) for name, template in templates(overlays)}
    assert {name for name in found if name.startswith("production")} == {
        f"production/chexradinet-{name}" for name in ("buckets", "nightly", "pushgateway")
    }
    assert found == {name: [] for name in found}


def own(changes: Object) -> Callable[[Object], None]:
    """Return a change of the first container's security context."""
    return lambda template: template["spec"]["containers"][0]["securityContext"].update(changes)


def outer(changes: Object) -> Callable[[Object], None]:
    """Return a change of the pod's security context."""
    return lambda template: template["spec"]["securityContext"].update(changes)


def first(changes: Object) -> Callable[[Object], None]:
    """Return a change of the first container."""
    return lambda template: template["spec"]["containers"][0].update(changes)


def pod(changes: Object) -> Callable[[Object], None]:
    """Return a change of the pod."""
    return lambda template: template["spec"].update(changes)


PLANTED: list[tuple[str, Callable[[Object], None]]] = [
    ("host namespaces", pod({"hostNetwork": True})),
    ("host namespaces", pod({"hostPID": True})),
    ("host namespaces", pod({"hostIPC": True})),
    ("volume types", pod({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]})),
    (
        "apparmor",
        lambda t: t["metadata"].update(annotations={"container.apparmor.x": "unconfined"}),
    ),
    ("sysctls", outer({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})),
    ("privileged", own({"privileged": True})),
    ("privilege escalation", own({"allowPrivilegeEscalation": None})),
    ("capabilities drop", own({"capabilities": {}})),
    ("capabilities add", own({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}})),
    ("run as non-root", outer({"runAsNonRoot": False})),
    ("root user", own({"runAsUser": 0})),
    ("seccomp", outer({"seccompProfile": {"type": "Unconfined"}})),
    ("proc mount", own({"procMount": "Unmasked"})),
    ("selinux", outer({"seLinuxOptions": {"role": "x"}})),
    ("host ports", first({"ports": [{"containerPort": 1, "hostPort": 1}]})),
    ("numeric user", outer({"runAsUser": 1000})),
    ("read-only root", own({"readOnlyRootFilesystem": False})),
    ("writable /tmp", first({"volumeMounts": []})),
    ("requests", first({"resources": {"limits": {"memory": "1Gi"}}})),
    ("memory limit", first({"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}})),
]


@pytest.mark.parametrize(("control", "plant"), PLANTED)
def test_a_planted_violation_is_found(
    overlays: dict[str, list[Object]], control: str, plant: Callable[[Object], None]
) -> None:
    template = copy.deepcopy(next(t for name, t in templates(overlays) if "nightly" in name))
    plant(template)
    assert control in set(violations(template))


def test_a_violation_in_an_init_container_is_found(overlays: dict[str, list[Object]]) -> None:
    template = copy.deepcopy(next(t for name, t in templates(overlays) if "nightly" in name))
    template["spec"]["initContainers"] = [{"name": "bare", "image": "x"}]
    assert {"privilege escalation", "capabilities drop"} <= set(violations(template))
