"""Every overlay renders to valid objects that refer to nothing that is not there."""

import json
import os
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from chexradinet.store.uri import parse_uri
from tests.manifests.conftest import MANIFESTS, rendered
from tests.manifests.custom_resources import schema_of
from tests.manifests.objects import NAMES, Object, pod_templates, walk

KUBERNETES = "1.32"
STORE_NAMESPACE = "chexradinet-store"
IDENTITIES = {
    f"chexradinet-object-store-{identity}": {"accesskey", "secretkey"}
    for identity in ("artifacts", "ingest", "training", "night", "publish")
}
ROOT_SECRET = "chexradinet-object-store-root"  # noqa: S105 - the name of a Secret
REQUIRED_SECRETS = {
    "runs": IDENTITIES | {"chexradinet-deidentification": {"key"}},
    STORE_NAMESPACE: IDENTITIES | {ROOT_SECRET: {"accesskey", "secretkey"}},
}
"""Secrets by the namespace they are in; runs have another in each overlay."""
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def validate(thing: Object, custom: dict[str, Object]) -> None:
    """Hold an object against the schema of its kind, refusing unknown fields."""
    if thing["kind"] in custom:
        schema = schema_of(custom[thing["kind"]], thing["apiVersion"])
        Draft202012Validator(schema).validate(thing)
    else:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", NAMES)
