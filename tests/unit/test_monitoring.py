"""Telemetry against Debian's real Pushgateway and promtool, and against gateways that misbehave."""

import dataclasses
import logging
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client import generate_latest

from chexradinet import monitoring as telemetry
from chexradinet.errors import ConfigError, TrainingError
from chexradinet.monitoring import (
    ADDRESS_VARIABLE,
    BACK_OFF_S,
    DRIFT_KINDS,
    PUSH_INTERVAL_S,
    NightlyTelemetry,
    ProgressReporter,
    RunTelemetry,
    TrainingTelemetry,
    drift_ratios,
    timed_stage,
)
from chexradinet.records import RejectReason
from tests.serving import serving

DIGEST = "ab" * 32
SUCCESS = "chexradinet_nightly_last_success_timestamp_seconds"


def a_night(**changes: object) -> NightlyTelemetry:
    night = NightlyTelemetry(
        success=True,
        duration_seconds=71.5,
        stage_seconds={"plan": 1.0, "score": 70.0, "collect": 0.5},
        timestamp_seconds=1_700_000_000.0,
        model_digest=DIGEST,
        model_round=2,
        images_scored=40,
        rejected={RejectReason.NOT_FRONTAL: 3},
        flagged={"Effusion": 7, "Hernia": 0},
        oldest_unscored_age_seconds=0.0,
        drift={"scores": 0.4, "age": 1.2},
        out_of_distribution_ratio=0.05,
    )
    return dataclasses.replace(night, **changes)  # type: ignore[arg-type]


def a_training() -> TrainingTelemetry:
    return TrainingTelemetry(
        success=None,
        stage_seconds={"train": 600.0},
        mean_auroc={0: 0.71, 1: 0.74},
        localization={0: 0.3},
    )


def exposition(record: RunTelemetry) -> str:
    return "".join(
        generate_latest(registry).decode() for _, registry in telemetry.registries_of(record)
    )


