"""The recurring run is there once, as wanted, and gone when it is removed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import kfp_server_api as kfp_api
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from chexradinet.config.parameters import WORKER_IMAGE
from chexradinet.errors import ChexRadiNetError, ConfigError
from pipelines import remote
from pipelines.__main__ import app
from pipelines.schedule import require_cron

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeKubeflow
else:
    FakeKubeflow = Any

WORDS = ["inbox_uri=s3://in", "models_uri=s3://models", "results_uri=s3://out", "shard_size=20"]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KFP_HOST", "KFP_TOKEN", "KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CHEXRADINET_IMAGE", WORKER_IMAGE)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(remote, "console", Console(width=1000))


@pytest.fixture
def command(kubeflow: FakeKubeflow, compiled_nightly: Path) -> list[str]:
    """Return a command that schedules the published nightly pipeline."""
    words = [f"--set={word}" for word in WORDS]
    place = ["--host", kubeflow.host, "--file", str(compiled_nightly)]
    published = CliRunner().invoke(app, ["publish", "nightly", *place])
    assert published.exit_code == 0, published.output
    kubeflow.requests.clear()
    return ["schedule", "nightly", *words, *place]


def _run(command: list[str]) -> Result:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return result


def test_the_recurring_run_takes_the_newest_version_without_catch_up_one_at_a_time(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    result = _run(command)
    (made,) = kubeflow.recurring
    assert made.display_name == "chexradinet-nightly"
    assert made.pipeline_version_reference.pipeline_id == "pipeline-0"
    assert made.pipeline_version_reference.pipeline_version_id is None
    assert made.trigger.cron_schedule.cron == "0 0 2 * * *"
    assert made.no_catchup is True
    assert made.max_concurrency == "1"
    assert made.mode == "ENABLE"
    assert made.service_account == "chexradinet-runner"
    assert made.runtime_config.parameters["shard_size"] == 20
    assert "note:" not in result.output


def test_scheduling_twice_changes_nothing(kubeflow: FakeKubeflow, command: list[str]) -> None:
    _run(command)
    kubeflow.requests.clear()
    kubeflow.recurring[0].runtime_config.parameters["shard_size"] = 20.0  # as the server returns it
    assert "unchanged" in _run(command).output
    assert kubeflow.writes == []


@pytest.mark.parametrize(
    "change",
    [
        ["--cron", "0 30 3 * * *"],
        ["--set=shard_size=30"],
        ["--set=dicom_results=true"],
        ["--service-account", "other"],
        ["--service-account", ""],
    ],
)
def test_a_changed_schedule_replaces_the_old_one_after_the_new_one_is_there(
    kubeflow: FakeKubeflow, command: list[str], change: list[str]
) -> None:
    _run(command)
    old = kubeflow.recurring[0].recurring_run_id
    kubeflow.requests.clear()
    _run([*command, *change])
    assert kubeflow.writes == ["POST recurringruns", f"DELETE recurringruns/{old}"]
    assert len(kubeflow.recurring) == 1
    kubeflow.requests.clear()
    _run([*command, *change])
    assert kubeflow.writes == []


def test_a_disabled_or_concurrent_one_of_the_same_name_is_replaced(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _run(command)
    kubeflow.recurring[0].mode = "DISABLE"
    _run(command)
    assert kubeflow.recurring[0].mode == "ENABLE"
    kubeflow.recurring[0].max_concurrency = "10"
    _run(command)
    assert [one.max_concurrency for one in kubeflow.recurring] == ["1"]


def test_duplicates_are_removed_and_others_left_alone(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _run(command)
    kubeflow.recurring += [
        kfp_api.V2beta1RecurringRun(recurring_run_id="twin", display_name="chexradinet-nightly"),
        kfp_api.V2beta1RecurringRun(recurring_run_id="other", display_name="somebody-else"),
    ]
    _run(command)
    assert [one.display_name for one in kubeflow.recurring] == [
        "chexradinet-nightly",
        "somebody-else",
    ]


def test_a_refused_replacement_leaves_the_old_schedule(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _run(command)
    kubeflow.refuse["POST recurringruns"] = (403, "exceeded quota")
    result = CliRunner().invoke(app, [*command, "--cron", "0 0 4 * * *"])
    assert "a quota is used up" in str(result.exception)
    assert [one.trigger.cron_schedule.cron for one in kubeflow.recurring] == ["0 0 2 * * *"]


def test_removing_is_idempotent(kubeflow: FakeKubeflow, command: list[str]) -> None:
    _run(command)
    place = command[-4:-2]
    assert "removed: 1 recurring" in _run(["schedule", "nightly", "--remove", *place]).output
    assert kubeflow.recurring == []
    assert "removed: 0 recurring" in _run(["schedule", "nightly", "--remove", *place]).output


def test_an_unpublished_pipeline_is_not_scheduled(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    kubeflow.pipelines.clear()
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ChexRadiNetError)
    assert "no pipeline is called 'chexradinet-nightly'" in str(result.exception)
    assert kubeflow.writes == []


def test_a_pipeline_that_all_profiles_share_is_scheduled_where_the_profile_has_none(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _run([*command, "--namespace", "team-a"])
    assert kubeflow.recurring[0].pipeline_version_reference.pipeline_id == "pipeline-0"
    own = kfp_api.V2beta1Pipeline(pipeline_id="own", name="chexradinet-nightly", namespace="team-a")
    kubeflow.pipelines.append(own)
    _run([*command, "--namespace", "team-a"])
    assert kubeflow.recurring[0].pipeline_version_reference.pipeline_id == "own"


def test_it_is_said_when_another_version_than_this_one_will_run(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    kubeflow.versions[0].description = "content sha256:0"
    assert "note: the newest published version is not what" in _run(command).output


@pytest.mark.parametrize("cron", ["0 2 * * *", "", "0 0 2 * * * *", "0 0 2 * * ; rm", "nightly"])
def test_a_cron_that_kubeflow_would_read_otherwise_is_refused(cron: str) -> None:
    with pytest.raises(ConfigError, match="it needs six, seconds first"):
        require_cron(cron)


@pytest.mark.parametrize("cron", ["0 0 2 * * *", "0 */15 6-20 ? * MON-FRI", "@daily"])
def test_a_cron_of_six_fields_is_taken(cron: str) -> None:
    assert require_cron(f"  {cron} ") == cron