def test_every_object_is_valid_and_named_once(
    overlays: dict[str, list[Object]], custom_resources: dict[str, Object], overlay: str
) -> None:
    for thing in overlays[overlay]:
        validate(thing, custom_resources)
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "chexradinet"
    names = [
        (thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"])
        for thing in overlays[overlay]
    ]
    assert len(set(names)) == len(names)
    assert set(overlays) == set(NAMES)


@pytest.mark.parametrize("kind", ["CronJob", "ServiceMonitor", "PrometheusRule", "ExternalSecret"])
def test_a_misspelt_field_is_found(
    overlays: dict[str, list[Object]], custom_resources: dict[str, Object], kind: str
) -> None:
    (thing, *_) = [thing for thing in overlays["production"] if thing["kind"] == kind]
    with pytest.raises(Exception, match="scheduel"):
        validate(thing | {"spec": thing["spec"] | {"scheduel": "0 2 * * *"}}, custom_resources)


@pytest.mark.parametrize(
    ("overlay", "runs"), [("local", "kubeflow"), ("production", "chexradinet")]
)
def test_runs_have_one_namespace_and_the_store_another_and_nothing_is_cluster_wide(
    overlays: dict[str, list[Object]], overlay: str, runs: str
) -> None:
    spaces = {thing["metadata"]["namespace"] for thing in overlays[overlay]}
    assert spaces == {runs, STORE_NAMESPACE}
    assert not [thing for thing in overlays[overlay] if thing["kind"].startswith("Cluster")]


@pytest.mark.parametrize("overlay", NAMES)
def test_the_administrators_secret_is_where_no_pipeline_runs(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    for thing in overlays[overlay]:
        if thing["metadata"]["namespace"] != STORE_NAMESPACE:
            assert ROOT_SECRET not in json.dumps(thing)
        elif thing["kind"] in ("Role", "RoleBinding", "CronJob"):
            pytest.fail(f"{thing['kind']} in the namespace of the administrator's Secret")


def config_maps(objects: list[Object]) -> dict[str, set[str]]:
    return {o["metadata"]["name"]: set(o["data"]) for o in objects if o["kind"] == "ConfigMap"}


@pytest.mark.parametrize("overlay", NAMES)
def test_every_reference_is_there_or_required_in_the_guide(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    maps = config_maps(overlays[overlay])
    claims = {o["metadata"]["name"] for o in overlays[overlay] if "Claim" in o["kind"]}
    accounts = {o["metadata"]["name"] for o in overlays[overlay] if "Account" in o["kind"]}
    found = 0
    for name, template in pod_templates(overlays[overlay]):
        secrets = REQUIRED_SECRETS["runs" if "nightly" in name else STORE_NAMESPACE]
        for inner in walk(template["spec"]):
            if reference := inner.get("secretKeyRef"):
                known = secrets.get(reference["name"], set())
                assert reference.get("optional") or reference["key"] in known, (name, reference)
                found += 1
            if reference := inner.get("configMapKeyRef"):
                assert reference["key"] in maps[reference["name"]], (name, reference)
            if isinstance(reference := inner.get("configMap"), dict):
                assert reference.get("optional") or reference["name"] in maps, (name, reference)
            if reference := inner.get("persistentVolumeClaim"):
                assert reference["claimName"] in claims, (name, reference)
        assert template["spec"].get("serviceAccountName", "default") in accounts | {"default"}
    assert found >= 4


def test_the_guide_names_every_required_secret_and_key() -> None:
    guide = OPERATIONS.read_text(encoding="utf-8")
    for name, keys in {**REQUIRED_SECRETS["runs"], **REQUIRED_SECRETS[STORE_NAMESPACE]}.items():
        row = re.search(rf"^\| `{name}` \|.*$", guide, re.MULTILINE)
        assert row, f"docs/operations.md has no row for {name}"
        assert all(f"`{key}`" in row[0] for key in keys)


def test_external_secrets_bring_what_is_required(overlays: dict[str, list[Object]]) -> None:
    brought: dict[str, set[str]] = {}
    for thing in overlays["production"]:
        if thing["kind"] == "ExternalSecret":
            space = thing["metadata"]["namespace"]
            space = space if space == STORE_NAMESPACE else "runs"
            brought.setdefault(space, set()).add(thing["spec"]["target"]["name"])
            (source,) = thing["spec"]["dataFrom"]
            name = thing["metadata"]["name"].removeprefix("chexradinet-")
            assert source == {"extract": {"key": f"chexradinet/{name}"}}
    assert brought == {space: set(secrets) for space, secrets in REQUIRED_SECRETS.items()}


def test_runs_ask_for_the_secrets_that_the_guide_requires() -> None:
    from pipelines.resources import (
        DEIDENTIFICATION_SECRET,
        IDENTITIES,
        STORE_CONFIG,
        STORE_SECRET,
    )

    asked = {STORE_SECRET.format(identity=identity) for identity in IDENTITIES.values()}
    # What passes between stages is moved by Kubeflow's launcher, as an identity of its own.
    launcher = STORE_SECRET.format(identity="artifacts")
    assert asked | {launcher, DEIDENTIFICATION_SECRET} == set(REQUIRED_SECRETS["runs"])
    assert STORE_CONFIG == "chexradinet-run"


@pytest.mark.parametrize("overlay", NAMES)
def test_the_launcher_and_its_account_know_the_secret_of_artifacts_alone(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    (launcher,) = [o for o in overlays[overlay] if o["metadata"]["name"] == "kfp-launcher"]
    assert "secretName: chexradinet-object-store-artifacts\n" in launcher["data"]["providers"]
    (role,) = [
        o
        for o in overlays[overlay]
        if (o["kind"], o["metadata"]["name"]) == ("Role", "chexradinet-runner")
    ]
    (rule,) = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    assert rule["resourceNames"] == ["chexradinet-object-store-artifacts"]


@pytest.mark.parametrize("overlay", NAMES)
def test_the_bucket_job_asks_the_store_that_runs_ask(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    maps = {o["metadata"]["name"]: o["data"] for o in overlays[overlay] if o["kind"] == "ConfigMap"}
    for name, value in maps["chexradinet-store"].items():
        assert value == maps["chexradinet-run"][name]


def test_each_policy_has_a_user_that_the_bucket_job_makes(
    overlays: dict[str, list[Object]],
) -> None:
    policies = (MANIFESTS / "base" / "storage").glob("policy-*.json")
    names = {path.stem.removeprefix("policy-") for path in policies}
    secrets = {
        (inner["name"], inner["valueFrom"]["secretKeyRef"]["name"])
        for inner in walk(overlays["local"])
        if "secretKeyRef" in inner.get("valueFrom", {})
    }
    for name in names:
        prefix, secret = name.upper().replace("-", "_"), f"chexradinet-object-store-{name}"
        for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            assert (f"{prefix}_{key}", secret) in secrets


@pytest.mark.parametrize("overlay", NAMES)
def test_every_empty_directory_has_a_size_limit(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    found = [inner["emptyDir"] for inner in walk(overlays[overlay]) if "emptyDir" in inner]
    assert found
    assert all("sizeLimit" in volume for volume in found)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the keys of the run's ConfigMap that the steps of all pipelines ask for."""
    from pipelines.compile import compile_nightly, compile_study, compile_training
    from pipelines.documents import platform_executors
    from pipelines.parameters import load_documents

    folder = tmp_path_factory.mktemp("compiled")
    return {
        pair["configMapKey"]
        for compiled in (compile_training, compile_nightly, compile_study)
        for settings in platform_executors(load_documents(compiled(folder))[1]).values()
        for one in settings.get("configMapAsEnv", [])
        for pair in one["keyToEnv"]
    }


@pytest.mark.parametrize("overlay", NAMES)
def test_runs_find_every_address_that_they_ask_for(
    overlays: dict[str, list[Object]], overlay: str, asked: set[str]
) -> None:
    (run,) = [
        thing["data"]
        for thing in overlays[overlay]
        if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == "chexradinet-run"
    ]
    assert asked == set(run)


def test_the_bucket_job_finds_a_private_authority_where_stages_do(
    overlays: dict[str, list[Object]],
) -> None:
    from pipelines.resources import AUTHORITIES, AUTHORITIES_FOLDER

    (pod,) = [
        template["spec"]
        for name, template in pod_templates(overlays["production"])
        if name == "Job/chexradinet-buckets"
    ]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "authorities"]
    assert volume["configMap"] == {"name": AUTHORITIES, "optional": True}
    (container,) = pod["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "authorities"]
    assert mount["mountPath"] == AUTHORITIES_FOLDER
    assert "AWS_CA_BUNDLE" in [one["name"] for one in container["env"]]


@pytest.mark.parametrize("overlay", NAMES)
def test_the_account_of_runs_is_there_and_the_night_s_too(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    from pipelines.resources import RUN_ACCOUNT

    bound = [o for o in overlays[overlay] if o["metadata"]["name"] == RUN_ACCOUNT]
    assert {o["kind"] for o in bound} == {"ServiceAccount", "Role", "RoleBinding"}
    given = [i["value"] for i in walk(overlays[overlay]) if i.get("name") == "RUN_SERVICE_ACCOUNT"]
    assert given == [RUN_ACCOUNT]


def test_state_of_unfinished_work_expires(overlays: dict[str, list[Object]]) -> None:
    maps = {
        thing["metadata"]["name"]: thing["data"]
        for thing in overlays["production"]
        if thing["kind"] == "ConfigMap"
    }
    location = parse_uri(maps["chexradinet-run"]["CHEXRADINET_CHECKPOINT_URI"])
    storage = next(data for data in maps.values() if "buckets.json" in data)
    (bucket,) = [
        bucket
        for bucket in json.loads(storage["buckets.json"])["buckets"]
        if bucket["name"] == location.bucket
    ]
    assert bucket["expire_days"] <= 30


def images(objects: list[Object]) -> set[str]:
    containers = (inner for _, template in pod_templates(objects) for inner in walk(template))
    return {inner["image"] for inner in containers if "image" in inner}


def test_images_have_a_tag_and_production_a_digest(overlays: dict[str, list[Object]]) -> None:
    for image in images(overlays["local"]):
        assert re.search(r":(?!latest$)[\w.-]+$", image), image
    for image in images(overlays["production"]):
        assert re.search(r"@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("overlay", NAMES)
def test_runs_use_the_image_of_the_overlay(overlays: dict[str, list[Object]], overlay: str) -> None:
    (parameters,) = [
        thing["data"]
        for thing in overlays[overlay]
        if thing["metadata"]["name"] == "chexradinet-nightly-parameters"
    ]
    assert parameters["worker_image"] in images(overlays[overlay])


def test_the_nightly_job_is_bounded_and_never_runs_twice_at_once(
    overlays: dict[str, list[Object]],
) -> None:
    (spec,) = [o["spec"] for o in overlays["production"] if o["kind"] == "CronJob"]
    job = spec["jobTemplate"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 2 * * *", "Etc/UTC")
    assert spec["concurrencyPolicy"] == "Forbid"
    # Without a deadline above the controller's 10 s period, a missed start would be skipped.
    assert spec["startingDeadlineSeconds"] > 60
    assert job["activeDeadlineSeconds"] > 0
    (source,) = [
        source["serviceAccountToken"]
        for inner in walk(job)
        if "projected" in inner
        for source in inner["projected"]["sources"]
    ]
    assert source["audience"] == "pipelines.kubeflow.org"
    assert "PIPELINE_NAMESPACE" in str(job["template"]["spec"]["containers"][0]["env"])


@pytest.mark.parametrize("overlay", NAMES)
def test_the_starter_knows_its_cron_job_by_name(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    (cron_job,) = [o for o in overlays[overlay] if o["kind"] == "CronJob"]
    known = [inner for inner in walk(cron_job) if inner.get("name") == "CRONJOB_NAME"]
    assert [one["value"] for one in known] == [cron_job["metadata"]["name"]]


def test_the_guide_gives_a_training_the_nodes_that_the_night_has(
    overlays: dict[str, list[Object]],
) -> None:
    (night,) = [
        thing["data"]
        for thing in overlays["production"]
        if thing["metadata"]["name"] == "chexradinet-nightly-parameters"
    ]
    guide = OPERATIONS.read_text(encoding="utf-8")
    words = shlex.split(guide.partition("## GPUs")[2].partition("\n\n    ")[2].partition("\n\n")[0])
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for name in ("accelerator_type", "accelerator_count", "node_selector", "tolerations"):
        assert given[name] == night[name]


def test_a_private_registry_s_secret_reaches_every_pod(
    overlays: dict[str, list[Object]], tmp_path: Path
) -> None:
    options = os.path.relpath(MANIFESTS, tmp_path)
    components = [f"{options}/options/minio", f"{options}/options/registry"]
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": [f"{options}/overlays/production"], "components": components})
    )
    objects = rendered(tmp_path)
    pull = [{"name": "chexradinet-registry"}]
    accounts = {
        o["metadata"]["name"]: o.get("imagePullSecrets")
        for o in objects
        if o["kind"] == "ServiceAccount"
    }
    assert list(accounts.values()) == [pull] * 3
    found = 0
    for name, template in pod_templates(objects):
        spec = template["spec"]
        given = spec.get("imagePullSecrets") or accounts.get(spec.get("serviceAccountName"))
        assert given == pull, name
        found += 1
    assert found == 4


@pytest.mark.parametrize("overlay", NAMES)
def test_roles_name_their_secrets_and_use_no_wildcard(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    rules = [rule for o in overlays[overlay] if o["kind"] == "Role" for rule in o["rules"]]
    assert "*" not in json.dumps(rules)
    for rule in rules:
        if set(rule["resources"]) & {"secrets", "configmaps"}:
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]


def test_pods_without_business_with_kubernetes_get_no_token_for_it(
    overlays: dict[str, list[Object]],
) -> None:
    for objects in overlays.values():
        for name, template in pod_templates(objects):
            assert template["spec"]["automountServiceAccountToken"] is False, name
