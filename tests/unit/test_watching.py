"""A training tells how it goes on, and a gateway that is away does not slow it down."""

import pytest

from chexradinet import watching
from chexradinet.errors import TrainingError
from chexradinet.monitoring import ADDRESS_VARIABLE, TrainingTelemetry
from chexradinet.watching import BACK_OFF_S, PUSH_INTERVAL_S, Heartbeat, watched


class Gateway:
    """Stands where `push` does, and for the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushed: list[TrainingTelemetry] = []
        self.answers = True
        self.now_s = 1000.0
        monkeypatch.setattr(watching, "push", self.push)
        monkeypatch.setattr(watching, "read_gpu_utilisation", lambda: 0.5)
        monkeypatch.setattr("chexradinet.watching.time.monotonic", lambda: self.now_s)

    def push(self, telemetry: TrainingTelemetry) -> bool:
        """Take figures, or not."""
        self.pushed.append(telemetry)
        return self.answers


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://gateway:9091")
    return Gateway(monkeypatch)


def pushes_of(gateway: Gateway, seconds: int) -> int:
    """Make a step each second; return how often something was pushed."""
    heartbeat = Heartbeat(None)
    for step in range(seconds):
        gateway.now_s += 1
        heartbeat(step, seconds, 0.5)
    return len(gateway.pushed)


def test_without_a_gateway_no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch)
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert pushes_of(gateway, 300) == 0


def test_each_step_is_handed_on() -> None:
    steps: list[tuple[int, int, float]] = []
    heartbeat = Heartbeat(lambda *step: steps.append(step))
    heartbeat(3, 10, 0.25)
    assert steps == [(3, 10, 0.25)]


def test_utilisation_is_pushed_once_a_minute_while_training_runs(gateway: Gateway) -> None:
    assert pushes_of(gateway, 5 * int(PUSH_INTERVAL_S)) == 5
    assert {(told.success, told.gpu_utilisation_ratio) for told in gateway.pushed} == {(None, 0.5)}


def test_gateway_that_is_away_is_asked_seldom(gateway: Gateway) -> None:
    gateway.answers = False
    assert pushes_of(gateway, 2 * int(BACK_OFF_S)) == 2


def test_stage_that_ends_well_tells_how_long_it_took(gateway: Gateway) -> None:
    @watched("ingest")
    def stage() -> str:
        gateway.now_s += 7.0
        return "done"

    assert stage() == "done"
    assert [told.stage_seconds for told in gateway.pushed] == [{"ingest": 7.0}]


def test_stage_that_fails_tells_nothing(gateway: Gateway) -> None:
    @watched("ingest")
    def stage() -> None:
        raise TrainingError("diverged")

    with pytest.raises(TrainingError, match="diverged"):
        stage()
    assert gateway.pushed == []
