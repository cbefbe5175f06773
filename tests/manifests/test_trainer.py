"""options/trainer: the pods of a training's nodes, their account, their network and the Role."""

from pathlib import Path

import pytest

from chexradinet.training.nodes import RUNTIME
from pipelines.resources import AUTHORITIES, AUTHORITIES_FOLDER, RUN_ACCOUNT, SCRATCH_LIMIT
from tests.manifests.objects import Object
from tests.manifests.test_network import RUN_POD, matches, reaches
from tests.manifests.test_overlays import validate
from tests.manifests.test_restricted import violations


@pytest.fixture(scope="module")
def job(with_trainer: list[Object]) -> Object:
    """Return the Job of the nodes in the TrainingRuntime."""
    (runtime,) = [o for o in with_trainer if o["kind"] == "TrainingRuntime"]
    assert runtime["metadata"]["name"] == RUNTIME
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # Trainer looks for these two names and this label.
    assert replicated["name"] == "node"
    labels = replicated["template"]["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    spec: Object = replicated["template"]["spec"]
    assert [one["name"] for one in spec["template"]["spec"]["containers"]] == ["node"]
    return spec


def labels_of(job: Object) -> dict[str, str]:
    labels: dict[str, str] = job["template"]["metadata"]["labels"]
    return labels


def test_every_object_is_valid_and_in_the_namespace_of_runs(
    with_trainer: list[Object], custom_resources: dict[str, Object]
) -> None:
    kinds = ("TrainingRuntime", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy")
    for thing in (one for one in with_trainer if one["kind"] in kinds):
        validate(thing, custom_resources)
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "chexradinet"
    (runtime,) = [o for o in with_trainer if o["kind"] == "TrainingRuntime"]
    assert runtime["metadata"]["namespace"] == "chexradinet"
    template: Object = {"spec": {"replicatedJbos": []}}
    with pytest.raises(Exception, match="replicatedJbos"):
        validate({**runtime, "spec": {"template": template}}, custom_resources)


def test_the_pods_of_nodes_are_restricted_and_ask_nothing_of_kubernetes(
    with_trainer: list[Object], job: Object
) -> None:
    assert list(violations(job["template"])) == []
    pod = job["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert labels_of(job)["sidecar.istio.io/inject"] == "false"
    bound = [
        subject["name"]
        for thing in with_trainer
        if thing["kind"] == "RoleBinding"
        for subject in thing["subjects"]
    ]
    assert pod["serviceAccountName"] not in bound


def test_one_pod_that_fails_ends_all(job: Object) -> None:
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_nodes_have_scratch_shared_memory_and_private_authorities(job: Object) -> None:
    pod = job["template"]["spec"]
    paths = {
        mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]
    }  # fmt: skip
    volumes = {paths[volume.pop("name")]: volume for volume in map(dict, pod["volumes"])}
    assert volumes == {
        "/tmp": {"emptyDir": {"sizeLimit": SCRATCH_LIMIT}},  # noqa: S108 - in the pod
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},  # noqa: S108
        AUTHORITIES_FOLDER: {"configMap": {"name": AUTHORITIES, "optional": True}},
    }


def test_nodes_find_the_store_as_the_training_step_does(job: Object, tmp_path: Path) -> None:
    from pipelines.compile import compile_training
    from pipelines.documents import platform_executors
    from pipelines.parameters import load_documents

    platform = load_documents(compile_training(tmp_path, 0))[1]
    step = platform_executors(platform)["exec-train"]
    asked = {
        (pair["envVar"], source["configMapName"], pair["configMapKey"])
        for source in step["configMapAsEnv"]
        for pair in source["keyToEnv"]
    } | {
        (pair["envVar"], source["secretName"], pair["secretKey"])
        for source in step["secretAsEnv"]
        for pair in source["keyToEnv"]
    }
    # The nodes push no telemetry: that of the stage comes from its step.
    asked = {one for one in asked if one[0] != "PUSHGATEWAY_URL"}
    found = set()
    for one in job["template"]["spec"]["containers"][0]["env"]:
        (reference,) = one["valueFrom"].values()
        found.add((one["name"], reference["name"], reference["key"]))
    assert found == asked


def test_nodes_reach_one_another_and_the_store_and_nothing_else(
    with_trainer: list[Object], job: Object
) -> None:
    node = labels_of(job)
    assert reaches(with_trainer, node, {"cidr": "192.0.2.1/32"}, 443)
    assert reaches(with_trainer, node, {"cidr": "169.254.20.10/32"}, 53)
    assert not reaches(with_trainer, node, {"cidr": "192.0.2.2/32"}, 443)
    assert not reaches(
        with_trainer, node, {"namespace": "kubeflow", "labels": {"app": "ml-pipeline"}}, 8888
    )
    policies = [o for o in with_trainer if o["kind"] == "NetworkPolicy"]
    (policy,) = [o for o in policies if o["metadata"]["name"] == "chexradinet-node"]
    (rule,) = policy["spec"]["ingress"]
    assert matches(policy["spec"]["podSelector"], node)
    assert [matches(one["podSelector"], node) for one in rule["from"]] == [True]
    assert not any(matches(one["podSelector"], RUN_POD) for one in rule["from"])
    (own,) = [one for one in policy["spec"]["egress"] if one["ports"] == rule["ports"]]
    assert own["to"] == rule["from"]
    assert rule["ports"][0]["port"] == 29500


def test_the_account_of_runs_gets_the_least_that_a_step_asks(with_trainer: list[Object]) -> None:
    named = [o for o in with_trainer if o["metadata"]["name"] == "chexradinet-trainer"]
    (role,) = [o for o in named if o["kind"] == "Role"]
    (binding,) = [o for o in named if o["kind"] == "RoleBinding"]
    assert [subject["name"] for subject in binding["subjects"]] == [RUN_ACCOUNT]
    rights = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {
        ("trainingruntimes", "get"),
        *(("trainjobs", verb) for verb in ("create", "get", "delete")),
        ("pods", "list"),
        ("events", "list"),
        ("pods/log", "get"),
    }
    assert role["rules"][0]["resourceNames"] == [RUNTIME]
