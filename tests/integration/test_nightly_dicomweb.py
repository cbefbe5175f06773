"""A night from an archive: every radiograph once, and results back by STOW-RS."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings, Run
from chexradinet.nightly import Addresses
from chexradinet.nightly.run import nightly
from tests.nightly_world import FINDINGS, SCORING, World, make_world
from tests.serving import serving

SETTINGS = ResultSettings(quality=QualityConfig(check_inversion=False), dicom_results=True)
CONFIG = PlanConfig(results=SETTINGS)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Return an archive of one study with the DICOM files of a folder, by SOP Instance UID."""
    state = SimpleNamespace(files={}, uri="", failing=set())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            name = url.path.rpartition("/")[2]
            if "/instances/" in url.path:
                body, kind = state.files.get(name, b""), "application/dicom"
            else:
                body, kind = self.found(name, url.query), "application/dicom+json"
            self.send_response(500 if name in state.failing else 200 if body else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def found(self, name: str, query: str) -> bytes:
            dx = {"vr": "CS", "Value": ["DX"]}
            items: list[dict[str, object]] = {
                "studies": [{"0020000D": {"vr": "UI", "Value": ["1.2.3.5"]}}],
                "series": [{"0020000E": {"vr": "UI", "Value": ["1.2.3.6"]}, "00080060": dx}],
            }.get(name, [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in state.files])
            start = int(parse_qs(query).get("offset", ["0"])[0])
            return json.dumps(items[start:]).encode()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        state.uri = f"dicomweb://127.0.0.1:{server.server_port}/x?last_days=3"
        yield state


def add(world: World, archive: SimpleNamespace, number: int) -> None:
    """Put a radiograph into the archive."""
    path = world.add_dicom(number)
    archive.files[f"1.2.3.4.{number}"] = path.read_bytes()
    path.unlink()


def test_each_radiograph_of_an_archive_is_scored_once_and_nothing_of_it_is_kept(
    archive: SimpleNamespace, tmp_path: Path
) -> None:
    world = make_world(tmp_path)
    addresses = Addresses(
        inbox_uri=archive.uri,
        models_uri=str(tmp_path / "models"),
        results_uri=world.results_uri,
    )
    for number in range(2):
        add(world, archive, number)
    archive.files["1.2.3.4.9"] = b"not DICOM, 1.2.3.4.9"
    _, night = nightly(addresses, CONFIG, SCORING, Run(run_id="first"))
    assert night is not None
    assert (night.num_scored, night.num_planned) == (2, 3)
    assert nightly(addresses, CONFIG, SCORING, Run(run_id="again"))[0].status == "nothing_new"
    add(world, archive, 2)
    _, night = nightly(addresses, CONFIG, SCORING, Run(run_id="next"))
    assert night is not None
    assert (night.num_scored, night.num_planned) == (1, 1)
    uids = [row["sop_uid"] for row in world.table("part-") if row["finding"] == FINDINGS[0]]
    assert uids == ["1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2"]
    kept = [path for path in Path(world.results_uri).rglob("*") if path.is_file()]
    assert len([path for path in kept if path.suffix == ".dcm"]) == 6, "a report and a capture each"
    assert not any(
        content in path.read_bytes() for path in kept for content in archive.files.values()
    )


def test_a_radiograph_that_the_archive_fails_on_waits_for_the_next_night(
    archive: SimpleNamespace, tmp_path: Path
) -> None:
    world = make_world(tmp_path)
    addresses = Addresses(
        inbox_uri=archive.uri, models_uri=str(tmp_path / "models"), results_uri=world.results_uri
    )
    for number in range(2):
        add(world, archive, number)
    archive.failing.add("1.2.3.4.1")
    _, night = nightly(addresses, CONFIG, SCORING, Run(run_id="first"))
    assert night is not None
    assert (night.num_scored, night.num_planned) == (1, 2)
    (row,) = world.table("rejected-")
    assert (row["status"], row["reason"]) == ("postponed", "unavailable")
    archive.failing.clear()
    _, night = nightly(addresses, CONFIG, SCORING, Run(run_id="next"))
    assert night is not None
    assert (night.num_scored, night.num_planned) == (1, 1)
