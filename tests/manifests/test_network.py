"""Who may speak to whom: the network policies of every overlay."""

import json
import os
from pathlib import Path

import pytest

from tests.manifests.conftest import MANIFESTS, rendered
from tests.manifests.objects import NAMES, Object, pod_templates, walk

RUN_POD = {"pipelines.kubeflow.org/v2_component": "true"}
INGEST_POD = RUN_POD | {
    "app.kubernetes.io/part-of": "chexradinet",
    "app.kubernetes.io/component": "ingest",
}
UPLOAD_POD = INGEST_POD | {"app.kubernetes.io/component": "upload"}
# Labels of pods that others make: Kubeflow's runs and services, the cluster's DNS, Prometheus.
FOREIGN_PODS = [
    RUN_POD,
    INGEST_POD,
    UPLOAD_POD,
    {"app": "ml-pipeline"},
    {"app": "ml-pipeline-ui"},
    {"app": "ml-pipeline-ui-artifact"},
    {"app": "seaweedfs"},
    {"app": "minio"},
    {"component": "metadata-grpc-server"},
    {"k8s-app": "kube-dns"},
    {"app.kubernetes.io/name": "prometheus"},
    {"app.kubernetes.io/name": "training-node"},  # with options/trainer
]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Tell whether a label selector picks a pod with these labels."""
    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(
        (labels.get(rule["key"]) in rule["values"]) == (rule["operator"] == "In")
        for rule in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("overlay", NAMES)
def test_every_selector_of_a_network_policy_or_service_picks_a_pod(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    own = [template["metadata"]["labels"] for _, template in pod_templates(overlays[overlay])]
    checked = 0
    for thing in overlays[overlay]:
        if thing["kind"] == "NetworkPolicy":
            for inner in walk(thing["spec"]):
                if "podSelector" in inner:
                    pods = FOREIGN_PODS + own
                    assert any(matches(inner["podSelector"], pod) for pod in pods), inner
                    checked += 1
        if thing["kind"] == "Service":
            assert any(thing["spec"]["selector"].items() <= pod.items() for pod in own)
    assert checked >= 5


@pytest.mark.parametrize("overlay", NAMES)
def test_every_pod_has_a_policy_for_both_directions(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    policies = [o["spec"] for o in overlays[overlay] if o["kind"] == "NetworkPolicy"]
    pods = [template["metadata"]["labels"] for _, template in pod_templates(overlays[overlay])]
    # Standalone Kubeflow's runs are not only ours: overlays/local does not bind them.
    for labels in [*pods, *([RUN_POD] if overlay == "production" else [])]:
        picked = [policy for policy in policies if matches(policy["podSelector"], labels)]
        directions = {direction for policy in picked for direction in policy["policyTypes"]}
        assert directions == {"Ingress", "Egress"}, labels


def test_standalone_kubeflows_own_pods_are_left_alone(overlays: dict[str, list[Object]]) -> None:
    kinds = {thing["kind"] for thing in overlays["local"]}
    assert not kinds & {"ResourceQuota", "LimitRange"}
    policies = [o["spec"] for o in overlays["local"] if o["kind"] == "NetworkPolicy"]
    for pod in FOREIGN_PODS:
        assert not any(matches(policy["podSelector"], pod) for policy in policies), pod


def reaches(objects: list[Object], pod: dict[str, str], peer: Object, port: int) -> bool:
    """Tell whether the policies let a pod of a run open a connection.

    Args:
        objects: Objects of an overlay.
        pod: Labels of the pod.
        peer: What a policy calls it: `namespace` and `labels` of a pod, or `cidr`.
        port: That the peer itself listens at.
    """
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    rules = [
        rule
        for policy in policies
        if matches(policy["podSelector"], pod) and "Egress" in policy["policyTypes"]
        for rule in policy.get("egress", [])
    ]
    return any(
        meets(one, peer)
        for rule in rules
        if port in [each["port"] for each in rule["ports"]]
        for one in rule["to"]
    )


def meets(one: Object, peer: Object) -> bool:
    """Tell whether an entry of a rule means this peer."""
    if "ipBlock" in one or "cidr" in peer:
        return bool(one.get("ipBlock", {}).get("cidr") == peer.get("cidr", "none"))
    namespace = {"kubernetes.io/metadata.name": peer["namespace"]}
    return matches(one.get("namespaceSelector", {}), namespace) and matches(
        one["podSelector"], peer["labels"]
    )


@pytest.mark.parametrize(
    ("labels", "port"),
    [
        ({"app": "ml-pipeline"}, 8887),
        ({"component": "metadata-grpc-server"}, 8080),
        # Argo's `wait` container archives the step's log there, and fails the step if it cannot.
        ({"app": "seaweedfs"}, 8333),
        ({"app": "minio"}, 9000),
    ],
)
def test_runs_reach_what_kubeflow_makes_them_ask(
    overlays: dict[str, list[Object]], labels: dict[str, str], port: int
) -> None:
    peer = {"namespace": "kubeflow", "labels": labels}
    assert reaches(overlays["production"], RUN_POD, peer, port)
    assert not reaches(overlays["production"], RUN_POD, peer | {"namespace": "other"}, port)
    assert not reaches(overlays["production"], RUN_POD, peer, 22)


def test_every_pod_that_asks_for_names_may_ask_node_local_dns(
    overlays: dict[str, list[Object]],
) -> None:
    pods = [
        template["metadata"]["labels"]
        for name, template in pod_templates(overlays["production"])
        if "Job" in name
    ]
    assert len(pods) == 2
    for pod in [RUN_POD, *pods]:
        assert reaches(overlays["production"], pod, {"cidr": "169.254.20.10/32"}, 53)


def test_only_stages_that_read_reach_a_pacs_and_only_the_upload_reaches_the_archive(
    overlays: dict[str, list[Object]],
) -> None:
    reached = {}
    for stage in ("ingest", "plan", "score", "collect", "upload", "train", "report-outcome"):
        pod = INGEST_POD | {"app.kubernetes.io/component": stage}
        reached[stage] = [
            reaches(overlays["production"], pod, {"cidr": address}, 443)
            for address in ("192.0.2.3/32", "192.0.2.4/32")
        ]
    assert reached == {
        **{key: [True, False] for key in ("ingest", "plan", "score", "collect")},
        "upload": [False, True],
        **{key: [False, False] for key in ("train", "report-outcome")},
    }


@pytest.mark.parametrize("overlay", NAMES)
def test_no_pod_gets_a_sidecar(overlays: dict[str, list[Object]], overlay: str) -> None:
    # A profile's namespace injects one: a Job with it never ends, a server with it refuses clients
    # without.
    for name, template in pod_templates(overlays[overlay]):
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", name


def test_the_artifact_view_of_a_profile_reaches_the_optional_store(
    overlays: dict[str, list[Object]],
) -> None:
    policies = [o for o in overlays["local"] if o["kind"] == "NetworkPolicy"]
    (policy,) = [o for o in policies if o["metadata"]["name"] == "chexradinet-minio"]
    (rule,) = policy["spec"]["ingress"]
    (view,) = [
        one
        for one in rule["from"]
        if one["podSelector"]["matchLabels"] == {"app": "ml-pipeline-ui-artifact"}
    ]
    for namespace in ("kubeflow", "chexradinet"):
        assert matches(view["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    assert not matches(view["namespaceSelector"], {"kubernetes.io/metadata.name": "other"})


def test_runs_reach_no_range_of_addresses(overlays: dict[str, list[Object]]) -> None:
    policies = [o for o in overlays["production"] if o["kind"] == "NetworkPolicy"]
    blocks = [inner["cidr"] for inner in walk(policies) if "cidr" in inner]
    assert blocks
    assert all(block.endswith("/32") for block in blocks), blocks


def test_runs_reach_the_optional_store_in_its_own_namespace(tmp_path: Path) -> None:
    options = os.path.relpath(MANIFESTS, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "resources": [f"{options}/overlays/production"],
                "components": [f"{options}/options/minio"],
            }
        )
    )
    objects = rendered(tmp_path)
    peer = {"namespace": "chexradinet-store", "labels": {"app.kubernetes.io/name": "minio"}}
    assert reaches(objects, RUN_POD, peer, 9000)
    assert not reaches(objects, RUN_POD, peer | {"namespace": "chexradinet"}, 9000)
