"""Ingest from a real PACS (Orthanc with its DICOMweb plug-in)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from chexradinet.config import StoreConfig
from chexradinet.dataset import open_dataset
from chexradinet.errors import ConfigError, StoreUnavailableError
from chexradinet.ingest.ingest import ingest
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom, dicom_config, sop_uid
from tests.integration.orthanc import running_orthanc, store

NOVEMBER = "?study_date=20231101-20231130"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


@pytest.fixture
def archive(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    wait_until_up: Callable[..., None],
) -> Iterator[SimpleNamespace]:
    """Return an archive with five radiographs of November and one of another month."""
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    url = f"http://127.0.0.1:{port}"
    with running_orthanc(folder, port) as process:
        wait_until_up(f"{url}/system", process)
        for number in range(5):
            store(url, xray(number))
        store(url, dicom(9, StudyDate="20240101", SeriesInstanceUID="1.2.3.9"))
        uri = f"dicomweb://127.0.0.1:{port}/dicom-web"

        def stop() -> None:
            process.kill()
            process.wait()

        yield SimpleNamespace(url=url, uri=uri, stop=stop)


def xray(number: int) -> bytes:
    """Return a radiograph of November; the last is a lateral."""
    view = "LL" if number == 4 else "PA"
    series = f"1.2.826.0.1.3680043.8.500.{number}"
    return dicom(number, StudyDate="20231119", SeriesInstanceUID=series, ViewPosition=view)


def test_radiographs_of_the_dates_are_those_of_a_folder_with_labels_beside(
    archive: SimpleNamespace, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    rows = [f"{sop_uid(number)},p{number},Mass" for number in range(4)]
    (labels / "labels.csv").write_text("\n".join(["file,patient,findings", *rows]))
    target = tmp_path / "dataset"
    # The format follows from the address.
    config = dicom_config(format="csv", num_workers=2)
    info = ingest(archive.uri + NOVEMBER, target, config, labels=str(labels))
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}").write_bytes(xray(number))
    ingest(str(folder), tmp_path / "other", dicom_config(), labels=str(labels))
    dataset, other = open_dataset(target), open_dataset(tmp_path / "other")
    assert info.counts == other.info.counts
    assert info.counts["rejected"] == {"not_frontal": 1}
    ids = other.manifest["image_id"].tolist()
    assert sorted(dataset.manifest["image_id"]) == sorted(ids)
    assert (dataset.images(dataset.row_of(ids)) == other.images(other.row_of(ids))).all()
    for path in target.rglob("*"):
        held = path.read_bytes()
        if path.suffix == ".parquet":
            held += repr(pq.read_table(path).to_pylist()).encode()
        for planted in (sop_uid(1)[:-1], "20231119", "2023-11-19", "202311", "MRN-"):
            assert planted.encode() not in held


def test_archive_without_labels_becomes_a_data_set_and_the_same_again(
    archive: SimpleNamespace, tmp_path: Path
) -> None:
    first = ingest(archive.uri + NOVEMBER, tmp_path / "one", dicom_config())
    second = ingest(archive.uri + NOVEMBER, tmp_path / "two", dicom_config())
    assert first.counts["images"] == 4
    assert first == second


def test_archive_that_stops_midway_fails_the_run_and_keeps_finished_shards(
    archive: SimpleNamespace, tmp_path: Path
) -> None:
    for number in range(20, 60):  # so that no worker has read all of it in time
        store(archive.url, xray(number))

    def stop(done: int, total: int) -> None:
        if done == 2:
            archive.stop()

    config = dicom_config(shard_size=1, store=StoreConfig(retry_total_s=0))
    with pytest.raises(StoreUnavailableError, match="does not answer") as told:
        ingest(archive.uri + NOVEMBER, tmp_path / "dataset", config, stop)
    assert sop_uid(1)[:-1] not in str(told.value)
    kept = len(list(tmp_path.glob(".dataset.resume-*/outcomes-*.json")))
    assert 2 <= kept < 44  # workers may have read further than was counted


def test_address_without_dates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="study_date"):
        ingest("dicomweb://127.0.0.1:9/dicom-web", tmp_path / "dataset", dicom_config())
