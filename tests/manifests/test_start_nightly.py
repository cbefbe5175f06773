"""The CronJob's script against a small server that answers as the KFP API does."""

import importlib.util
import logging
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "manifests" / "base" / "start_nightly.py"
NAME = "chexradinet-nightly"


class FakeApi(Protocol):
    """The server of the fixture `api`."""

    server_port: int
    multi_user: bool
    refuse: tuple[int, str] | None
    page: bytes | None
    pipelines: dict[tuple[str, str], str]
    experiments: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    bodies: list[tuple[str, dict[str, Any]]]
    tokens: list[str | None]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("start_nightly", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def environment(api: FakeApi, tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "parameters"
    folder.mkdir()
    (folder / "..data").mkdir()
    (folder / "inbox_uri").write_text("s3://inbox/xrays\n")
    (folder / "accelerator_count").write_text("1")
    (folder / "tolerations").write_text('[{"key": "nvidia.com/gpu"}]')
    (folder / "write_dicom").write_text("true")
    return {
        "KFP_ENDPOINT": f"http://127.0.0.1:{api.server_port}/",
        "PIPELINE_NAME": NAME,
        "PARAMETERS_DIRECTORY": str(folder),
        "KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "token"),
        # 2026-11-23 02:00 UTC in minutes of Unix time
        "JOB_NAME": f"{NAME}-29923320",
    }


def test_the_request_names_pipeline_date_and_parameters(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    script.start(script.settings_from(environment))
    (_, experiment), (path, body) = api.bodies
    assert experiment["display_name"] == NAME
    assert path == "runs"
    assert body == {
        "display_name": f"{NAME}-2026-11-23",
        "experiment_id": "experiment-1",
        "pipeline_version_reference": {"pipeline_id": "pipeline-1"},
        "runtime_config": {
            "parameters": {
                "accelerator_count": 1,
                "inbox_uri": "s3://inbox/xrays",
                "tolerations": [{"key": "nvidia.com/gpu"}],
                "write_dicom": True,
            }
        },
    }


def test_the_request_is_one_that_the_published_api_knows(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    from kfp_server_api.models import V2beta1Experiment, V2beta1Run

    script.start(script.settings_from(environment | {"RUN_SERVICE_ACCOUNT": "chexradinet-runner"}))
    models = {"experiments": V2beta1Experiment, "runs": V2beta1Run}
    for path, body in api.bodies:
        assert set(body) <= set(models[path].attribute_map.values())
    assert api.bodies[-1][1]["service_account"] == "chexradinet-runner"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUCCEEDED", "PAUSED"])
def test_a_date_is_started_once(
    script: ModuleType, api: FakeApi, environment: dict[str, str], state: str
) -> None:
    first = script.start(script.settings_from(environment))
    api.runs[0]["state"] = state
    assert script.start(script.settings_from(environment)) == first
    assert len(api.runs) == 1
    other = environment | {"JOB_NAME": f"{NAME}-{29923320 + 24 * 60}"}
    script.start(script.settings_from(other))
    assert [run["display_name"][-10:] for run in api.runs] == ["2026-11-23", "2026-11-24"]
    assert len(api.experiments) == 1


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_failed_run_is_started_again(
    script: ModuleType, api: FakeApi, environment: dict[str, str], state: str
) -> None:
    first = script.start(script.settings_from(environment))
    api.runs[0]["state"] = state
    assert script.start(script.settings_from(environment)) != first


def test_a_multi_user_installation_gets_token_and_namespace(
    script: ModuleType, api: FakeApi, environment: dict[str, str], tmp_path: Path
) -> None:
    api.multi_user = True
    (tmp_path / "token").write_text("projected-token\n")
    script.start(script.settings_from(environment | {"PIPELINE_NAMESPACE": "reading-room"}))
    assert api.bodies[0][1] == {"display_name": NAME, "namespace": "reading-room"}
    assert set(api.tokens) == {"Bearer projected-token"}


def test_a_namespaces_own_pipeline_goes_before_the_shared_one(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    api.pipelines["reading-room", NAME] = "pipeline-own"
    script.start(script.settings_from(environment | {"PIPELINE_NAMESPACE": "reading-room"}))
    reference = api.bodies[-1][1]["pipeline_version_reference"]
    assert reference == {"pipeline_id": "pipeline-own"}


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ((401, "token expired"), "check the projected token"),
        ((403, "forbidden"), "check the RoleBinding"),
        ((429, "quota"), "quota is used up"),
        ((400, "unknown parameter"), "compare their names"),
        ((500, "boom"), "API server's log"),
    ],
)
def test_a_refusal_ends_in_one_line_of_advice(
    script: ModuleType,
    api: FakeApi,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: tuple[int, str],
    advice: str,
) -> None:
    api.refuse = refusal
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO):
        assert script.main() == 1
    assert advice in caplog.text
    assert refusal[1] in caplog.text
    assert "Traceback" not in caplog.text
    assert not api.runs


def test_an_unknown_pipeline_says_how_to_upload_it(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    api.pipelines.clear()
    with pytest.raises(script.StartError, match="publish-pipeline nightly"):
        script.start(script.settings_from(environment))


def test_a_wrong_host_names_the_setting(script: ModuleType, environment: dict[str, str]) -> None:
    wrong = environment | {"KFP_ENDPOINT": "http://127.0.0.1:1"}
    with pytest.raises(script.StartError, match="check KFP_ENDPOINT"):
        script.start(script.settings_from(wrong))


@pytest.mark.parametrize("page", [b"<html>sign in</html>", b"[]", b"\xff\xfe"])
def test_a_login_page_is_not_taken_for_the_api(
    script: ModuleType, api: FakeApi, environment: dict[str, str], page: bytes
) -> None:
    api.page = page
    with pytest.raises(script.StartError, match="no JSON object"):
        script.start(script.settings_from(environment))


def test_an_answer_without_an_id_is_an_error(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    api.page = b"{}"
    with pytest.raises(script.StartError, match="has no experiment_id"):
        script.start(script.settings_from(environment))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"KFP_ENDPOINT": ""}, "KFP_ENDPOINT"),
        ({"PIPELINE_NAME": ""}, "PIPELINE_NAME"),
        ({"KFP_ENDPOINT": "ml-pipeline:8888"}, "must begin with http"),
    ],
)
def test_a_missing_setting_is_named(
    script: ModuleType, environment: dict[str, str], change: dict[str, str], named: str
) -> None:
    with pytest.raises(script.StartError, match=named):
        script.settings_from(environment | change)


