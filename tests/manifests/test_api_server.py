"""The overlays on a real API server: what it takes, what it refuses, what each account may do."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_nightly, compile_training
from tests.manifests.api_server import ApiServer, enforce_quota
from tests.manifests.objects import NAMES, Object, pod_templates

pytestmark = pytest.mark.cluster

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
STORE = "chexradinet-store"
ACCOUNTS = "chexradinet-runner", "chexradinet-nightly", "chexradinet-buckets"
MAY = [
    ("chexradinet-runner", "get", "configmaps/kfp-launcher"),
    ("chexradinet-runner", "get", "secrets/chexradinet-object-store-artifacts"),
    ("chexradinet-runner", "create", "workflowtaskresults.argoproj.io"),
    ("chexradinet-nightly", "create", "runs.pipelines.kubeflow.org"),
    ("chexradinet-nightly", "get", "pipelines.pipelines.kubeflow.org"),
]
MAY_NOT = [
    ("chexradinet-runner", "get", "secrets/chexradinet-object-store-root"),
    ("chexradinet-runner", "get", "secrets/chexradinet-deidentification"),
    ("chexradinet-runner", "get", "secrets/chexradinet-object-store-publish"),
    ("chexradinet-runner", "list", "secrets"),
    ("chexradinet-runner", "list", "pods"),
    ("chexradinet-runner", "create", "pods"),
    ("chexradinet-runner", "create", "pods/exec"),
    ("chexradinet-runner", "delete", "pods"),
    ("chexradinet-runner", "update", "configmaps/kfp-launcher"),
    ("chexradinet-nightly", "get", "secrets/chexradinet-object-store-artifacts"),
    ("chexradinet-nightly", "delete", "runs.pipelines.kubeflow.org"),
    ("chexradinet-nightly", "create", "pods"),
    ("chexradinet-buckets", "get", "secrets/chexradinet-object-store-root"),
    ("chexradinet-buckets", "list", "pods"),
]


@pytest.fixture(scope="module", params=NAMES)
def installed(
    request: pytest.FixtureRequest, server: ApiServer, overlays: dict[str, list[Object]]
) -> tuple[str, list[Object]]:
    """Return the runs' namespace and the objects of an overlay, applied as *restricted*."""
    objects = overlays[request.param]
    (namespace,) = [o["metadata"]["namespace"] for o in objects if o["kind"] == "CronJob"]
    for name in (namespace, STORE):
        space: Object = {"apiVersion": "v1", "kind": "Namespace"}
        space |= {"metadata": {"name": name, "labels": RESTRICTED}}
        # A controller makes this account; there is none here.
        default: Object = {"apiVersion": "v1", "kind": "ServiceAccount"}
        default |= {"metadata": {"name": "default", "namespace": name}}
        server.kubectl("apply", "--server-side", "-f", "-", given=[space, default])
    # The overlays share the store's namespace, and a Job with another image cannot be applied over.
    server.kubectl("-n", STORE, "delete", "job", "--all", "--cascade=background", "--wait=false")
    server.kubectl("apply", "--server-side", "-f", "-", given=objects)
    enforce_quota(server, namespace, objects)
    return namespace, objects


