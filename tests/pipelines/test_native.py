"""The Kubernetes-native manifests fit their CRDs, and their names say what they hold."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from chexradinet import __version__
from chexradinet.errors import ConfigError
from pipelines.compile import compile_nightly, compile_training
from pipelines.native import manifests, require_pinned, version_name
from pipelines.parameters import load_documents

DIGEST = "sha256:" + "ab12" * 16
NAME = {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
TEXT = {"type": "string"}


def _crd(kind: str, spec: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the schema of a kind, with the API server's rules for names and no unknown key."""
    metadata = {"name": NAME, "namespace": NAME, "labels": {"additionalProperties": TEXT}}
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": "pipelines.kubeflow.org/v2beta1"},
            "kind": {"const": kind},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": metadata,
            },
            "spec": {
                "type": "object",
                "required": required,
                "additionalProperties": False,
                "properties": spec,
            },
        },
    }


CRDS = {
    "Pipeline": _crd("Pipeline", {"displayName": TEXT, "description": TEXT}, []),
    "PipelineVersion": _crd(
        "PipelineVersion",
        {
            "displayName": TEXT,
            "description": TEXT,
            "pipelineName": NAME,
            "codeSourceURL": TEXT,
            "pipelineSpecURI": TEXT,
            "pipelineSpec": {"type": "object", "required": ["pipelineInfo", "root"]},
            "platformSpec": {"type": "object", "required": ["platforms"]},
        },
        ["pipelineSpec", "pipelineName"],
    ),
}


@pytest.mark.parametrize("name", ["training", "nightly", "study"])
def test_the_manifests_fit_their_crds_and_hold_what_was_compiled(
    name: str, request: pytest.FixtureRequest
) -> None:
    compiled: Path = request.getfixturevalue(f"compiled_{name}")
    native = compiled.with_name(f"{name}-native.yaml")
    pipeline, version = yaml.safe_load_all(native.read_text(encoding="utf-8"))
    for one in (pipeline, version):
        jsonschema.validate(one, CRDS[one["kind"]])
    document, platform = load_documents(compiled)
    assert pipeline["metadata"]["name"] == document["pipelineInfo"]["name"]
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert version["spec"]["pipelineSpec"] == document
    assert version["spec"]["platformSpec"] == platform


def test_a_name_that_kubernetes_refuses_does_not_pass_the_schema(document: dict[str, Any]) -> None:
    _, version = manifests(document, {})
    version["metadata"]["name"] += ".1_0"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(version, CRDS["PipelineVersion"])


def test_a_version_s_name_carries_release_image_digest_and_content(
    document: dict[str, Any], platform: dict[str, Any]
) -> None:
    parameters = document["root"]["inputDefinitions"]["parameters"]
    parameters["worker_image"]["defaultValue"] = f"registry/worker@{DIGEST}"
    release = __version__.replace(".", "-")
    name = version_name(document, platform)
    assert re.fullmatch(f"chexradinet-training-{release}-ab12ab12ab12-[0-9a-f]{{8}}", name)


def test_another_image_setting_or_platform_makes_another_name(
    document: dict[str, Any], platform: dict[str, Any]
) -> None:
    other_image, other_platform = copy.deepcopy(document), copy.deepcopy(platform)
    parameters = other_image["root"]["inputDefinitions"]["parameters"]
    parameters["worker_image"]["defaultValue"] = "worker:2"
    executors = other_platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-train"]["activeDeadlineSeconds"] = "1"
    names = {
        version_name(document, platform),
        version_name(other_image, platform),
        version_name(document, other_platform),
    }
    assert len(names) == 3
    assert version_name(document, platform) == version_name(copy.deepcopy(document), platform)


def test_a_long_release_shortens_the_name_but_not_what_tells_it_apart(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = version_name(document, {})
    monkeypatch.setattr("pipelines.native.__version__", "1.2.3.dev45+g0123456789abcdef.dirty.tree")
    name = version_name(document, {})
    assert len(name) <= 63
    assert name[-22:] == usual[-22:]
    jsonschema.validate(name, NAME)


def test_the_namespace_is_set_where_it_is_given(document: dict[str, Any]) -> None:
    assert [one["metadata"].get("namespace") for one in manifests(document, {}, "team-a")] == [
        "team-a",
        "team-a",
    ]
    assert all("namespace" not in one["metadata"] for one in manifests(document, {}))


@pytest.mark.parametrize(
    "image",
    [
        "worker:1.0",
        "registry:5000/team/worker:1.0-gpu",
        f"registry/worker@{DIGEST}",
        "w:1@" + DIGEST,
    ],
)
def test_an_image_with_tag_or_digest_is_taken(image: str) -> None:
    assert require_pinned(image) == image


@pytest.mark.parametrize(
    "image",
    ["", "worker", "registry:5000/worker", "worker:", "worker@sha256:ab12", "my worker:1", ":1/w"],
)
def test_an_image_that_does_not_say_what_it_runs_is_refused(image: str) -> None:
    with pytest.raises(ConfigError, match="has no tag and no digest"):
        require_pinned(image)


def test_compiling_for_an_image_makes_it_the_default_and_refuses_one_without_tag(
    tmp_path: Path,
) -> None:
    for compiled in (
        compile_training(tmp_path, max_rounds=1, image=f"registry/worker@{DIGEST}"),
        compile_nightly(tmp_path, image=f"registry/worker@{DIGEST}"),
    ):
        parameters = load_documents(compiled)[0]["root"]["inputDefinitions"]["parameters"]
        assert parameters["worker_image"]["defaultValue"] == f"registry/worker@{DIGEST}"
        assert "-ab12ab12ab12-" in compiled.with_name(f"{compiled.stem}-native.yaml").read_text()
    with pytest.raises(ConfigError, match="has no tag"):
        compile_nightly(tmp_path, image="worker")
