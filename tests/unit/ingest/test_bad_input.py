"""Bad input end to end: an error or a reason code each, and nothing lost."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chexradinet.dataset import Dataset, open_dataset
from chexradinet.dataset.deidentification import DeidentificationKey, coded
from chexradinet.errors import ChexRadiNetError, ConfigError, RejectedImageError, SourceError
from chexradinet.ingest import MAX_FILE_BYTES, Folder
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import WORK_VARIABLE, ingest_to
from tests.ingest_world import KEY_VARIABLE, SECRET, chest, dicom, dicom_config

KEY = DeidentificationKey(secret=SECRET.encode())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with one good X-ray."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "good.dcm").write_bytes(dicom(1))
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that ingests the source."""

    def ingested(**settings: object) -> Dataset:
        ingest(str(source), tmp_path / "dataset", dicom_config(max_reject_fraction=1, **settings))
        return open_dataset(tmp_path / "dataset")

    return ingested


def rejected(dataset: Dataset, names: list[str]) -> dict[str, str]:
    """Return the reason of each named file."""
    table = dict(zip(dataset.rejected["source_uri"], dataset.rejected["reason"], strict=True))
    return {name: table[coded(KEY, "file", name)] for name in names}


def without_pixels(content: bytes) -> bytes:
    return content[: content.index(b"\xe0\x7f\x10\x00")]


def cut_inside(content: bytes, value: bytes) -> bytes:
    return content[: content.index(value) + 2]


def test_damaged_files_among_good_ones_get_reasons_and_cost_nobody_else(
    source: Path, run: Callable[..., Dataset]
) -> None:
    files = {
        "bomb": (dicom(2, Rows=60000, Columns=60000), "implausible"),
        "bomb of frames": (dicom(3, NumberOfFrames="100000000"), "multi_frame"),
        "no rows": (dicom(4, Rows=0), "implausible"),
        "without pixels": (without_pixels(dicom(5)), "not_an_image"),
        "cut in its header": (cut_inside(dicom(6), b"CHEST"), "truncated"),
        "cut in its pixels": (dicom(7)[:-100], "truncated"),
        "too few bytes": (dicom(8, Rows=128), "implausible"),
        "empty": (b"", "truncated"),
        "zeros": (bytes(5000), "not_an_image"),
    }
    for name, (content, _) in files.items():
        (source / name).write_bytes(content)
    dataset = run()
    assert rejected(dataset, list(files)) == {name: reason for name, (_, reason) in files.items()}
    assert len(dataset) == 1


def test_names_in_any_script_are_read(source: Path, run: Callable[..., Dataset]) -> None:
    folder = source / "Röntgen Thorax 胸部 " / "a'b\"c%20d"
    folder.mkdir(parents=True)
    header = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎", "PatientID": "Ü-1"}
    (folder / "صورة 1.dcm").write_bytes(dicom(2, **header))
    (source / os.fsdecode(b"not utf-8 \xff.dcm")).write_bytes(dicom(3))
    dataset = run()
    assert len(dataset) == 3
    assert coded(KEY, "patient", "Ü-1") in dataset.manifest["patient_id"].tolist()


def test_name_that_is_no_unicode_is_escaped_where_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.delenv(KEY_VARIABLE)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(chest(1)).save(folder / "a.png")
    Image.fromarray(chest(2)).save(folder / os.fsdecode(b"\xff.png"))
    (folder / "labels.csv").write_text("file,patient,findings\na.png,p,Mass\n")
    ingest(str(folder), tmp_path / "dataset", dicom_config(format="csv"))
    found = open_dataset(tmp_path / "dataset").rejected["source_uri"].tolist()
    assert found == ["\\xff.png"]


def test_links_pipes_and_folders_named_like_files(
    source: Path, run: Callable[..., Dataset], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "2").write_bytes(dicom(2))
    (source / "linked").symlink_to(elsewhere)
    (source / "link.dcm").symlink_to(elsewhere / "2")
    (source / "cycle").symlink_to(source)
    (source / "nowhere.dcm").symlink_to(tmp_path / "nowhere")
    (source / "loop.dcm").symlink_to("loop.dcm")
    os.mkfifo(source / "pipe.dcm")
    (source / "folder.dcm").mkdir()
    (source / "folder.dcm" / "3").write_bytes(dicom(3))
    dataset = run()
    assert len(dataset) == 3
    assert rejected(dataset, ["linked/2", "loop.dcm", "nowhere.dcm", "pipe.dcm"]) == {
        "linked/2": "duplicate",
        "loop.dcm": "unreadable",
        "nowhere.dcm": "missing",
        "pipe.dcm": "unreadable",
    }


def test_file_too_large_to_be_an_xray_is_not_read(
    source: Path, run: Callable[..., Dataset]
) -> None:
    with (source / "huge.dcm").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    assert rejected(run(), ["huge.dcm"]) == {"huge.dcm": "too_large"}


def test_file_that_may_not_be_read_is_a_rejection(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RejectedImageError, match="unreadable: Permission denied"):
        Folder(source).read("good.dcm")


@pytest.mark.parametrize(
    ("address", "kind", "told"),
    [
        ("{source}/good.dcm", SourceError, "is a file; give the folder"),
        ("{source}/nowhere", SourceError, "does not exist"),
        ("file://{source}/nowhere", SourceError, "does not exist"),
        ("ftp://host/x", ConfigError, "scheme 'ftp'"),
        ("s3://UPPER/x", ConfigError, "names bucket 'UPPER'"),
        ("", ConfigError, "empty"),
    ],
)
def test_address_that_is_no_source_is_told(
    source: Path, tmp_path: Path, address: str, kind: type[ChexRadiNetError], told: str
) -> None:
    with pytest.raises(kind, match=told):
        ingest(address.format(source=source), tmp_path / "dataset", dicom_config())


def test_work_folder_of_somebody_else_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / "work"))
    planted = tmp_path / "planted"
    planted.mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / f"chexradinet-{os.getuid()}").symlink_to(planted)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        ingest_to(str(source), "s3://bucket/data", dicom_config())


def test_pixels_are_those_that_were_drawn(source: Path, run: Callable[..., Dataset]) -> None:
    dataset = run()
    drawn = chest(1).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(dataset.images(np.array([0]))[0].astype(float) - drawn).max() <= 1