def test_missing_parameters_are_named(
    script: ModuleType, environment: dict[str, str], tmp_path: Path
) -> None:
    nowhere = environment | {"PARAMETERS_DIRECTORY": str(tmp_path / "nothing")}
    with pytest.raises(script.StartError, match="mount the ConfigMap"):
        script.start(script.settings_from(nowhere))


def test_a_job_made_by_hand_starts_another_run_of_the_same_date(
    script: ModuleType, api: FakeApi, environment: dict[str, str]
) -> None:
    today = datetime.now(UTC).date().isoformat()
    scheduled = script.start(script.settings_from(environment))
    for name in ("repair", "repair-1764085290"):
        by_hand = script.settings_from(environment | {"JOB_NAME": name})
        made = script.start(by_hand)
        assert made != scheduled
        assert script.start(by_hand) == made  # a pod of the same Job that is tried again
    assert [run["display_name"] for run in api.runs] == [
        f"{NAME}-2026-11-23",
        f"{NAME}-{today}-repair",
        f"{NAME}-{today}-repair-1764085290",
    ]


@pytest.mark.parametrize(
    ("job_name", "night"),
    [
        (f"{NAME}-29923320", "2026-11-23"),
        (f"{NAME}-29923200", "2026-11-23"),
        (f"{NAME}-29923199", "2026-11-22"),
        ("by-hand", "2026-11-23-by-hand"),
        ("repair-20261123", "2026-11-23-repair-20261123"),
        ("", "2026-11-23"),
    ],
)
def test_a_night_is_told_apart_by_its_date_and_the_name_of_a_job_made_by_hand(
    script: ModuleType, job_name: str, night: str
) -> None:
    now = datetime(2026, 11, 23, 23, 59, tzinfo=UTC)
    assert script.night_of(job_name, NAME, now) == night


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '{"a": [NaN]}'])
def test_a_number_that_json_does_not_know_ends_in_advice(
    script: ModuleType, api: FakeApi, environment: dict[str, str], value: str
) -> None:
    (Path(environment["PARAMETERS_DIRECTORY"]) / "bin_width").write_text(value)
    with pytest.raises(script.StartError, match=r"bin_width .*JSON does not know"):
        script.start(script.settings_from(environment))
    assert not api.runs
