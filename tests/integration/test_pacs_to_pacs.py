"""From a modality to the PACS and back: C-STORE to Orthanc, a night, results by STOW-RS."""

import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from rich.console import Console

from chexradinet.config import QualityConfig, StoreConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.config.parameters import NightlySettings, nested
from chexradinet.dicom.web import session_for
from chexradinet.errors import (
    ConfigError,
    StoreIntegrityError,
    StoreRefusedError,
    StoreUnavailableError,
)
from chexradinet.monitoring import NightlyTelemetry
from chexradinet.nightly import Addresses, run
from chexradinet.nightly.run import nightly
from chexradinet.store import open_store
from pipelines.compile import compile_nightly
from pipelines.parameters import load_compiled, parse_settings
from pipelines.run import run_locally
from tests.nightly_world import SCORING, World, make_world

CONFIG = PlanConfig(
    settle_s=0.0,
    results=ResultSettings(quality=QualityConfig(check_inversion=False), dicom_results=True),
)
AT_ONCE = StoreConfig(retry_total_s=0)


def send(receiver: SimpleNamespace, world: World, *numbers: int) -> None:
    """Send radiographs of today's studies as a modality does."""
    today = {"StudyDate": f"{datetime.now(UTC):%Y%m%d}"}
    paths = [world.add_dicom(number, header=today) for number in numbers]
    address = ["127.0.0.1", str(receiver.dicom_port)]
    command = ["storescu", "-aec", "CHEXRADINET", *address, *map(str, paths)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    for path in paths:
        path.unlink()


def modalities(receiver: SimpleNamespace, first: int) -> dict[str, int]:
    """Count the instances of three studies that the receiver has, by modality."""
    client = DICOMwebClient(receiver.url, session=session_for())
    found: dict[str, int] = {}
    for number in range(first, first + 3):
        wanted = {"StudyInstanceUID": f"1.2.3.5.{number}"}
        for one in client.search_for_instances(search_filters=wanted):
            (modality,) = one["00080060"]["Value"]
            found[modality] = found.get(modality, 0) + 1
    return found


@pytest.mark.slow
def test_what_a_modality_sends_is_scored_once_and_its_results_are_archived_once(
    trusted: SimpleNamespace, tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world")
    inbox_uri = f"{trusted.uri}?last_days=3"
    compiled = compile_nightly(tmp_path)
    words = [
        f"inbox_uri={inbox_uri}", f"models_uri={world.root / 'models'}",
        f"results_uri={world.results_uri}", f"archive_uri={trusted.uri}",
        "dicom_results=true", "settle_s=0",
    ]  # fmt: skip
    arguments = parse_settings(load_compiled(compiled), words)
    send(trusted, world, 10, 11)
    console = Console(file=io.StringIO())
    run_locally(compiled, arguments, tmp_path / "run", console, {"OMP_NUM_THREADS": "1"})
    assert modalities(trusted, 10) == {"DX": 2, "SR": 2, "OT": 2}
    report = next(Path(world.results_uri).glob("scores/*/report.html")).read_text("utf-8")
    assert "DICOM results: 4 stored, 0 already there." in report
    send(trusted, world, 10, 11, 12)
    nightly(replace(addresses(world, trusted.uri), inbox_uri=inbox_uri), CONFIG, SCORING)
    run.archive_results(world.results_uri, trusted.uri, AT_ONCE)
    assert modalities(trusted, 10) == {"DX": 3, "SR": 3, "OT": 3}
    assert len(world.scored_keys()) == 3
    assert [note["stored"] for note in notes(world)] == [4, 2]


def notes(world: World) -> list[dict[str, Any]]:
    """Return what the ledger notes of each plan that the archive answered for."""
    paths = sorted(Path(world.results_uri).glob("ledger/plans/*/archived.json"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[NightlyTelemetry]:
    """Return the telemetry that sending pushes."""
    found: list[NightlyTelemetry] = []
    monkeypatch.setattr(run, "push", found.append)
    return found


def addresses(world: World, archive_uri: str) -> Addresses:
    return Addresses(
        inbox_uri=str(world.inbox),
        models_uri=str(world.root / "models"),
        results_uri=world.results_uri,
        archive_uri=archive_uri,
    )


def test_an_archive_that_cannot_be_reached_loses_nothing_and_the_next_night_sends_what_is_missing(
    trusted: SimpleNamespace,
    free_port: Callable[[], int],
    pushed: list[NightlyTelemetry],
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path / "world")
    nowhere = f"dicomweb://127.0.0.1:{free_port()}/x"
    world.add_dicom(20)
    _, first = nightly(addresses(world, nowhere), CONFIG, SCORING)
    assert first is not None
    assert first.num_scored == 1
    page = next(Path(world.results_uri).glob("scores/*/report.html"))
    assert "DICOM results: not sent yet." in page.read_text("utf-8")
    with pytest.raises(StoreUnavailableError, match="no answer"):
        run.archive_results(world.results_uri, nowhere, AT_ONCE)
    assert "DICOM results: not sent; the next run tries again" in page.read_text("utf-8")
    assert (pushed[-1].plans_to_archive, pushed[-1].dicom_results_archived) == (1, 0)
    world.add_dicom(21)
    nightly(addresses(world, trusted.uri), CONFIG, SCORING)
    assert run.archive_results(world.results_uri, trusted.uri, AT_ONCE).stored == 4
    assert "DICOM results: 2 stored, 0 already there." in page.read_text("utf-8")
    assert modalities(trusted, 20) == {"SR": 2, "OT": 2}
    assert (pushed[-1].plans_to_archive, pushed[-1].dicom_results_archived) == (0, 4)
    assert run.archive_results(world.results_uri, nowhere, AT_ONCE).stored == 0


def test_results_that_are_refused_are_said_once_and_hold_up_no_other_night(
    trusted: SimpleNamespace, pushed: list[NightlyTelemetry], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world")
    for number in (30, 31):
        world.add_dicom(number)
        nightly(addresses(world, trusted.uri), CONFIG, SCORING)
    store, prefix = open_store(world.results_uri)
    keys = sorted(info.key for info in store.list(f"{prefix}dicom/") if "/000001-" in info.key)
    store.put(keys[0], b"not DICOM")
    with pytest.raises(StoreRefusedError, match="1 of 4 DICOM results were refused"):
        run.archive_results(world.results_uri, trusted.uri, AT_ONCE)
    assert (pushed[-1].dicom_results_refused, pushed[-1].plans_to_archive) == (1, 0)
    assert [(note["stored"], note["refused"]) for note in notes(world)] == [(1, 1), (2, 0)]
    assert run.archive_results(world.results_uri, trusted.uri, AT_ONCE).stored == 0


def test_a_result_that_is_damaged_holds_up_no_other_night(
    trusted: SimpleNamespace, pushed: list[NightlyTelemetry], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world")
    for number in (50, 51):
        world.add_dicom(number)
        nightly(addresses(world, trusted.uri), CONFIG, SCORING)
    next(Path(world.results_uri).glob("dicom/*/000001-*/*.dcm")).write_bytes(b"damaged")
    with pytest.raises(StoreIntegrityError, match="damaged or altered"):
        run.archive_results(world.results_uri, trusted.uri, AT_ONCE)
    assert (pushed[-1].dicom_results_archived, pushed[-1].plans_to_archive) == (2, 1)


def test_nights_without_an_archive_are_never_sent_to_one(
    trusted: SimpleNamespace, pushed: list[NightlyTelemetry], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world")
    world.add_dicom(40)
    nightly(addresses(world, ""), CONFIG, SCORING)
    report = next(Path(world.results_uri).glob("scores/*/report.html")).read_text("utf-8")
    assert "archive" not in report.lower()
    assert run.archive_results(world.results_uri, trusted.uri, AT_ONCE).stored == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"archive_uri": "dicomweb://pacs/x"}, "archive_uri.*empty unless dicom_results"),
        ({"archive_uri": "s3://bucket", "dicom_results": True}, "scheme 's3'"),
    ],
)
def test_an_archive_that_would_get_nothing_is_refused_before_the_night(
    given: dict[str, Any], said: str
) -> None:
    needed = {"inbox_uri": "inbox", "models_uri": "models", "results_uri": "results"}
    with pytest.raises(ConfigError, match=said):
        Addresses(**needed, archive_uri=nested(NightlySettings, needed | given).archive_uri)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "dicom-web/studies", 200),
        ("DELETE", "dicom-web/studies/1.2.3", 403),
        ("POST", "dicom-web/servers/pacs/stow", 403),
        ("GET", "patients", 403),
        ("POST", "tools/shutdown", 403),
    ],
)
def test_over_http_the_receiver_gives_and_stores_and_does_nothing_else(
    trusted: SimpleNamespace, method: str, path: str, status: int
) -> None:
    address = trusted.url.replace("dicom-web", path)
    assert session_for().request(method, address, timeout=60).status_code == status
