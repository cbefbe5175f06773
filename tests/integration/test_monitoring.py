"""From a run of both pipelines to every panel: a real Pushgateway and a real Prometheus."""

import io
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
from prometheus_client import CollectorRegistry, Gauge, push_to_gateway
from rich.console import Console

from chexradinet.monitoring import STAGES
from chexradinet.phantom import write_phantom, write_phantom_inbox
from pipelines.compile import compile_nightly, compile_training
from pipelines.parameters import load_compiled, parse_settings
from pipelines.run import run_locally

MONITORING = Path(__file__).resolve().parents[2] / "manifests" / "options" / "monitoring"
Wait = Callable[[str, "subprocess.Popen[bytes]"], None]

TRAINING = (
    "data_format=csv",
    "image_side=48",
    "backbone=resnet18-narrow",
    "map_stride=16",
    "epochs=1",
    "rounds=1",
    "round_epochs=1",
    "min_improvement=-1",
    "num_shards=1",
    "compare_arms=false",
    "accelerator_count=0",
    "bootstrap_samples=100",
    "validation_fraction=0.5",
)
"""Half of the patients validate: a reference for drift needs 20 patients in each half of them."""
NIGHT = ("settle_s=0", "min_age_years=0", "shard_size=25")
NUM_NEW = 40
OF_AN_ARCHIVE = {
    "chexradinet_nightly_plans_to_archive",
    "chexradinet_nightly_dicom_results_refused",
}
"""Pushed by nights that have an archive: see test_pacs_to_pacs.py."""


def answer(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as response:  # noqa: S310 - our own loopback
        return bytes(response.read())


def ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=60)


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
def filled(gateway: str, prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run both compiled pipelines here; return Prometheus' address once it has scraped them."""
    folder = tmp_path_factory.mktemp("run")
    write_phantom(folder / "labelled", 300, 64, seed=1)
    write_phantom_inbox(folder / "inbox", NUM_NEW, 64, seed=2)
    (folder / "inbox" / "cut.dcm").write_bytes(b"no X-ray")
    # The one thing that this machine lacks: a GPU, and the exporter that measures it.
    registry = CollectorRegistry()
    busy = Gauge("DCGM_FI_DEV_GPU_UTIL", "In percent.", ["pod", "gpu"], registry=registry)
    busy.labels("chexradinet-training-abcde-1", "0").set(70)
    push_to_gateway(gateway, "dcgm", registry)
    environment = {
        "PUSHGATEWAY_URL": f"http://{gateway}",
        "OMP_NUM_THREADS": "1",
    }
    models = f"models_uri={folder / 'models'}"
    inbox = f"inbox_uri={folder / 'inbox'}"
    results = f"results_uri={folder / 'results'}"
    for compiled, words in (
        (
            compile_training(folder, max_rounds=1, has_arms=False),
            (f"source={folder / 'labelled'}", *TRAINING),
        ),
        (compile_nightly(folder), (inbox, results, *NIGHT)),
    ):
        arguments = parse_settings(load_compiled(compiled), [models, *words])
        console = Console(file=io.StringIO())
        run_locally(compiled, arguments, folder / compiled.stem, console, environment)
    for _ in range(600):
        if query(prometheus, "chexradinet_nightly_last_success_timestamp_seconds"):
            return prometheus
        time.sleep(0.1)
    return pytest.fail("Prometheus did not scrape the gateway in a minute")


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


def test_figures_are_those_of_the_runs(filled: str) -> None:
    (scored,) = query(filled, "chexradinet_nightly_images_scored")
    assert scored["value"][1] == str(NUM_NEW)
    # honor_labels: job and pipeline are those of the run, not of the scrape.
    assert (scored["metric"]["job"], scored["metric"]["pipeline"]) == ("chexradinet", "nightly")
    rejected = query(filled, "sum(chexradinet_nightly_images_rejected)")
    assert rejected[0]["value"][1] == "1"
    (used,) = query(filled, "chexradinet_nightly_model_info")
    (made,) = query(filled, "chexradinet_training_model_info")
    assert used["metric"]["digest"] == made["metric"]["digest"]
    stages = {
        pipeline: {
            series["metric"]["stage"]
            for series in query(filled, f"chexradinet_{pipeline}_stage_duration_seconds")
        }
        for pipeline in ("training", "nightly")
    }
    assert stages["nightly"] == {"plan", "score", "collect"}
    assert stages["training"] == set(STAGES) - stages["nightly"] - {"pretrain", "upload"}
    (running,) = query(filled, "chexradinet_training_running")
    assert running["value"][1] == "0"


def test_a_good_night_raises_no_alert(filled: str) -> None:
    rules = json.loads(answer(f"{filled}/api/v1/rules"))["data"]["groups"][0]["rules"]
    assert len(rules) == 8
    for rule in rules:
        assert query(filled, rule["query"]) == [], rule["name"]


def test_every_metric_of_alerts_and_dashboard_is_one_that_runs_push(filled: str) -> None:
    pushed = {series["metric"]["__name__"] for series in query(filled, '{job="chexradinet"}')}
    texts = [expression for _, expression in PANELS]
    texts.append((MONITORING / "chexradinet-prometheusrule.yaml").read_text())
    asked = set(re.findall(r"chexradinet_(?:nightly|training)_\w+", " ".join(texts)))
    assert asked - OF_AN_ARCHIVE <= pushed
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
