"""Who may ask a DICOMweb archive: credentials, refusals, overload, from a server that plays one."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from chexradinet.config import StoreConfig
from chexradinet.dicom import web as dicomweb
from chexradinet.dicom.web import list_instances
from chexradinet.errors import StoreAccessError, StoreError, StoreUnavailableError

NAMES = ("DICOMWEB_TOKEN", "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_CA_BUNDLE")
QUICK = StoreConfig(retry_total_s=0.5)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Return a server whose `statuses` are answered in turn, and that keeps what it was `asked`."""
    state = SimpleNamespace(statuses=[], asked=[], body=b"[]", answer=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Authorization"))
            self.send_response(state.statuses.pop(0) if state.statuses else 200)
            self.send_header("Content-Type", "application/dicom+json")
            body = state.answer(self.path) if state.answer else state.body
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.uri = f"dicomweb://127.0.0.1:{server.server_port}/x?study_date=20260101"
        yield state
        server.shutdown()


def test_without_credentials_none_are_sent(archive: SimpleNamespace) -> None:
    assert list(list_instances(archive.uri, QUICK)) == []
    assert archive.asked == [None] * len(dicomweb.MODALITIES)


def test_token_is_sent(archive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    list(list_instances(archive.uri, QUICK))
    assert set(archive.asked) == {"Bearer abc"}


def test_user_and_password_are_sent(
    archive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMWEB_USER", "reader")
    monkeypatch.setenv("DICOMWEB_PASSWORD", "word")
    list(list_instances(archive.uri, QUICK))
    assert set(archive.asked) == {"Basic " + base64.b64encode(b"reader:word").decode()}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"DICOMWEB_USER": "planted"}, "DICOMWEB_PASSWORD"),
        ({"DICOMWEB_PASSWORD": "planted"}, "DICOMWEB_USER"),
        ({"DICOMWEB_TOKEN": "planted", "DICOMWEB_USER": "planted", "DICOMWEB_PASSWORD": "planted"},
         "unset one"),
        ({"DICOMWEB_CA_BUNDLE": "/no/such/file"}, "DICOMWEB_CA_BUNDLE"),
    ],
)  # fmt: skip
def test_incomplete_credentials_are_named_and_not_repeated(
    archive: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    text: str,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreAccessError, match=text) as caught:
        list(list_instances(archive.uri, QUICK))
    assert "planted" not in str(caught.value)
    assert archive.asked == []


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, StoreAccessError, "DICOMWEB_TOKEN"),
        (403, StoreAccessError, "may not"),
        (400, StoreError, "status 400"),
    ],
)
def test_refusals_are_told_at_once(
    archive: SimpleNamespace, status: int, kind: type[StoreError], text: str
) -> None:
    archive.statuses = [status]
    with pytest.raises(kind, match=text):
        list(list_instances(archive.uri, QUICK))
    assert len(archive.asked) == 1


def test_overload_is_waited_out(archive: SimpleNamespace) -> None:
    archive.statuses = [503, 429]
    assert list(list_instances(archive.uri, StoreConfig(retry_total_s=20))) == []
    assert len(archive.asked) == 2 + len(dicomweb.MODALITIES)


def test_overload_that_lasts_is_unavailable(archive: SimpleNamespace) -> None:
    archive.statuses = [503] * 100
    with pytest.raises(StoreUnavailableError, match="overloaded"):
        list(list_instances(archive.uri, QUICK))


@pytest.mark.parametrize("body", [b"<html>", b'[{"0020000D": {}}]', b'["text"]'])
def test_answer_that_is_no_search_result_is_told(archive: SimpleNamespace, body: bytes) -> None:
    archive.body = body
    with pytest.raises(StoreError, match="DICOM"):
        list(list_instances(archive.uri, QUICK))


def test_archive_that_does_not_know_offset_is_listed_once(archive: SimpleNamespace) -> None:
    archive.body = (
        b'[{"0020000D": {"Value": ["1.2"]}, "0020000E": {"Value": ["3"]}, '
        b'"00080018": {"Value": ["4"]}, "00080060": {"Value": ["DX"]}}]'
    )
    refs = list(list_instances(archive.uri, QUICK))
    assert [(ref.modality, ref.sop_uid) for ref in refs] == [("DX", "4")]


def test_study_behind_a_page_of_known_ones_is_not_lost(
    archive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE_SIZE", 1)
    studies = {"CR": ["both"], "DX": ["both", "digital"]}

    def answer(path: str) -> bytes:
        url = urlsplit(path)
        query = parse_qs(url.query)
        if url.path == "/x/studies":
            start = int(query.get("offset", ["0"])[0])
            uids = studies.get(query["ModalitiesInStudy"][0], [])[start : start + 1]
            return json.dumps([{"0020000D": {"Value": [uid]}} for uid in uids]).encode()
        study = url.path.split("/")[3]
        return json.dumps(
            [
                {
                    "0020000E": {"Value": ["3"]},
                    "00080018": {"Value": [f"sop of {study}"]},
                    "00080060": {"Value": ["DX"]},
                }
            ]
        ).encode()

    archive.answer = answer
    found = [ref.sop_uid for ref in list_instances(archive.uri, QUICK)]
    assert found == ["sop of both", "sop of digital"]
