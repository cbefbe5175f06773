"""The exit task says how a night ended, in every way that Kubeflow may put it."""

from pathlib import Path

import pytest

from chexradinet.config.nightly import PlanConfig, Run
from chexradinet.errors import ChexRadiNetError
from chexradinet.monitoring import NightlyTelemetry
from chexradinet.nightly import run as module
from chexradinet.nightly.ledger import acquire, open_ledger, this_process
from chexradinet.nightly.run import collect_stage, plan_stage, report_outcome, score_stage
from tests.nightly_world import SCORING, World, make_world

RUN = Run(run_id="r")
CONFIG = PlanConfig(settle_s=0.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an inbox with one X-ray and a model for it."""
    return make_world(tmp_path, num_png=1)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[NightlyTelemetry]:
    """Return what is pushed from now on about how a run ended."""
    found: list[NightlyTelemetry] = []

    def push(figures: NightlyTelemetry) -> None:
        if figures.success is not None:
            found.append(figures)

    monkeypatch.setattr(module, "push", push)
    return found


def scored(world: World) -> str:
    """Plan and score; return the work."""
    work = plan_stage(world.addresses, CONFIG, RUN).work
    score_stage(world.addresses, work, 0, SCORING, RUN)
    return work


# The local runner, the API and the backend's metadata store each have a word for success; a run
# whose step was retried with success may stay FAILED, and before 2.17 RUNNING.
@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "CACHED", "FAILED", "RUNNING", ""])
def test_run_that_did_its_work_ended_well_whatever_its_state_is_called(
    world: World, pushed: list[NightlyTelemetry], state: str
) -> None:
    collect_stage(world.addresses, scored(world), RUN)
    assert report_outcome(world.results_uri, state, "r")
    (told,) = pushed
    assert told.success is True
    assert told.duration_seconds is not None


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "RUNNING", ""])
def test_run_that_stopped_half_way_failed(
    world: World, pushed: list[NightlyTelemetry], state: str
) -> None:
    scored(world)
    assert not report_outcome(world.results_uri, state, "r")
    (told,) = pushed
    assert told.success is False
    assert told.duration_seconds is not None


def test_failed_run_gives_the_lease_back(world: World, pushed: list[NightlyTelemetry]) -> None:
    scored(world)
    ledger = open_ledger(world.results_uri)
    assert not acquire(ledger, this_process("next"))
    report_outcome(world.results_uri, "FAILED", "r")
    assert acquire(ledger, this_process("next"))


def test_night_without_anything_new_ended_well(
    world: World, pushed: list[NightlyTelemetry]
) -> None:
    world.run()
    pushed.clear()
    assert plan_stage(world.addresses, CONFIG, RUN).status == "nothing_new"
    assert report_outcome(world.results_uri, "COMPLETE", "r")
    assert [told.success for told in pushed] == [True]


def test_run_that_left_the_work_to_another_one_reports_nothing(
    world: World, pushed: list[NightlyTelemetry]
) -> None:
    scored(world)
    assert plan_stage(world.addresses, CONFIG, Run(run_id="s")).status == "another_run_active"
    assert report_outcome(world.results_uri, "COMPLETE", "s")
    assert pushed == []


def test_run_that_could_not_begin_failed(world: World, pushed: list[NightlyTelemetry]) -> None:
    (world.root / "models" / "champion.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ChexRadiNetError):
        plan_stage(world.addresses, CONFIG, RUN)
    assert not report_outcome(world.results_uri, "FAILED", "r")
    assert [told.success for told in pushed] == [False]


@pytest.mark.parametrize(("state", "success"), [("COMPLETE", True), ("FAILED", False)])
def test_without_a_ledger_the_state_decides(
    pushed: list[NightlyTelemetry], state: str, success: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert report_outcome("s3://bucket/results", state, "r") is success
    assert [told.success for told in pushed] == [success]


def test_a_retried_plan_does_not_make_the_night_look_shorter(
    world: World, pushed: list[NightlyTelemetry], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(world)
    began = (Path(world.results_uri) / "ledger" / "run.json").read_bytes()
    plan_stage(world.addresses, CONFIG, RUN)
    assert (Path(world.results_uri) / "ledger" / "run.json").read_bytes() == began
