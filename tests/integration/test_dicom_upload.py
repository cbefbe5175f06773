"""DICOM results in a real archive (Orthanc over TLS), and an archive that fails in known ways."""

import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from chexradinet.config import StoreConfig
from chexradinet.dicom.web import session_for
from chexradinet.dicom_results import (
    DicomResults,
    ScoredCase,
    ScoredFinding,
    ScoringModel,
)
from chexradinet.dicom_results.results import write_dicom_results
from chexradinet.dicom_results.upload import UploadOutcome, upload_instance, upload_results
from chexradinet.errors import (
    ConfigError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
)
from chexradinet.records import Box, Geometry
from tests.serving import serving

NAMES = ("DICOMWEB_TOKEN", "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_CA_BUNDLE")
QUICK = StoreConfig(retry_total_s=0.5)
AT_ONCE = StoreConfig(retry_total_s=0)
STUDY_UID, SOURCE_UID = "1.2.840.77.1", "1.2.840.77.3"


@pytest.fixture(scope="module")
def results() -> DicomResults:
    """Return the results of one X-ray."""
    header = Dataset()
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    header.SOPInstanceUID = SOURCE_UID
    header.SeriesInstanceUID = "1.2.840.77.2"
    header.StudyInstanceUID = STUDY_UID
    header.PatientID, header.PatientName = "planted-patient", "Müller^Planted"
    header.StudyDate = "20260101"
    finding = ScoredFinding(
        name="Effusion",
        probability=0.75,
        threshold=0.5,
        flagged=True,
        calibrated=True,
        region=Box(10, 10, 30, 40),
    )
    case = ScoredCase(
        pixels=np.full((64, 64), 90, dtype=np.uint8),
        geometry=Geometry(original_height=64, original_width=64, row_scale=1, column_scale=1),
        model_side_px=64,
        heatmap=np.eye(4, dtype=np.float32),
        heatmap_finding="Effusion",
        findings=(finding,),
        model=ScoringModel(
            bundle_digest="ab" * 32,
            preprocessing_digest="cd" * 32,
            round=1,
            software_version="0.1.0",
        ),
        content_at=datetime(2026, 1, 2),
    )
    return write_dicom_results(header, case)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test without credentials."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(results: DicomResults, tmp_path: Path) -> Path:
    """Return a folder of results as scoring leaves it, with a file that is none."""
    path = tmp_path / "dicom" / "date=2026-01-02"
    path.mkdir(parents=True)
    (path / f"{results.structured_report_uid}.dcm").write_bytes(results.structured_report)
    (path / f"{results.secondary_capture_uid}.dcm").write_bytes(results.secondary_capture)
    (path / "note.txt").write_text("no DICOM")
    return path


def archived(archive: SimpleNamespace) -> list[Dataset]:
    """Return what an archive has of the study."""
    client = DICOMwebClient(archive.url, session=session_for())
    as_stored = (("application/dicom", "*"),)
    return list(client.retrieve_study(STUDY_UID, media_types=as_stored))


def test_results_arrive_over_tls_and_a_second_upload_changes_nothing(
    trusted: SimpleNamespace, results: DicomResults, folder: Path
) -> None:
    first = upload_results(str(folder), trusted.uri, AT_ONCE)
    assert first.stored == 2
    again = upload_results(str(folder), trusted.uri, AT_ONCE)
    assert again.stored + again.already_there == 2
    found = {str(dataset.SOPInstanceUID): dataset for dataset in archived(trusted)}
    assert set(found) == {results.structured_report_uid, results.secondary_capture_uid}
    for uid, sent in (
        (results.structured_report_uid, results.structured_report),
        (results.secondary_capture_uid, results.secondary_capture),
    ):
        expected = pydicom.dcmread(io.BytesIO(sent))
        if "PixelData" in expected:  # the archive gives it in another transfer syntax
            assert np.array_equal(found[uid].pixel_array, expected.pixel_array)
            del found[uid].PixelData, expected.PixelData
        assert found[uid] == expected
        assert str(found[uid].PatientName) == "Müller^Planted"