def pod_of(name: str, template: Object, namespace: str) -> Object:
    metadata = {"name": name.lower().replace("/", "-"), "namespace": namespace}
    metadata["labels"] = template["metadata"]["labels"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def test_applying_again_changes_nothing(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    namespace, objects = installed
    server.kubectl("apply", "--server-side", "-f", "-", given=objects)
    assert server.kubectl("diff", "--server-side", "-f", "-", given=objects) == ""
    for space, kind in ((namespace, "cronjob"), (STORE, "job")):
        kept = yaml.safe_load(server.kubectl("-n", space, "get", kind, "-o", "yaml"))
        assert len(kept["items"]) == 1


def test_every_pod_is_admitted_where_pods_are_restricted_and_counted(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    namespace, objects = installed
    admitted = []
    for name, template in pod_templates(objects):
        served_here = "nightly" in name or "pushgateway" in name
        pod = pod_of(name, template, namespace if served_here else STORE)
        said = server.kubectl("create", "--dry-run=server", "-f", "-", given=pod)
        assert "would violate" not in said
        admitted.append(name)
    assert {"Job/chexradinet-buckets", "CronJob/chexradinet-nightly"} < set(admitted)


def test_a_pod_with_rights_it_does_not_need_is_refused(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    namespace, objects = installed
    name, template = next(iter(pod_templates(objects)))
    loose = copy.deepcopy(template)
    del loose["spec"]["containers"][0]["securityContext"]["capabilities"]
    loose["spec"].pop("serviceAccountName", None)
    pod = pod_of(name, loose, namespace)
    said = server.kubectl("create", "--dry-run=server", "-f", "-", given=pod, ok=False)
    assert "violates PodSecurity" in said
    assert "unrestricted capabilities" in said


def test_each_account_may_what_its_work_needs_and_nothing_else(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    namespace, _ = installed
    assert allowed(server, namespace, [*MAY, *MAY_NOT], within=namespace) == set(MAY)


def test_no_account_may_anything_in_another_namespace(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    asked = {(verb, what) for _, verb, what in (*MAY, *MAY_NOT)}
    all_of_them = [(account, *one) for account in ACCOUNTS for one in sorted(asked)]
    for space in ("kube-system", STORE):
        assert not allowed(server, installed[0], all_of_them, within=space)


def allowed(
    server: ApiServer, namespace: str, asked: list[tuple[str, str, str]], within: str
) -> set[tuple[str, str, str]]:
    """Return what of account, verb and resource the server allows in a namespace."""
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
                "resourceAttributes": attributes(verb, what, within),
            },
        }
        for account, verb, what in asked
    ]
    answers = server.kubectl("create", "-o", "yaml", "-f", "-", given=reviews)
    statuses = [one["status"]["allowed"] for one in yaml.safe_load_all(answers)]
    return {one for one, may in zip(asked, statuses, strict=True) if may}


def attributes(verb: str, what: str, namespace: str) -> dict[str, str]:
    """Return what is asked: `resource[.group]`, then `/` and a name or, of pods, a subresource."""
    resource, _, rest = what.partition("/")
    resource, _, group = resource.partition(".")
    asked = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
    return asked | ({"subresource" if resource == "pods" else "name": rest} if rest else {})


def gpu_pod(namespace: str, number: str) -> Object:
    """Return a pod as a training's that asks for GPUs."""
    amount = {"cpu": "1", "memory": "16Gi", "nvidia.com/gpu": number}
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container: dict[str, Any] = {"name": "main", "image": "any", "securityContext": context}
    container["resources"] = {"requests": amount, "limits": amount}
    metadata = {"name": "training", "namespace": namespace}
    spec = {"containers": [container], "serviceAccountName": "chexradinet-runner"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("installed", ["production"], indirect=True)
def test_the_production_quota_admits_four_gpus_and_no_fifth(
    server: ApiServer, installed: tuple[str, list[Object]]
) -> None:
    namespace, _ = installed
    create = "create", "--dry-run=server", "-f", "-"
    server.kubectl(*create, given=gpu_pod(namespace, "4"))
    said = server.kubectl(*create, given=gpu_pod(namespace, "5"), ok=False)
    assert "exceeded quota" in said


@pytest.mark.parametrize("name", ["training", "nightly"])
def test_native_pipelines_are_taken_server_side(
    server: ApiServer, installed: tuple[str, list[Object]], name: str, tmp_path: Path
) -> None:
    compiled = compile_training(tmp_path) if name == "training" else compile_nightly(tmp_path)
    native = compiled.with_name(f"{name}-native.yaml")
    objects = list(yaml.safe_load_all(native.read_text(encoding="utf-8")))
    server.kubectl("-n", installed[0], "apply", "--server-side", "-f", "-", given=objects)
    version = objects[1]["metadata"]["name"]
    stored = server.kubectl("-n", installed[0], "get", "pipelineversion", version, "-o", "yaml")
    assert yaml.safe_load(stored)["spec"] == objects[1]["spec"]
