"""The optional receiver: valid, restricted, reached by those it serves, missed when down."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.placeholders import unfilled
from pipelines.resources import ARCHIVE_SECRET
from tests.manifests.conftest import MANIFESTS, rendered
from tests.manifests.objects import Object, pod_templates
from tests.manifests.test_alerts import ROOT, headings, promtool
from tests.manifests.test_network import INGEST_POD, RUN_POD, matches, reaches
from tests.manifests.test_overlays import validate
from tests.manifests.test_restricted import violations

RECEIVER = "chexradinet-orthanc"


@pytest.fixture(scope="module")
def objects(
    tool: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> list[Object]:
    """Return the objects of production's runs with the receiver."""
    tool("kubectl", "its `kustomize` renders the overlays")
    folder = tmp_path_factory.mktemp("receiver")
    manifests = os.path.relpath(MANIFESTS, folder)
    kustomization = {
        "namespace": "chexradinet",
        "resources": [f"{manifests}/overlays/production/run"],
        "components": [f"{manifests}/options/orthanc"],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return rendered(folder)


def named(objects: list[Object], kind: str) -> Object:
    (found,) = [
        o
        for o in objects
        if (o["kind"], o["metadata"]["name"][: len(RECEIVER)]) == (kind, RECEIVER)
    ]
    return found


def test_every_object_is_valid_and_the_pod_is_restricted(
    objects: list[Object], custom_resources: dict[str, Object]
) -> None:
    for thing in objects:
        validate(thing, custom_resources)
        assert thing["metadata"]["namespace"] == "chexradinet"
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "chexradinet"
    template = dict(pod_templates(objects))[f"Deployment/{RECEIVER}"]
    assert list(violations(template)) == []
    assert template["spec"]["automountServiceAccountToken"] is False
    assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_settings_hold_no_secret_and_the_storage_has_a_limit_within_the_volume(
    objects: list[Object],
) -> None:
    settings = json.loads(named(objects, "ConfigMap")["data"]["orthanc.json"])
    assert settings["RegisteredUsers"] == {"${ORTHANC_USER}": "${ORTHANC_PASSWORD}"}
    assert settings["AuthenticationEnabled"]
    assert settings["SslEnabled"]
    (container,) = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    assert given == {
        "ORTHANC_USER": {"name": ARCHIVE_SECRET, "key": "user"},
        "ORTHANC_PASSWORD": {"name": ARCHIVE_SECRET, "key": "password"},
    }
    claim = named(objects, "PersistentVolumeClaim")["spec"]["resources"]["requests"]["storage"]
    assert settings["MaximumStorageSize"] < 0.9 * int(claim.removesuffix("Gi")) * 1024


def test_modalities_store_stages_read_and_nobody_else_gets_in(objects: list[Object]) -> None:
    (policy,) = [
        o["spec"]
        for o in objects
        if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == RECEIVER
    ]
    store, read = policy["ingress"]
    assert store["from"] == [{"ipBlock": {"cidr": "192.0.2.5/32"}}]
    assert [port["port"] for port in store["ports"]] == [4242]
    assert "egress" not in policy
    assert "Egress" in policy["policyTypes"]
    labels = dict(pod_templates(objects))[f"Deployment/{RECEIVER}"]["metadata"]["labels"]
    assert matches(policy["podSelector"], labels)
    peer = {"namespace": "chexradinet", "labels": labels}
    (readers,) = [one["podSelector"] for one in read["from"]]
    for stage in ("ingest", "plan", "score", "collect", "upload"):
        pod = INGEST_POD | {"app.kubernetes.io/component": stage}
        assert matches(readers, pod)
        assert reaches(objects, pod, peer, 8042)
        assert not reaches(objects, pod, peer, 4242)
    for pod in (RUN_POD, INGEST_POD | {"app.kubernetes.io/component": "train"}):
        assert not matches(readers, pod)
        assert not reaches(objects, pod, peer, 8042)


def test_addresses_of_modalities_are_found_as_unfilled() -> None:
    assert [one.value for one in unfilled(MANIFESTS / "options" / "orthanc")] == ["192.0.2.5/32"]


def test_alerts_fire_if_the_receiver_is_down_or_full_and_not_otherwise(
    objects: list[Object], tool: Callable[[str, str], str], tmp_path: Path
) -> None:
    tool("promtool", "install Debian's prometheus package")
    rule = named(objects, "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule))
    available = f'kube_deployment_status_replicas_available{{deployment="{RECEIVER}"}}'
    volume = f'kubelet_volume_stats_{{0}}_bytes{{{{persistentvolumeclaim="{RECEIVER}"}}}}'
    capacity = {"series": volume.format("capacity"), "values": "100+0x60"}

    def case(up: str, left: str, **fires: bool) -> Object:
        series = [
            {"series": available, "values": up},
            {"series": volume.format("available"), "values": left},
            capacity,
        ]
        count = [
            {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": "50m",
             "exp_samples": [{"labels": "{}", "value": 1}] if wanted else []}
            for name, wanted in fires.items()
        ]  # fmt: skip
        return {"interval": "1m", "input_series": series, "promql_expr_test": count}

    tests = [
        case("1+0x60", "50+0x60", ChexRadiNetReceiverDown=False, ChexRadiNetReceiverFilling=False),
        case("1 0+0x60", "50+0x60", ChexRadiNetReceiverDown=True, ChexRadiNetReceiverFilling=False),
        case("1 stale", "9+0x60", ChexRadiNetReceiverDown=True, ChexRadiNetReceiverFilling=True),
    ]
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests})
    )
    told = promtool("test", "rules", "test.yaml", folder=tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    guide = headings((ROOT / "docs/operations.md").read_text(encoding="utf-8"))
    for one in rule["groups"][0]["rules"]:
        assert one["annotations"]["runbook_url"].partition("#")[2] in guide