def test_wrong_password_is_an_access_error(
    trusted: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMWEB_PASSWORD", "planted-secret")
    with pytest.raises(StoreAccessError, match="401") as raised:
        upload_results(str(folder), trusted.uri, AT_ONCE)
    assert "planted-secret" not in str(raised.value)


def test_unknown_authority_is_refused(
    trusted: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DICOMWEB_CA_BUNDLE")
    with pytest.raises(StoreUnavailableError, match="DICOMWEB_CA_BUNDLE"):
        upload_results(str(folder), trusted.uri, AT_ONCE)


def test_file_that_is_no_dicom_is_refused(trusted: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match="cannot store a DICOM result"):
        upload_instance(b"no DICOM", trusted.uri, AT_ONCE)


def answered(failure: int | None = None, uid: str = "") -> bytes:
    """Return a STOW-RS answer in JSON: stored, or failed with a reason; the UID is filled in."""
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid or "SENT"]}}
    if failure is None:
        return json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode()
    item["00081197"] = {"vr": "US", "Value": [failure]}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def sent_uid(body: bytes) -> bytes:
    """Return the SOP Instance UID of the file in a request."""
    content = body.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]
    return str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID).encode()


def in_xml(sequence: str, reason: str = "") -> bytes:
    """Return an answer in XML; the UID is filled in."""
    values = f'<DicomAttribute tag="00081197"><Value number="1">{reason}</Value></DicomAttribute>'
    return (
        '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
        f'<DicomAttribute tag="{sequence}" vr="SQ"><Item number="1"><DicomAttribute tag="00081155">'
        f'<Value number="1">SENT</Value></DicomAttribute>{values if reason else ""}</Item>'
        "</DicomAttribute></NativeDicomModel>"
    ).encode()


@pytest.fixture
def content(results: DicomResults) -> bytes:
    """Return a file to send."""
    return results.structured_report


@pytest.fixture
def archive() -> Iterator[SimpleNamespace]:
    """Return a server that gives the `answers` in turn, the last one again, and keeps requests."""
    state = SimpleNamespace(answers=[(200, answered())], asked=[], elsewhere="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.asked.append((self.path, self.headers["Content-Type"], body))
            status, answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            answer = answer.replace(b"SENT", sent_uid(body))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", state.elsewhere)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        state.uri = f"dicomweb://127.0.0.1:{server.server_port}/x"
        yield state


def test_empty_folder_sends_nothing(archive: SimpleNamespace, tmp_path: Path) -> None:
    assert upload_results(str(tmp_path), archive.uri, AT_ONCE) == UploadOutcome()
    assert archive.asked == []


def test_address_that_is_no_archive_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="scheme 'ftp'"):
        upload_instance(b"x", "ftp://archive/path", AT_ONCE)


def test_file_is_sent_as_it_is_in_one_part(archive: SimpleNamespace, content: bytes) -> None:
    assert upload_instance(content, archive.uri, AT_ONCE) == UploadOutcome(stored=1)
    ((path, kind, body),) = archive.asked
    assert path == "/x/studies"
    boundary = re.fullmatch(
        r'multipart/related; type="application/dicom"; boundary=([0-9a-f]{32})', kind
    )
    assert boundary is not None
    head = f"--{boundary[1]}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    assert body == head + content + f"\r\n--{boundary[1]}--\r\n".encode()


