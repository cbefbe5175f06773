"""Who may ask a DICOMweb archive: credentials, refusals, overload, from a server that plays one."""

import base64
import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from chexradinet.config import StoreConfig
from chexradinet.dicom import web as dicomweb
from chexradinet.dicom.web import fetch, list_instances, session_for
from chexradinet.errors import (
    RejectedImageError,
    StoreAccessError,
    StoreError,
    StoreIntegrityError,
    StoreUnavailableError,
)
from tests.serving import serving

NAMES = ("DICOMWEB_TOKEN", "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_CA_BUNDLE")
QUICK = StoreConfig(retry_total_s=0.5)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Return a server whose `statuses` are answered in turn, and that keeps what it was `asked`."""
    state = SimpleNamespace(statuses=[], asked=[], body=b"[]", answer=None)
    state.headers = {"Content-Type": "application/dicom+json"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Authorization"))
            status = state.statuses.pop(0) if state.statuses else 200
            body = state.answer(self.path) if state.answer else state.body
            # An answer of None is what an archive says that does not know the query.
            self.send_response(status if body is not None else 400)
            body = body or b""
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        state.uri = f"dicomweb://127.0.0.1:{server.server_port}/x?study_date=20260101"
        yield state


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


STUDY, SERIES, SOP = "1.2.3", "1.2.4", "1.2.5"


def found(tag: str, uids: list[str], **values: object) -> list[dict[str, object]]:
    return [{tag: {"vr": "UI", "Value": [uid]}, **values} for uid in uids]


def modality(name: str) -> dict[str, object]:
    return {"00080060": {"vr": "CS", "Value": [name]}}


class Listing:
    """An archive of given numbers of studies, series and instances that limits its pages."""

    def __init__(self, sizes: tuple[int, int, int], cap: int, *, pages: bool = True) -> None:
        self.sizes, self.cap, self.pages = sizes, cap, pages
        self.extra_series: list[dict[str, object]] = []

    def __call__(self, path: str) -> bytes | None:
        """Return a page of what lies at a path; None for a query that is not known."""
        url = urlsplit(path)
        query = parse_qs(url.query)
        if "offset" in query and not self.pages:
            return None
        level = url.path.rpartition("/")[2]
        if level == "studies":
            wanted = query["ModalitiesInStudy"][0] == "DX"
            items = found("0020000D", [f"{STUDY}.{n}" for n in range(self.sizes[0] * wanted)])
        elif level == "series":
            study = url.path.split("/")[-2]
            names = [f"{SERIES}.{study.rpartition('.')[2]}.{n}" for n in range(self.sizes[1])]
            items = [*self.extra_series, *found("0020000E", names, **modality("DX"))]
        else:
            series = url.path.split("/")[-2].removeprefix(SERIES)
            items = found("00080018", [f"{SOP}{series}.{n}" for n in range(self.sizes[2])])
        start = int(query.get("offset", ["0"])[0])
        page = items[start : start + min(self.cap, int(query["limit"][0]))]
        return json.dumps(page).encode() if page else b""


@pytest.mark.parametrize("cap", [1, 7, 10, 12, 1_000])
@pytest.mark.parametrize("sizes", [(25, 1, 1), (1, 25, 1), (1, 1, 25), (3, 2, 7), (2, 10, 10)])
def test_every_search_goes_on_to_the_last_page(
    archive: SimpleNamespace, sizes: tuple[int, int, int], cap: int
) -> None:
    archive.answer = Listing(sizes, cap)
    refs = list(list_instances(archive.uri, QUICK))
    assert len({ref.sop_uid for ref in refs}) == len(refs) == math.prod(sizes)


def test_archive_that_refuses_offset_has_given_all_at_once(archive: SimpleNamespace) -> None:
    archive.answer = Listing((2, 2, 2), 1_000, pages=False)
    assert len(list(list_instances(archive.uri, QUICK))) == 8


def test_study_behind_a_page_of_known_ones_is_not_lost(archive: SimpleNamespace) -> None:
    studies = {"CR": ["1.1"], "DX": ["1.1", "1.2"]}

    def answer(path: str) -> bytes:
        url = urlsplit(path)
        query = parse_qs(url.query)
        start = int(query.get("offset", ["0"])[0])
        if url.path == "/x/studies":
            uids = studies.get(query["ModalitiesInStudy"][0], [])
            return json.dumps(found("0020000D", uids[start : start + 1])).encode()
        study = url.path.split("/")[3]
        items = [{**found("0020000E", ["3"], **modality("DX"))[0], **found("00080018", [study])[0]}]
        return json.dumps(items[start:]).encode()

    archive.answer = answer
    listed = [ref.study_uid for ref in list_instances(archive.uri, QUICK)]
    assert listed == ["1.1", "1.2"]


@pytest.mark.parametrize(
    "odd",
    [
        {"0020000E": {"vr": "UI", "Value": ["9.9"]}},
        {"0020000E": {"vr": "UI", "Value": ["9.9"]}, "00080060": {"vr": "CS"}},
        {"0020000E": {"vr": "UI", "Value": ["9.9"]}, "00080060": {"vr": "CS", "Value": []}},
        {"0020000E": {"vr": "UI", "Value": ["9.9"]}, "00080060": {"vr": "CS", "Value": [None]}},
        {"0020000E": {"vr": "UI", "Value": ["9.9"]}, **modality("SR")},
        {"00080060": {"vr": "CS", "Value": ["DX"]}},
        {"0020000E": {"vr": "UI", "Value": ["../../other"]}, **modality("DX")},
        {"0020000E": {"vr": "UI", "Value": [7]}, "00080060": "DX"},
    ],
)
def test_series_without_modality_or_uid_does_not_end_the_listing(
    archive: SimpleNamespace, odd: dict[str, object]
) -> None:
    archive.answer = Listing((2, 1, 1), 1_000)
    archive.answer.extra_series = [odd]
    assert len(list(list_instances(archive.uri, QUICK))) == 2


FILE = bytes(128) + b"DICM" + SOP.encode() + b"\r\n--other\n--cut-not\r\n\r\n" + bytes(range(256))
TYPE = 'multipart/related; type="application/dicom"; boundary='


HEAD = b"Content-Type: application/dicom"


def part(boundary: str = "cut", newline: bytes = b"\r\n", head: bytes = HEAD) -> bytes:
    line = b"--" + boundary.encode()
    return newline.join([line, *([head] if head else []), b"", FILE, line + b"--", b""])


ANSWERS = {
    "plain": (TYPE + "cut", part()),
    "quoted": (TYPE + '"cut"', part()),
    "preamble": (TYPE + "cut", b"a multipart message\r\n" + part()),
    "preamble of many lines": (TYPE + "cut", b"see\r\n\r\n--curt\r\n" + part()),
    "epilogue": (TYPE + "cut", part() + b"the end\r\n--cut\r\n"),
    "line feeds": (TYPE + "cut", part(newline=b"\n")),
    "line feeds and a preamble": (TYPE + "cut", b"hello\n" + part(newline=b"\n")),
    "first line empty": (TYPE + "cut", b"\r\n" + part()),
    "no header of the part": (TYPE + "cut", part(head=b"")),
    "headers that are folded": (
        TYPE + "cut",
        part(head=HEAD + b";\r\n a=b"),
    ),
    "punctuation": (TYPE + '"a=b/c:d\'(e)+_,-.?"', part("a=b/c:d'(e)+_,-.?")),
    "punctuation, not quoted": (TYPE + "a=b/c:d", part("a=b/c:d")),
    "a space inside": (TYPE + '"two words"', part("two words")),
    "dashes": (TYPE + "----cut", part("----cut")),
    "blanks after the boundary": (TYPE + "cut", part().replace(b"--cut\r\nC", b"--cut \t\r\nC")),
    "no end": (TYPE + "cut", part().removesuffix(b"\r\n--cut--\r\n")),
    "no parts": ("application/dicom", FILE),
    "no parts, under another type": ("application/octet-stream", FILE),
}


def fetched(archive: SimpleNamespace) -> bytes:
    return fetch(f"{archive.uri.partition('?')[0]}/studies/1/series/2/instances/{SOP}", QUICK)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_however_its_parts_are_laid_out(
    archive: SimpleNamespace, name: str
) -> None:
    archive.headers["Content-Type"], archive.body = ANSWERS[name]
    assert fetched(archive) == FILE


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>please log in</html>"),
        ("application/dicom+json", b"{}"),
        ("application/dicom", b""),
        (TYPE + "cut", b""),
        (TYPE + "other", part()),
        (TYPE, part()),
        ("multipart/related", part()),
        (TYPE + "cut", part().removesuffix(b"--cut--\r\n") + part()),
        (TYPE + "cut", part().replace(SOP.encode(), b"9.9.9")),
        ("", part()),
    ],
)
def test_a_malformed_answer_is_an_error_of_its_file_alone(
    archive: SimpleNamespace, kind: str, body: bytes
) -> None:
    archive.headers["Content-Type"], archive.body = kind, body
    with pytest.raises(StoreIntegrityError) as caught:
        fetched(archive)
    assert SOP not in str(caught.value)


@pytest.mark.parametrize("status", [400, 406, 415, 501])
def test_a_radiograph_that_an_archive_cannot_give_is_an_error_of_its_own(
    archive: SimpleNamespace, status: int
) -> None:
    archive.statuses = [status]
    with pytest.raises(StoreIntegrityError, match=str(status)):
        fetched(archive)


def test_an_answer_longer_than_any_x_ray_is_too_large(
    archive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MAX_FILE_BYTES", 1_000)
    archive.headers["Content-Type"], archive.body = TYPE + "cut", part() * 9
    with pytest.raises(RejectedImageError, match="too_large"):
        fetched(archive)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(archive: SimpleNamespace, status: int) -> None:
    elsewhere = archive.uri.replace("dicomweb", "http")
    archive.headers["Location"] = elsewhere
    for ask in (lambda: list(list_instances(archive.uri, QUICK)), lambda: fetched(archive)):
        archive.statuses, archive.asked = [status], []
        with pytest.raises(StoreAccessError, match=f"redirects .{status}.") as caught:
            ask()
        assert len(archive.asked) == 1
        assert elsewhere not in str(caught.value)
    with session_for().post(elsewhere, data=b"x", timeout=60, allow_redirects=True) as answer:
        assert answer.status_code == 501  # POST is not known to this server
