"""DICOM folders: with and without a table, every reason code, duplicates, windows, the report."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import DicomConfig, PreprocessingConfig, QualityConfig
from chexradinet.dataset import Dataset, open_dataset, read_doubtful, read_headers
from chexradinet.dataset.deidentification import DeidentificationKey, coded
from chexradinet.errors import ConfigError, TooManyRejectsError
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import report_ingest
from chexradinet.records import RejectReason
from tests.ingest_world import (
    KEY_VARIABLE,
    SECRET,
    chest,
    dicom,
    dicom_config,
    sop_uid,
    write_dicom,
)

KEY = DeidentificationKey(secret=SECRET.encode())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that ingests the source with these settings."""

    def ingested(**settings: object) -> Dataset:
        ingest(str(source), tmp_path / "dataset", dicom_config(**settings))
        return open_dataset(tmp_path / "dataset")

    return ingested


def reasons(dataset: Dataset) -> dict[str, str]:
    """Return the reason by the code of the file's name."""
    return dict(zip(dataset.rejected["source_uri"], dataset.rejected["reason"], strict=True))


def code(name: str) -> str:
    return coded(KEY, "file", name)


def test_missing_key_is_named(
    source: Path, run: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(source, 2)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} is not set"):
        run()


def test_missing_key_is_named_also_where_only_a_suffix_tells_dicom(
    source: Path, run: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(source, 1)
    (source / "labels.csv").write_text("file,patient,findings\nxray-0000.dcm,p,Mass\n")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        run(format="csv")


def test_folder_without_table_becomes_a_data_set_without_labels(
    source: Path, run: Callable[..., Dataset]
) -> None:
    write_dicom(source, 10)
    dataset = run(findings=("Mass",), test_fraction=0.2, validation_fraction=0.2)
    assert dataset.info.findings == ("Mass",)
    assert np.isnan(dataset.labels).all()
    assert dataset.info.counts["splits"] == {"train": 6, "validation": 2, "test": 2}
    assert dataset.manifest["patient_id"][3] == coded(KEY, "patient", "MRN-0003")
    assert dataset.manifest["image_id"][3] == coded(KEY, "image", sop_uid(3))
    assert dataset.info.deidentified


def test_files_without_suffix_or_named_by_uid_are_read_and_an_index_is_not(
    source: Path, run: Callable[..., Dataset]
) -> None:
    (source / "IM00001").write_bytes(dicom(1))
    (source / sop_uid(2)).write_bytes(dicom(2))
    (source / "3.IMA").write_bytes(dicom(3))
    (source / "DICOMDIR").write_bytes(b"index")
    (source / "notes.txt").write_text("not an X-ray")
    (source / "README").write_text("not an X-ray, but named like one")
    dataset = run()
    assert len(dataset) == 3
    assert reasons(dataset) == {code("README"): "not_an_image"}


def test_files_with_any_suffix_are_read_or_get_a_reason(
    source: Path, run: Callable[..., Dataset]
) -> None:
    names = ["chest.v2", "CR.1.2.840.77_PA", "x.dc3", "y.img", "z.dcm30", "IM1.PACS"]
    for number, name in enumerate(names):
        (source / name).write_bytes(dicom(number))
    (source / "packed.dcm.gz").write_bytes(gzip.compress(dicom(20)))
    for name in ("dicomdir", "Thumbs.db", "list.tsv", "list.TXT.gz", "manual.PDF"):
        (source / name).write_bytes(b"no X-ray")
    dataset = run()
    assert len(dataset) == len(names)
    assert reasons(dataset) == {code("packed.dcm.gz"): "not_an_image"}


def test_duplicate_of_an_xray_that_its_uid_labels_is_a_duplicate(
    source: Path, run: Callable[..., Dataset]
) -> None:
    for name in ("a", "b"):
        (source / name).write_bytes(dicom(1))
    (source / "c").write_bytes(dicom(2, chest(1)))
    (source / "d").write_bytes(dicom(3))
    rows = [f"{sop_uid(number)},p{number},Mass" for number in (1, 2)]
    (source / "labels.csv").write_text("\n".join(["file,patient,findings", *rows]))
    dataset = run(max_reject_fraction=1)
    assert len(dataset) == 1
    assert reasons(dataset) == {
        code("b"): "duplicate",
        code("c"): "duplicate",
        code("d"): "not_labelled",
    }


def test_age_in_the_table_counts_like_one_in_the_header(
    source: Path, run: Callable[..., Dataset]
) -> None:
    for number, age in enumerate((None, "050Y", None)):
        (source / f"{number}").write_bytes(dicom(number, PatientAge=age))
    rows = ["0,p0,Mass,9", "1,p1,Mass,9", "2,p2,Mass,18"]
    (source / "labels.csv").write_text("\n".join(["file,patient,findings,age", *rows]))
    dataset = run(max_reject_fraction=1)
    assert reasons(dataset) == {code("0"): "under_age", code("1"): "under_age"}
    assert len(run(quality=QualityConfig(min_age_years=0))) == 3


def test_rows_name_files_by_name_or_by_sop_instance_uid(
    source: Path, run: Callable[..., Dataset]
) -> None:
    for number in range(4):
        (source / f"{number}").write_bytes(dicom(number))
    rows = ["0,p0,Mass,train", f"{sop_uid(1)},p1,Nodule,test", f"{sop_uid(2)},p2,No Finding,train"]
    rows += [f"{sop_uid(99)},p3,Mass,train"]
    (source / "labels.csv").write_text("\n".join(["file,patient,findings,split", *rows]))
    dataset = run()
    assert dataset.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert dataset.manifest["split"].tolist()[1] == "test"
    assert dataset.manifest["patient_id"][1] == coded(KEY, "patient", "p1")
    assert dataset.manifest["study_id"][1] == coded(KEY, "study", "1.2.826.0.1.3680043.8.499.1")
    assert reasons(dataset) == {code("3"): "not_labelled", code(sop_uid(99)): "missing"}


PIXELS = b"\xe0\x7f\x10\x00"


def test_every_reason_code_reaches_the_rejections(
    source: Path, run: Callable[..., Dataset]
) -> None:
    good = dicom(1)
    files = {
        "unreadable": dicom(2).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"),
        "truncated": good[:-500],
        "not_an_image": b"text " * 100,
        "wrong_modality": dicom(3, Modality="CT"),
        "not_frontal": dicom(4, ViewPosition="LL"),
        "not_chest": dicom(5, BodyPartExamined="HAND"),
        "multi_frame": dicom(6, NumberOfFrames="2"),
        "too_small": dicom(7, chest(7, side=20)),
        "too_large": dicom(14).replace(PIXELS, b"\xdf\x7f\x10\x00CS\0\0" * 60_000 + PIXELS),
        "constant": dicom(8, np.full((64, 64), 7, np.uint8)),
        "under_age": dicom(10, PatientAge="009Y"),
        "inverted": dicom(11, 255 - chest(11)),
        "burned_in": dicom(12, BurnedInAnnotation="YES"),
        "implausible": dicom(13, Rows=65535, Columns=65535),
    }
    (source / "a-good").write_bytes(good)
    (source / "duplicate").write_bytes(dicom(20, chest(1)))
    (source / "duplicate-uid").write_bytes(dicom(1, chest(21)))
    for name, content in files.items():
        (source / name).write_bytes(content)
    (source / "missing").symlink_to(source / "nowhere")
    dataset = run(max_reject_fraction=1)
    expected = {code(name): name for name in [*files, "missing", "duplicate"]}
    assert reasons(dataset) == expected | {code("duplicate-uid"): "duplicate"}
    # In tests of their own.
    elsewhere = {"not_labelled", "ambiguous", "too_slow", "too_large", "not_finite", "unavailable"}
    assert set(dataset.info.counts["rejected"]) | elsewhere == set(RejectReason)
    assert len(dataset) == 1


def test_wrong_source_fails_with_counts(source: Path, run: Callable[..., Dataset]) -> None:
    write_dicom(source, 2)
    for number in range(5, 9):
        (source / f"{number}").write_bytes(dicom(number, Modality="CT"))
    with pytest.raises(TooManyRejectsError, match=r"4 of 6 X-rays.*wrong_modality 4"):
        run()
    assert len(run(max_reject_fraction=0.7)) == 2


def test_limits_and_windows_are_recorded_and_a_window_changes_the_preprocessing_digest(
    source: Path, run: Callable[..., Dataset]
) -> None:
    for number in range(3):
        windows = {"WindowCenter": [128, 60], "WindowWidth": [256, 120]}
        (source / f"{number}").write_bytes(dicom(number, **windows))
    first = run(quality=QualityConfig(min_age_years=40))
    second_window = PreprocessingConfig(image_side=32, dicom=DicomConfig(voi_index=1))
    second = run(preprocessing=second_window)
    assert first.info.quality == QualityConfig(min_age_years=40)
    assert first.info.preprocessing_digest == PreprocessingConfig(image_side=32).digest()
    assert second.info.preprocessing == second_window
    assert second.info.preprocessing_digest != first.info.preprocessing_digest
    headers = read_headers(second.path)
    assert headers is not None
    assert headers["window"].tolist() == ["window 2 of 2: LINEAR, centre 60, width 120"] * 3


def test_report_counts_reasons_and_shows_the_doubtful_ones(
    source: Path, run: Callable[..., Dataset], tmp_path: Path
) -> None:
    write_dicom(source, 3)
    (source / "x1").write_bytes(dicom(31, 255 - chest(31)))
    (source / "x2").write_bytes(dicom(32, ViewPosition="LL"))
    (source / "x3").write_bytes(dicom(33, ViewPosition="LL", BurnedInAnnotation="YES"))
    (source / "x4").write_bytes(dicom(34, ViewPosition=None))
    dataset = run(max_reject_fraction=1)
    shown = read_doubtful(dataset.path)
    assert [(name, reason) for name, reason, _ in shown] == [
        (code("x1"), "inverted"),
        (code("x2"), "not_frontal"),
    ]
    assert all(picture.shape == (200, 200) and picture.std() > 20 for _, _, picture in shown)
    report_ingest(dataset.path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    captions = re.findall(r"<figcaption>([^,]*), image", text)
    assert captions == ["rejected: inverted", "rejected: not_frontal", "kept: view_unknown"]
    assert ">2</td>" in text  # not frontal twice


def test_png_data_sets_keep_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chexradinet.phantom import write_phantom

    monkeypatch.delenv(KEY_VARIABLE)
    write_phantom(tmp_path / "phantom", 3, 64, seed=1)
    config = dicom_config(format="csv")
    info = ingest(str(tmp_path / "phantom"), tmp_path / "dataset", config)
    assert set(info.files) == {"manifest.parquet", "rejected.parquet", "images-00000.npy"}
    assert set(info.as_document()["preprocessing"]) == {"image_side", "geometry"}
    assert not {"quality", "deidentified"} & set(info.as_document())