def samples(text: str) -> dict[str, float]:
    """Return the value of each series of ours; the grouping labels are dropped."""
    found = {}
    for line in text.splitlines():
        if line.startswith("chexradinet_"):
            series, value = line.rsplit(" ", 1)
            series = series.replace('instance="",job="chexradinet",pipeline="nightly"', "")
            found[series.replace(",}", "}").replace("{}", "").replace("{,", "{")] = float(value)
    return found


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tool: Callable[[str, str], str]) -> Iterator[str]:
    """Run a Pushgateway of its own on a free port; yield its address."""
    binary = tool("prometheus-pushgateway", "install Debian's package of that name")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = [binary, f"--web.listen-address={address}", "--persistence.file="]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", int(address.split(":")[1]))).close()
                break
            except OSError:
                time.sleep(0.05)
        monkeypatch.setenv("PUSHGATEWAY_URL", f"http://{address}")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def scraped(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:  # noqa: S310
        return str(answer.read().decode())


def test_without_an_address_nothing_happens_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PUSHGATEWAY_URL", raising=False)
    telemetry._log_absence.cache_clear()
    with caplog.at_level(logging.INFO):
        assert [telemetry.push(a_night()), telemetry.push(a_night())] == [False, False]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "PUSHGATEWAY_URL" in caplog.text


def test_every_figure_of_a_night_arrives_with_its_value(gateway: str) -> None:
    assert telemetry.push(a_night())
    found = samples(scraped(gateway))
    expected = {
        SUCCESS: 1_700_000_000.0,
        "chexradinet_nightly_success": 1,
        "chexradinet_nightly_running": 0,
        "chexradinet_nightly_duration_seconds": 71.5,
        "chexradinet_nightly_images_scored": 40,
        "chexradinet_nightly_oldest_unscored_age_seconds": 0,
        "chexradinet_nightly_out_of_distribution_ratio": 0.05,
    }
    assert {name: found[name] for name in expected} == expected
    text = scraped(gateway)
    assert 'stage="score"} 70' in text
    assert 'reason="not_frontal"} 3' in text
    assert 'reason="unreadable"} 0' in text
    assert 'finding="Effusion",instance="",job="chexradinet",pipeline="nightly"} 7' in text
    assert 'kind="age",pipeline="nightly"} 1.2' in text
    assert f'digest="{DIGEST}"' in text


def test_a_stage_s_duration_stays_until_the_stage_ends_again(gateway: str) -> None:
    for seconds in ({"plan": 1.0}, {"score": 70.0}, {"plan": 2.0}):
        telemetry.push(NightlyTelemetry(stage_seconds=seconds))
    lines = [line for line in scraped(gateway).splitlines() if "stage_duration_seconds{" in line]
    assert [line.rpartition(",")[2] for line in sorted(lines)] == [
        'stage="plan"} 2',
        'stage="score"} 70',
    ]


def test_a_failed_night_keeps_the_time_of_the_last_good_one(gateway: str) -> None:
    telemetry.push(a_night())
    failed = NightlyTelemetry(success=False, timestamp_seconds=1_700_086_400.0)
    assert telemetry.push(failed)
    found = samples(scraped(gateway))
    assert found[SUCCESS] == 1_700_000_000.0
    assert found["chexradinet_nightly_success"] == 0
    assert found["chexradinet_nightly_last_update_timestamp_seconds"] == 1_700_086_400.0


def test_the_pipelines_do_not_overwrite_each_other(gateway: str) -> None:
    telemetry.push(a_night())
    telemetry.push(a_training())
    text = scraped(gateway)
    assert SUCCESS in text
    assert 'chexradinet_training_mean_auroc_ratio{instance="",job="chexradinet"' in text


def test_a_new_model_replaces_the_old_one_on_the_information_metric(gateway: str) -> None:
    telemetry.push(a_night())
    telemetry.push(a_night(model_digest="cd" * 32, model_round=3))
    digests = [line for line in scraped(gateway).splitlines() if "nightly_model_info{" in line]
    assert len(digests) == 1
    assert 'digest="' + "cd" * 32 in digests[0]


@pytest.mark.parametrize("record", [a_night(), a_training()])
def test_promtool_finds_nothing_to_criticise(
    record: RunTelemetry, tool: Callable[[str, str], str]
) -> None:
    arguments = [tool("promtool", "install Debian's prometheus package"), "check", "metrics"]
    for _, registry in telemetry.registries_of(record):
        text = generate_latest(registry).decode()
        checked = subprocess.run(
            arguments, input=text, text=True, capture_output=True, timeout=120, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    bad = text.replace("duration_seconds", "duration_ms")
    assert subprocess.run(arguments, input=bad, text=True, capture_output=True, check=False).stderr


def test_an_unreachable_gateway_is_a_warning_that_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PUSHGATEWAY_URL", "http://127.0.0.1:1")
    assert not telemetry.push(a_night())
    assert "Check PUSHGATEWAY_URL" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    "address", ["gateway:9091", "ftp://gateway", "http://", "http://user:hunter2@gateway"]
)
def test_a_malformed_address_is_a_warning_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv("PUSHGATEWAY_URL", address)
    assert not telemetry.push(a_night())
    assert "telemetry was not pushed" in caplog.text
    assert "hunter2" not in caplog.text


class Refusing(BaseHTTPRequestHandler):
    """A gateway that answers 400 to all."""

    def do_POST(self) -> None:
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(400, "inconsistent metrics")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_refusal_is_a_warning_with_the_gateways_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(HTTPServer(("127.0.0.1", 0), Refusing)) as server:
        monkeypatch.setenv("PUSHGATEWAY_URL", f"http://127.0.0.1:{server.server_port}")
        assert not telemetry.push(a_night())
    assert "inconsistent metrics" in caplog.text


def test_a_gateway_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "PUSH_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PUSHGATEWAY_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert not telemetry.push(a_night())
    assert time.monotonic() - started < 5  # which is the time unless it is set
    assert "timed out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage_seconds": {"patient 12": 1.0}}, "stage_seconds"),
        ({"flagged": {"effusion?": 1}}, "flagged"),
        ({"drift": {"12345": 1.0}}, "drift"),
        ({"rejected": {"because": 1}}, "rejected"),
        ({"drift": {"age": float("nan")}}, "finite"),
        ({"duration_seconds": -1.0}, "duration_seconds"),
        ({"out_of_distribution_ratio": 1.5}, "out_of_distribution_ratio"),
        ({"model_digest": "latest"}, "model_digest"),
        ({"model_round": None}, "model_round"),
        ({"model_round": 9}, "model_round"),
    ],
)
def test_a_label_or_number_outside_its_list_is_refused(
    changes: dict[str, object], named: str
) -> None:
    sound = {"model_digest": DIGEST, "model_round": 2}
    with pytest.raises(ConfigError, match=named):
        NightlyTelemetry(**(sound | changes))  # type: ignore[arg-type]


