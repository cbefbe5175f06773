"""An archive with faults of single radiographs: the rest becomes the data set."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from chexradinet.config import StoreConfig
from chexradinet.dataset import open_dataset
from chexradinet.errors import StoreUnavailableError
from chexradinet.ingest.ingest import ingest
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom, dicom_config, sop_uid
from tests.serving import serving

TYPE = 'multipart/related; type="application/dicom"; boundary=cut'
HEAD = b"--cut\r\nContent-Type: application/dicom\r\n\r\n"
TAIL = b"\r\n--cut--\r\n"
PAGE_SIZE = 2
CUT_SHORT, NO_ANSWER = 1, 2
ANSWERS = [
    (200, TYPE, HEAD + dicom(0) + TAIL),
    (200, TYPE, b"a preamble\r\n" + HEAD + dicom(1) + TAIL),
    (200, "text/html", b"<html>an error page</html>"),
    (200, TYPE, HEAD + dicom(9) + TAIL),
    (200, TYPE, b"no part at all"),
    (404, "text/plain", b""),
    (406, "text/plain", b""),
    (200, "application/dicom", dicom(7)),
    (500, "text/plain", b""),
    (503, "text/plain", b""),
    (403, "text/plain", b""),
    (CUT_SHORT, TYPE, HEAD + dicom(11)[:500]),
    (NO_ANSWER, "", b""),
]
UIDS = [sop_uid(number) for number in range(len(ANSWERS))]
CONFIG = dicom_config(max_reject_fraction=0.9, store=StoreConfig(retry_total_s=0))
REJECTED = {"unreadable": 4, "missing": 1, "unavailable": 5}


class Archive(BaseHTTPRequestHandler):
    """An archive of two studies that limits its pages and answers for each instance in its way."""

    def do_GET(self) -> None:
        """Answer a search or give an instance."""
        url = urlsplit(self.path)
        fails: set[str] = self.server.fails  # type: ignore[attr-defined]
        if "instances" in fails and "/instances/" in url.path:
            status, kind, body = 500, "text/plain", b""
            if "then searches" in fails:
                fails.add("searches")
        elif "searches" in fails:
            status, kind, body = 500, "text/plain", b""
        elif "/studies/1.1/" in url.path:
            status, kind, body = 200, "text/html", b"<html>an error page</html>"
        elif "/instances/" in url.path:
            status, kind, body = ANSWERS[UIDS.index(url.path.rpartition("/")[2])]
        else:
            status, kind, body = 200, "application/dicom+json", self.found(url.path, url.query)
        self.close_connection = True
        if status == NO_ANSWER:
            return
        self.send_response(200 if status == CUT_SHORT else status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + 1000 * (status == CUT_SHORT)))
        self.end_headers()
        self.wfile.write(body)

    def found(self, path: str, query: str) -> bytes:
        """Return a page of a search."""
        dx = {"vr": "CS", "Value": ["DX"]}
        items: list[dict[str, object]]
        if path.endswith("/studies"):
            items = [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in ("1.1", "1.2")]
        elif path.endswith("/series"):
            items = [{"0020000E": {"vr": "UI", "Value": ["1.9"]}}]
            items.append({"0020000E": {"vr": "UI", "Value": ["1.3"]}, "00080060": dx})
        else:
            items = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in UIDS]
        start = int(parse_qs(query).get("offset", ["0"])[0])
        return json.dumps(items[start : start + PAGE_SIZE]).encode()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def fails() -> set[str]:
    """Return what the archive fails on."""
    return set()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, fails: set[str]) -> Iterator[str]:
    """Return the address of the archive."""
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Archive)) as server:
        server.fails = fails  # type: ignore[attr-defined]
        yield f"dicomweb://127.0.0.1:{server.server_port}/x?last_days=3"


def test_an_archive_that_answers_searches_and_gives_nothing_ends_the_run(
    archive: str, fails: set[str], tmp_path: Path
) -> None:
    fails.add("instances")
    with pytest.raises(StoreUnavailableError, match="failed on 10 X-rays in a row"):
        ingest(archive, tmp_path / "dataset", CONFIG)


def test_an_archive_that_fails_altogether_ends_the_run_at_once(
    archive: str, fails: set[str], tmp_path: Path
) -> None:
    fails |= {"instances", "then searches"}
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        ingest(archive, tmp_path / "dataset", CONFIG)


def test_a_malformed_answer_rejects_its_radiograph_or_study_alone(
    archive: str, tmp_path: Path
) -> None:
    info = ingest(archive, tmp_path / "dataset", CONFIG)
    assert info.ingest["unlisted_folders"] == 1
    assert info.counts["rejected"] == REJECTED
    assert info.counts["images"] == len(ANSWERS) - sum(REJECTED.values()) == 3
    assert len(open_dataset(tmp_path / "dataset")) == 3
