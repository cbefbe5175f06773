"""Where the tasks run: every container has limits, labels, a user, and what it is promised."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from chexradinet import __version__
from chexradinet.errors import ConfigError
from chexradinet.training.rounds import open_round, single_accelerator
from pipelines.documents import executor_label, executors, platform_executors, tasks
from pipelines.parameters import load_documents
from pipelines.resources import (
    ARCHIVE_SECRET,
    DEIDENTIFICATION_SECRET,
    RESULTS_ARCHIVE_SECRET,
    SCRATCH_LIMIT,
    SHARED_MEMORY_LIMIT,
    STAGES,
    STORE_SECRET,
    Placement,
    on_processor,
)

Container = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]
"""Stage, task, container and Kubernetes settings."""

CHECKPOINT_STAGES = {"ingest", "train", "retrain", "study-run"}
NIGHT_STAGES = {"plan", "score", "collect", "upload", "report-outcome"}
INBOX_STAGES = {"ingest", "plan", "score", "collect"}
STORE_STAGES = CHECKPOINT_STAGES | NIGHT_STAGES | {"publish"}
ACCELERATOR_STAGES = {"train", "heatmap", "retrain", "evaluate", "score", "study-run"}
SEVERAL_ACCELERATORS = {"train", "retrain"}
SECRETS = {
    STORE_SECRET.format(identity="ingest"): {"ingest"},
    STORE_SECRET.format(identity="training"): CHECKPOINT_STAGES - {"ingest"},
    STORE_SECRET.format(identity="publish"): {"publish"},
    STORE_SECRET.format(identity="night"): NIGHT_STAGES,
    DEIDENTIFICATION_SECRET: {"ingest"},
    ARCHIVE_SECRET: INBOX_STAGES,
    RESULTS_ARCHIVE_SECRET: {"upload"},
}
"""Stages that hold each Secret; the threat model of docs/security.md says so too."""


@pytest.fixture(scope="module")
def containers(
    compiled_training: Path, compiled_nightly: Path, compiled_study: Path
) -> list[Container]:
    """Return every task of all pipelines that runs a container."""
    found = []
    for path in (compiled_training, compiled_nightly, compiled_study):
        document, platform = load_documents(path)
        settings = platform_executors(platform)
        for _, _, task in tasks(document):
            label = executor_label(document, task)
            if label:
                container = executors(document)[label]["container"]
                stage = container["args"][-1].replace("_", "-")
                found.append((stage, task, container, settings[label]))
    return found


def test_every_stage_is_there_and_has_its_limits(containers: list[Container]) -> None:
    assert {stage for stage, *_ in containers} == set(STAGES)


def test_every_task_ends_in_time_and_is_tried_again_as_its_stage_says(
    containers: list[Container],
) -> None:
    for stage, task, _, settings in containers:
        assert settings["activeDeadlineSeconds"] == str(STAGES[stage].timeout_s)
        assert task["retryPolicy"]["maxRetryCount"] == STAGES[stage].retries
        assert STAGES[stage].retries == (1 if stage in ("configure", "study-plan") else 2)


def test_every_task_has_labels_for_its_cost(containers: list[Container]) -> None:
    for stage, _, _, settings in containers:
        assert settings["podMetadata"]["labels"] == {
            "app.kubernetes.io/part-of": "chexradinet",
            "app.kubernetes.io/name": STAGES[stage].pipeline,
            "app.kubernetes.io/component": stage,
            "app.kubernetes.io/version": __version__,
        }


def test_every_task_runs_as_the_image_s_user(containers: list[Container]) -> None:
    for _, _, _, settings in containers:
        assert settings["securityContext"] == {
            "runAsUser": "65532",
            "runAsGroup": "65532",
            "runAsNonRoot": True,
        }


def test_image_and_memory_are_set_for_every_task(containers: list[Container]) -> None:
    for _, _, container, _ in containers:
        resources = container["resources"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
        assert container["image"] == "{{$.inputs.parameters['pipelinechannel--worker_image']}}"


@pytest.mark.parametrize(
    ("stage", "parameter"),
    [
        ("ingest", "ingest_memory"),
        ("train", "training_memory"),
        ("retrain", "training_memory"),
        ("evaluate", "training_memory"),
        ("heatmap", "heatmap_memory"),
        ("radiomics", "radiomics_memory"),
        ("score", "scoring_memory"),
        ("study-run", "training_memory"),
    ],
)
def test_memory_of_the_large_stages_is_a_parameter_of_the_run(
    containers: list[Container], stage: str, parameter: str
) -> None:
    limits = {
        container["resources"]["resourceMemoryLimit"]
        for name, _, container, _ in containers
        if name == stage
    }
    assert limits == {f"{{{{$.inputs.parameters['pipelinechannel--{parameter}']}}}}"}


def test_accelerators_and_their_nodes_are_parameters_of_exactly_the_stages_that_use_them(
    containers: list[Container],
) -> None:
    for stage, _, container, settings in containers:
        wants = stage in ACCELERATOR_STAGES
        assert ("accelerator" in container["resources"]) == wants
        assert ("nodeSelector" in settings) == wants
        assert ("tolerations" in settings) == wants
        if wants:
            accelerator = container["resources"]["accelerator"]
            assert "accelerator_type" in accelerator["resourceType"]
            assert "accelerator" in accelerator["resourceCount"]


def _environment(settings: dict[str, Any], kind: str) -> set[str]:
    pairs = [pair for one in settings.get(kind, []) for pair in one["keyToEnv"]]
    return {pair["envVar"] for pair in pairs}


def test_credentials_go_only_to_the_stages_that_open_the_store(
    containers: list[Container],
) -> None:
    for stage, _, _, settings in containers:
        secrets = _environment(settings, "secretAsEnv")
        addresses = _environment(settings, "configMapAsEnv")
        given = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= secrets
        assert given == ("AWS_ENDPOINT_URL" in addresses) == (stage in STORE_STAGES)


def test_each_secret_is_in_the_pods_of_its_stages_alone_and_may_be_missing(
    containers: list[Container],
) -> None:
    found: dict[str, set[str]] = {}
    for stage, _, _, settings in containers:
        for one in settings.get("secretAsEnv", []):
            found.setdefault(one["secretName"], set()).add(stage)
            assert one["optional"] is True
    assert found == SECRETS


@pytest.mark.parametrize("stage", [*sorted(INBOX_STAGES), "upload"])
def test_stages_get_the_credentials_of_a_pacs_by_the_names_that_they_read(
    containers: list[Container], stage: str
) -> None:
    settings, *_ = [settings for name, *_, settings in containers if name == stage]
    wanted = RESULTS_ARCHIVE_SECRET if stage == "upload" else ARCHIVE_SECRET
    (secret,) = [one for one in settings["secretAsEnv"] if one["secretName"] == wanted]
    assert {pair["secretKey"]: pair["envVar"] for pair in secret["keyToEnv"]} == {
        "token": "DICOMWEB_TOKEN",
        "user": "DICOMWEB_USER",
        "password": "DICOMWEB_PASSWORD",
    }
    assert "DICOMWEB_CA_BUNDLE" in _environment(settings, "configMapAsEnv")


def test_every_task_trusts_a_private_authority_where_there_is_one(
    containers: list[Container],
) -> None:
    # Every one: Kubeflow's launcher moves artifacts in the containers of all stages.
    for _, _, _, settings in containers:
        (mounted,) = settings["configMapAsVolume"]
        assert (mounted["configMapName"], mounted["mountPath"]) == (
            "chexradinet-ca",
            "/etc/chexradinet/ca",
        )
        assert mounted["optional"] is True
        assert "AWS_CA_BUNDLE" in _environment(settings, "configMapAsEnv")


def test_every_task_knows_where_to_push_its_telemetry(containers: list[Container]) -> None:
    for _, _, _, settings in containers:
        assert "PUSHGATEWAY_URL" in _environment(settings, "configMapAsEnv")


def test_every_variable_of_the_guide_reaches_a_pod(
    containers: list[Container],
) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    storage = guide.partition("## Storage")[2].partition("\n## ")[0]
    archive = guide.partition("## PACS")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([A-Z]{3,}_[A-Z_]+)`", storage.partition("| bucket")[0]))
    documented |= set(re.findall(r"`(DICOMWEB_[A-Z_]+)`", archive))
    given = {
        name
        for _, _, _, settings in containers
        for kind in ("secretAsEnv", "configMapAsEnv")
        for name in _environment(settings, kind)
    }
    assert documented <= given
    assert "`AWS_SESSION_TOKEN`: third part of temporary credentials; on Kub" in storage
    assert given <= documented


def test_stages_that_go_on_after_an_eviction_know_where_their_state_is(
    containers: list[Container],
) -> None:
    for stage, _, _, settings in containers:
        given = "CHEXRADINET_CHECKPOINT_URI" in _environment(settings, "configMapAsEnv")
        assert given == (stage in CHECKPOINT_STAGES)


def test_no_task_has_a_secret_s_value(containers: list[Container]) -> None:
    for _, _, container, settings in containers:
        assert "env" not in container
        assert not {"pvcMount", "secretAsVolume"} & set(settings)


def test_every_task_has_one_place_to_write_to(containers: list[Container]) -> None:
    for _, _, _, settings in containers:
        volume = settings["emptyDirMounts"][0]
        assert volume["mountPath"] == "/tmp"  # noqa: S108 - in the pod
        assert volume["sizeLimit"] == SCRATCH_LIMIT


def test_shared_memory_is_for_the_stages_that_train_on_several_accelerators(
    containers: list[Container],
) -> None:
    for stage, _, _, settings in containers:
        more = settings["emptyDirMounts"][1:]
        assert more == (
            [
                {
                    "volumeName": "shared-memory",
                    "mountPath": "/dev/shm",  # noqa: S108 - in the pod
                    "medium": "Memory",
                    "sizeLimit": SHARED_MEMORY_LIMIT,
                }
            ]
            if stage in SEVERAL_ACCELERATORS
            else []
        )


def test_only_training_reserves_more_than_one_accelerator(containers: list[Container]) -> None:
    counts: dict[str, set[str]] = {}
    for stage, task, container, _ in containers:
        if stage in ACCELERATOR_STAGES - NIGHT_STAGES - {"study-run"}:
            text = container["resources"]["accelerator"]["resourceCount"]
            name = re.findall(r"\['(.+)'\]", text)[0]
            given = json.dumps(task["inputs"]["parameters"][name])
            counts.setdefault(stage, set()).add("single" if "single" in given else "all")
    assert counts == {
        "train": {"all"},
        "retrain": {"all"},
        "heatmap": {"single"},
        "evaluate": {"single"},
    }
    for asked, reserved in (("0", "0"), ("1", "1"), ("8", "1")):
        assert single_accelerator(asked) == reserved
        assert open_round(1, 1, True, 1, asked).single_accelerator == reserved
    assert open_round(2, 1, True, 1, "8").single_accelerator == "0"


def test_a_stage_without_limits_is_not_compiled() -> None:
    @dsl.component(  # type: ignore[untyped-decorator]
        base_image="worker-python:1", install_kfp_package=False
    )
    def unheard_of() -> None: ...

    with pytest.raises(ConfigError, match="stage 'unheard-of' has no limits; add it to STAGES"):

        @dsl.pipeline(name="one")  # type: ignore[untyped-decorator]
        def one(image: str = "worker-python:1") -> None:
            on_processor(unheard_of(), Placement(image, "", {}, []), "1Gi")