@pytest.mark.parametrize("status", [200, 202, 409])
def test_instance_that_the_archive_has_is_no_error(
    archive: SimpleNamespace, content: bytes, status: int
) -> None:
    archive.answers = [(status, answered(0x0111))]
    assert upload_instance(content, archive.uri, AT_ONCE) == UploadOutcome(already_there=1)


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (409, answered(0xA700), StoreFullError),
        (507, b"", StoreFullError),
        (202, answered(0x0124), StoreAccessError),
        (401, b"", StoreAccessError),
        (403, b"", StoreAccessError),
        (404, b"", StoreError),
        (409, answered(0xC122), StoreRefusedError),
        (413, b"", StoreError),
        (503, b"", StoreUnavailableError),
        (202, b"", StoreIntegrityError),
        (409, b"<html>", StoreIntegrityError),
        (409, b'{"00081198": {"Value": [{}]}}', StoreRefusedError),
        (200, b'{"00081198": {"Value": [{"00081155": {"Value": ["SENT"]}}]}}', StoreRefusedError),
        (200, b'{"00081198": {"Value": [{"00081197": {}}]}}', StoreRefusedError),
        (200, in_xml("00081198", "272"), StoreRefusedError),
        (409, in_xml("00081198", "272"), StoreRefusedError),
        (302, b"", StoreAccessError),
        (307, b"", StoreAccessError),
        (200, b"<!DOCTYPE html><html>Sign in</html>", StoreIntegrityError),
        (200, b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', StoreIntegrityError),
        (200, b"", StoreIntegrityError),
        (200, b"<xml/>", StoreIntegrityError),
        (200, b"null", StoreIntegrityError),
        (200, b"[]", StoreIntegrityError),
        (200, b'"stored"', StoreIntegrityError),
        (200, b"{}", StoreIntegrityError),
        (200, b'{"00081199": {"Value": [{}]}}', StoreIntegrityError),
        (200, b'{"00081199": {"Value": "SENT"}}', StoreIntegrityError),
        (200, answered(uid="1.2.3"), StoreIntegrityError),
        (202, answered(0x0110, uid="1.2.3"), StoreIntegrityError),
    ],
)
def test_refusals_become_errors_of_the_store_without_patient_data(
    archive: SimpleNamespace,
    content: bytes,
    status: int,
    answer: bytes,
    error: type[StoreError],
) -> None:
    archive.answers = [(status, answer)]
    with pytest.raises(error, match="cannot store a DICOM result at 127") as raised:
        upload_instance(content, archive.uri, AT_ONCE)
    assert type(raised.value) is error or error is StoreError
    assert "planted" not in str(raised.value)


def test_answers_in_xml_are_read_as_those_in_json(archive: SimpleNamespace, content: bytes) -> None:
    archive.answers = [(409, in_xml("00081198", "273"))]
    assert upload_instance(content, archive.uri, AT_ONCE) == UploadOutcome(already_there=1)
    archive.answers = [(200, in_xml("00081199"))]
    assert upload_instance(content, archive.uri, AT_ONCE) == UploadOutcome(stored=1)


def test_an_answer_in_a_list_and_with_other_instances_is_read(
    archive: SimpleNamespace, content: bytes
) -> None:
    document = json.loads(answered())
    document["00081198"] = json.loads(answered(0x0110, uid="1.2.3"))["00081198"]
    archive.answers = [(202, json.dumps([document]).encode())]
    assert upload_instance(content, archive.uri, AT_ONCE) == UploadOutcome(stored=1)


def test_a_redirect_is_not_followed_so_no_other_host_gets_the_results(
    archive: SimpleNamespace, content: bytes
) -> None:
    archive.answers, archive.elsewhere = [(302, b""), (200, answered())], "/login"
    with pytest.raises(StoreAccessError, match=r"302.*login"):
        upload_instance(content, archive.uri, AT_ONCE)
    assert len(archive.asked) == 1


def test_overloaded_archive_is_asked_again_and_named_in_the_log(
    archive: SimpleNamespace, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    archive.answers = [(503, b""), (500, b""), (200, answered())]
    patient = StoreConfig(retry_total_s=30)
    assert upload_instance(content, archive.uri, patient) == UploadOutcome(stored=1)
    assert [body for _, _, body in archive.asked].count(archive.asked[0][2]) == 1
    assert len(archive.asked) == 3
    assert caplog.text.count("127.0.0.1") == 2


def test_absent_archive_is_unavailable(free_port: Callable[[], int], content: bytes) -> None:
    with pytest.raises(StoreUnavailableError, match="no answer"):
        upload_instance(content, f"dicomweb://127.0.0.1:{free_port()}/x", QUICK)


def test_one_refused_result_does_not_hold_up_the_others(
    archive: SimpleNamespace, folder: Path
) -> None:
    archive.answers = [(409, answered(0xC122)), (200, answered())]
    outcome = upload_results(str(folder), archive.uri, AT_ONCE)
    assert (outcome.stored, outcome.refused, len(archive.asked)) == (1, 1, 2)
    with pytest.raises(StoreRefusedError, match=r"^1 of 2 DICOM results were refused.*C122H"):
        outcome.require_all()


def test_a_folder_that_is_not_there_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="give a night's folder"):
        upload_results(str(tmp_path / "nowhere"), "dicomweb://127.0.0.1:1/dicom-web")