def test_a_round_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="mean_auroc"):
        TrainingTelemetry(mean_auroc={99: 0.5})


def test_drift_is_above_one_exactly_where_the_alarm_is_raised() -> None:
    p_values = {
        "score:Mass": 0.5,
        "score:Edema": 0.0004,
        "metadata:age": 0.001,
        "metadata:manufacturer": 0.0002,
        "image:mean": 0.0005,
        "embedding": 0.9,
        "ood": 1.0,
    }
    ratios = drift_ratios(p_values, limit=0.0005)
    assert {kind for kind, ratio in ratios.items() if ratio > 1} == {"scores", "manufacturer"}
    assert ratios["scores"] == pytest.approx(1.25)
    assert ratios["exposure"] == 1.0
    assert set(ratios) == set(DRIFT_KINDS) - {"view", "sex"}
    assert NightlyTelemetry(drift=ratios).drift == ratios


class StandInGateway:
    """Stands where `push` does, and for the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushed: list[TrainingTelemetry] = []
        self.answers = True
        self.now_s = 1000.0
        monkeypatch.setattr(telemetry, "push", self.push)
        monkeypatch.setattr("chexradinet.monitoring.time.monotonic", lambda: self.now_s)

    def push(self, telemetry: TrainingTelemetry) -> bool:
        """Take figures, or not."""
        self.pushed.append(telemetry)
        return self.answers


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> StandInGateway:
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://gateway:9091")
    return StandInGateway(monkeypatch)


def pushes_of(pushes: StandInGateway, seconds: int) -> int:
    """Make a step each second; return how often something was pushed."""
    heartbeat = ProgressReporter(None)
    for step in range(seconds):
        pushes.now_s += 1
        heartbeat(step, seconds, 0.5)
    return len(pushes.pushed)


def test_without_a_gateway_nothing_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = StandInGateway(monkeypatch)
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert pushes_of(pushes, 300) == 0


def test_each_step_is_handed_on() -> None:
    steps: list[tuple[int, int, float]] = []
    heartbeat = ProgressReporter(lambda *step: steps.append(step))
    heartbeat(3, 10, 0.25)
    assert steps == [(3, 10, 0.25)]


def test_a_running_training_pushes_once_a_minute(pushes: StandInGateway) -> None:
    assert pushes_of(pushes, 5 * int(PUSH_INTERVAL_S)) == 5
    assert {one.success for one in pushes.pushed} == {None}


def test_gateway_that_is_away_is_asked_seldom(pushes: StandInGateway) -> None:
    pushes.answers = False
    assert pushes_of(pushes, 2 * int(BACK_OFF_S)) == 2


def test_stage_that_ends_well_tells_how_long_it_took(pushes: StandInGateway) -> None:
    @timed_stage("ingest")
    def stage() -> str:
        pushes.now_s += 7.0
        return "done"

    assert stage() == "done"
    assert [one.stage_seconds for one in pushes.pushed] == [{"ingest": 7.0}]


def test_stage_that_fails_tells_nothing(pushes: StandInGateway) -> None:
    @timed_stage("ingest")
    def stage() -> None:
        raise TrainingError("diverged")

    with pytest.raises(TrainingError, match="diverged"):
        stage()
    assert pushes.pushed == []
