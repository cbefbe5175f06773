"""From a run's figures to the dashboard: a real Pushgateway, a real Prometheus, every panel."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chexradinet.findings import NIH_FINDINGS
from chexradinet.records import RejectReason
from chexradinet.results import telemetry
from chexradinet.results.run_figures import DRIFT_KINDS
from chexradinet.results.telemetry import NightlyTelemetry, TrainingTelemetry

MONITORING = Path(__file__).resolve().parents[2] / "manifests" / "options" / "monitoring"
DIGEST = "5e" * 32
Wait = Callable[[str, "subprocess.Popen[bytes]"], None]


def night(now: float) -> NightlyTelemetry:
    return NightlyTelemetry(
        success=True,
        duration_seconds=95.0,
        stage_seconds={"plan": 2.0, "score": 90.0, "collect": 3.0},
        timestamp_seconds=now,
        model_digest=DIGEST,
        model_round=1,
        images_scored=44,
        rejected={RejectReason.NOT_FRONTAL: 3, RejectReason.UNREADABLE: 1},
        flagged={finding: number for number, finding in enumerate(NIH_FINDINGS)},
        oldest_unscored_age_seconds=0.0,
        drift=dict.fromkeys(DRIFT_KINDS, 0.2),
        out_of_distribution_ratio=0.02,
    )


def training(now: float) -> TrainingTelemetry:
    return TrainingTelemetry(
        success=None,
        stage_seconds={"ingest": 30.0, "train": 300.0},
        timestamp_seconds=now,
        mean_auroc={0: 0.70, 1: 0.72},
        localization={0: 0.30, 1: 0.42},
        gpu_utilisation_ratio=0.9,
    )


def answer(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=5) as response:  # noqa: S310 - our own loopback
        return bytes(response.read())


def ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def gateway(
    tool: Callable[[str, str], str], free_port: Callable[[], int], wait_until_up: Wait
) -> Iterator[str]:
    """Run a Pushgateway; yield `host:port`."""
    binary = tool("prometheus-pushgateway", "install Debian's package of that name")
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [binary, f"--web.listen-address={address}", "--persistence.file="],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_up(f"http://{address}/-/ready", process)
        yield address
    finally:
        ended(process)


@pytest.fixture(scope="module")
def prometheus(
    gateway: str,
    tmp_path_factory: pytest.TempPathFactory,
    tool: Callable[[str, str], str],
    free_port: Callable[[], int],
    wait_until_up: Wait,
) -> Iterator[str]:
    """Run a Prometheus that scrapes the gateway as the ServiceMonitor says; yield its address."""
    binary = tool("prometheus", "install Debian's package of that name")
    monitor = yaml.safe_load((MONITORING / "pushgateway-servicemonitor.yaml").read_text())
    rule = yaml.safe_load((MONITORING / "chexradinet-prometheusrule.yaml").read_text())
    folder = tmp_path_factory.mktemp("prometheus")
    scrape = {
        "job_name": "pushgateway",
        "scrape_interval": "1s",
        "honor_labels": monitor["spec"]["endpoints"][0]["honorLabels"],
        "static_configs": [{"targets": [gateway]}],
    }
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    (folder / "prometheus.yaml").write_text(
        yaml.safe_dump({"scrape_configs": [scrape], "rule_files": [str(folder / "rules.yaml")]})
    )
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_up(f"http://{address}/-/ready", process)
        yield f"http://{address}"
    finally:
        ended(process)


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Return the series that an expression has now."""
    asked = urllib.parse.urlencode({"query": expression})
    found = json.loads(answer(f"{prometheus}/api/v1/query?{asked}"))
    assert found["status"] == "success"
    return list(found["data"]["result"])


@pytest.fixture(scope="module")
def filled(gateway: str, prometheus: str) -> str:
    """Push a night and a training; return Prometheus' address once it has scraped them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUSHGATEWAY_URL", f"http://{gateway}")
        assert telemetry.push(night(time.time()))
        assert telemetry.push(training(time.time()))
    for _ in range(150):
        if query(prometheus, "chexradinet_training_running"):
            return prometheus
        time.sleep(0.1)
    return pytest.fail("Prometheus did not scrape the gateway in 15 s")


def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "chexradinet.json").read_text()))


PANELS = [
    (panel["title"], target["expr"])
    for panel in dashboard()["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(("title", "expression"), PANELS)
def test_every_panel_shows_data(filled: str, title: str, expression: str) -> None:
    found = query(filled, expression)
    assert found, f"the panel {title!r} is empty: {expression}"
    assert all(series["value"][1] not in {"NaN", "+Inf"} for series in found)


def test_figures_arrive_as_they_were_pushed(filled: str) -> None:
    (scored,) = query(filled, "chexradinet_nightly_images_scored")
    assert scored["value"][1] == "44"
    # honor_labels: job and pipeline are those of the run, not of the scrape.
    assert (scored["metric"]["job"], scored["metric"]["pipeline"]) == ("chexradinet", "nightly")
    (rejected,) = query(filled, 'chexradinet_nightly_images_rejected{reason="not_frontal"}')
    assert rejected["value"][1] == "3"
    (model,) = query(filled, "chexradinet_nightly_model_info")
    assert (model["metric"]["digest"], model["metric"]["round"]) == (DIGEST, "1")


def test_a_good_night_raises_no_alert(filled: str) -> None:
    rules = json.loads(answer(f"{filled}/api/v1/rules"))["data"]["groups"][0]["rules"]
    assert len(rules) == 7
    for rule in rules:
        assert query(filled, rule["query"]) == [], rule["name"]


def test_every_metric_of_alerts_and_dashboard_is_one_that_runs_push() -> None:
    pushed = {
        f"chexradinet_{record.pipeline}_{figure.name}"
        for record in (night(1.0), training(1.0))
        for figure in record.figures()
    }
    texts = [expression for _, expression in PANELS]
    texts.append((MONITORING / "chexradinet-prometheusrule.yaml").read_text())
    asked = set(re.findall(r"chexradinet_(?:nightly|training)_\w+", " ".join(texts)))
    assert asked <= pushed
    assert len(asked) > 15


def test_panels_do_not_overlap_and_each_says_what_it_shows() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        own = {
            (row, column)
            for row in range(place["y"], place["y"] + place["h"])
            for column in range(place["x"], place["x"] + place["w"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert panel["description"].endswith(".")
        assert all("${datasource}" in str(target) for target in panel["targets"])
        cells |= own
