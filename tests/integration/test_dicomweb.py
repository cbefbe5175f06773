"""A real PACS (Orthanc with its DICOMweb plug-in) as a source of X-rays."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from chexradinet.config import StoreConfig
from chexradinet.dicom import web as dicomweb
from chexradinet.dicom.web import fetch, list_instances
from chexradinet.errors import (
    StoreNotFoundError,
    StoreUnavailableError,
)
from tests.integration.orthanc import running_orthanc, store

AT_ONCE = StoreConfig(retry_total_s=0)
JANUARY = "?study_date=20260101-20260131"


@pytest.fixture(scope="module")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    wait_until_up: Callable[..., None],
) -> Iterator[SimpleNamespace]:
    """Return an archive with seven X-rays, three of them radiographs of January 2026."""
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    url = f"http://127.0.0.1:{port}"
    with running_orthanc(folder, port) as process:
        wait_until_up(f"{url}/system", process)
        uri = f"dicomweb://127.0.0.1:{port}/dicom-web"
        yield SimpleNamespace(url=url, uri=uri, files=fill(url))


def fill(url: str) -> dict[str, bytes]:
    """Store X-rays and return the radiographs of January by SOP Instance UID."""
    study = generate_uid()
    wanted = [radiograph("20260101", "CR"), radiograph("20260115", "DX", study)]
    wanted.append(radiograph("20260115", "DX", study))
    wanted += [radiograph("20260116", "DR"), radiograph("20260117", "RG")]
    others = [
        radiograph("20260115", "CT", study),
        radiograph("20260115", "CT"),
        radiograph("20251231", "CR"),
        radiograph("20260201", "DX"),
    ]
    files = {}
    for dataset in [*wanted, *others]:
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        store(url, buffer.getvalue())
        if dataset in wanted:
            files[str(dataset.SOPInstanceUID)] = buffer.getvalue()
    return files


def radiograph(study_date: str, modality: str, study: str | None = None) -> FileDataset:
    """Return a small X-ray; its pixels end in bytes that look like the end of a line."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = study or generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID, dataset.PatientName = "planted-patient", "Planted^Name"
    dataset.StudyDate, dataset.Modality = study_date, modality
    dataset.Rows, dataset.Columns = 2, 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = bytes(12) + b"\r\n\r\n"
    return dataset


def test_day_without_studies_lists_nothing(orthanc: SimpleNamespace) -> None:
    assert list(list_instances(f"{orthanc.uri}?study_date=19000101")) == []


def test_radiographs_of_the_dates_are_listed_once_and_fetched_as_stored(
    orthanc: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page_size in (dicomweb.PAGE_SIZE, 1):
        monkeypatch.setattr(dicomweb, "PAGE_SIZE", page_size)
        refs = list(list_instances(orthanc.uri + JANUARY))
        assert len(refs) == 5
        assert {ref.sop_uid: fetch(ref.uri) for ref in refs} == orthanc.files
        assert sorted(ref.modality for ref in refs) == ["CR", "DR", "DX", "DX", "RG"]


def test_compressed_radiograph_comes_in_its_own_transfer_syntax(
    orthanc: SimpleNamespace, shared_data: Path
) -> None:
    original = (shared_data / "radiographs" / "dicom" / "RG1_J2KI.dcm").read_bytes()
    store(orthanc.url, original)
    (ref,) = list_instances(f"{orthanc.uri}?study_date=20040826")
    assert fetch(ref.uri) == original
    syntax = pydicom.dcmread(io.BytesIO(fetch(ref.uri))).file_meta.TransferSyntaxUID
    assert syntax == "1.2.840.10008.1.2.4.91"


def test_radiograph_that_is_gone_is_told(orthanc: SimpleNamespace) -> None:
    ref = next(list_instances(orthanc.uri + JANUARY))
    with pytest.raises(StoreNotFoundError) as caught:
        fetch(ref.uri.replace(ref.sop_uid, "1.2.3"), AT_ONCE)
    assert ref.study_uid not in str(caught.value)


def test_wrong_path_and_closed_port_are_told(
    orthanc: SimpleNamespace, free_port: Callable[[], int]
) -> None:
    with pytest.raises(StoreNotFoundError, match="path"):
        list(list_instances(f"{orthanc.uri}-not{JANUARY}", AT_ONCE))
    with pytest.raises(StoreUnavailableError, match="network"):
        list(list_instances(f"dicomweb://127.0.0.1:{free_port()}/x{JANUARY}", AT_ONCE))


def test_tls_to_a_plain_port_is_told(orthanc: SimpleNamespace) -> None:
    uri = orthanc.uri.replace("dicomweb://", "dicomweb+https://")
    with pytest.raises(StoreUnavailableError, match="DICOMWEB_CA_BUNDLE"):
        list(list_instances(uri + JANUARY, StoreConfig(retry_total_s=30)))


def test_nothing_of_a_patient_is_logged(
    orthanc: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refs = list(list_instances(orthanc.uri + JANUARY))
    fetch(refs[0].uri)
    assert not [ref for ref in refs if ref.sop_uid in caplog.text or ref.study_uid in caplog.text]
    assert "lanted" not in caplog.text
