"""No output of ingest holds what names a patient: every file's bytes, the report, logs, errors."""

import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chexradinet.errors import ChexRadiNetError, LabelTableError, SourceError
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import ingest_to
from tests.ingest_world import KEY_VARIABLE, SECRET, chest, dicom, dicom_config, sop_uid

NAME, MRN, ACCESSION = "ZIEGENHAGEN^THEOPHIL", "MRN7719302", "ACC5520199"
BIRTH, STUDY_DAY = "19410307", "20231119"
STUDY, SERIES = "1.2.826.0.1.3680043.8.777.1", "1.2.826.0.1.3680043.8.777.2"
PLANTED = (
    *("ZIEGENHAGEN", "Ziegenhagen", "ziegenhagen", "THEOPHIL", "7719302", "5520199"),
    *(BIRTH, "1941-03-07", STUDY_DAY, "2023-11-19", STUDY, SERIES, sop_uid(1)[:-1]),
    *("St. Elsewhere", "Quackenbush", "ward 7", "093Y"),
)
IDENTIFYING = {
    "PatientName": NAME,
    "PatientID": MRN,
    "AccessionNumber": ACCESSION,
    "PatientBirthDate": BIRTH,
    "StudyDate": STUDY_DAY,
    "AcquisitionDate": STUDY_DAY,
    "StudyInstanceUID": STUDY,
    "SeriesInstanceUID": SERIES,
    "InstitutionName": "St. Elsewhere",
    "ReferringPhysicianName": "Quackenbush",
    "StudyDescription": "Ziegenhagen, ward 7",
    "PatientComments": "Ziegenhagen",
    "PatientAge": "093Y",
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder whose path, file names, headers and table name one patient."""
    folder = tmp_path / "inbox"
    images = folder / NAME / STUDY_DAY
    images.mkdir(parents=True)
    for number in range(4):
        (images / f"{MRN}_{number}.dcm").write_bytes(dicom(number, **IDENTIFYING))
    (images / f"{NAME}-lateral.dcm").write_bytes(dicom(10, ViewPosition="LL", **IDENTIFYING))
    (images / f"{NAME}-hand.dcm").write_bytes(dicom(11, BodyPartExamined=NAME, **IDENTIFYING))
    (images / f"{NAME}-odd.dcm").write_bytes(dicom(12, Modality=MRN, **IDENTIFYING))
    (images / f"{NAME}-cut.dcm").write_bytes(dicom(13, **IDENTIFYING)[:-900])
    (images / f"{NAME}-inverted.dcm").write_bytes(dicom(14, 255 - chest(14), **IDENTIFYING))
    rows = [f"{NAME}/{STUDY_DAY}/{MRN}_{n}.dcm,{MRN},Mass,{ACCESSION},93" for n in range(3)]
    rows += [f"{sop_uid(3)},{MRN},Nodule,,", f"{NAME}/gone.dcm,{MRN},Mass,{ACCESSION},"]
    rows += [f"{number},{MRN},Mass,," for number in (sop_uid(10), sop_uid(14))]
    (folder / "labels.csv").write_text(
        "\n".join(["file,patient,findings,study,age", *rows]), encoding="utf-8"
    )
    return folder


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of all files, Parquet files decompressed as well."""
    for path in folder.rglob("*"):
        yield path.name, path.name.encode()
        if path.is_file():
            yield path.name, path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield path.name, repr([table.schema.metadata, table.to_pylist()]).encode()


def found_in(text: bytes) -> list[str]:
    return [planted for planted in PLANTED if planted.encode() in text]


def test_planted_identifiers_are_in_the_source(source: Path) -> None:
    everything = b"".join(content for _, content in contents(source))
    assert set(found_in(everything)) >= set(PLANTED) - {"ziegenhagen", "1941-03-07", "2023-11-19"}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_output_holds_a_planted_identifier(
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    num_workers: int,
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    config = dicom_config(max_reject_fraction=1, num_workers=num_workers)
    info = ingest_to(str(source), str(out / "data"), config, report=str(out / "report.html"))
    assert info.counts["images"] == 4
    assert sum(info.counts["rejected"].values()) == 6
    leaks = {name: found_in(content) for name, content in contents(out)}
    assert {name: found for name, found in leaks.items() if found} == {}
    assert found_in(caplog.text.encode()) == []
    assert found_in("".join(capfd.readouterr()).encode()) == []


def test_what_an_interrupted_run_leaves_holds_no_identifier(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    config = dicom_config(max_reject_fraction=1, shard_size=1)
    with pytest.raises(KeyboardInterrupt):
        ingest(str(source), out / "data", config, stop)
    left = dict(contents(out))
    assert any(name.startswith("outcomes-") for name in left)
    assert {name: found_in(content) for name, content in left.items() if found_in(content)} == {}


def test_age_is_coarse_and_dates_are_moved(source: Path, tmp_path: Path) -> None:
    ingest(str(source), tmp_path / "data", dicom_config(max_reject_fraction=1))
    manifest = pq.read_table(tmp_path / "data" / "manifest.parquet").to_pandas()
    headers = pq.read_table(tmp_path / "data" / "headers.parquet").to_pandas()
    assert manifest["age"].tolist() == [90.0] * 4
    assert manifest["patient_id"].nunique() == 1
    assert headers["study_date"].nunique() == 1
    assert headers["study_date"][0] < "2023-11-19"


def spoil_by_twice(source: Path) -> None:
    with (source / "labels.csv").open("a") as stream:
        stream.write(f"\n{NAME}/{STUDY_DAY}/{MRN}_0.dcm,{MRN},Mass,,")


def spoil_by_finding(source: Path) -> None:
    with (source / "labels.csv").open("a") as stream:
        stream.write(f"\nnew.dcm,{MRN},{NAME},,")


def spoil_by_quotes(source: Path) -> None:
    with (source / "labels.csv").open("a") as stream:
        stream.write(f"\nnew.dcm,{MRN},O'{NAME},,")


def spoil_by_header(source: Path) -> None:
    rows = (source / "labels.csv").read_text().splitlines()
    (source / "labels.csv").write_text("\n".join(rows[1:]))


@pytest.mark.parametrize(
    "spoil", [spoil_by_twice, spoil_by_finding, spoil_by_quotes, spoil_by_header]
)
def test_no_error_text_holds_a_planted_identifier(
    source: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(source)
    with pytest.raises((LabelTableError, SourceError)) as caught:
        ingest(str(source), tmp_path / "data", dicom_config(max_reject_fraction=1))
    printed = "".join(traceback.format_exception(caught.value))
    assert found_in(printed.encode()) == []


def test_folder_that_cannot_be_listed_is_not_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    scandir = os.scandir

    def refuse(path: Path | int) -> object:
        if isinstance(path, Path) and path.name == STUDY_DAY:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("chexradinet.ingest.os.scandir", refuse)
    with pytest.raises(SourceError, match="1 folders in it cannot be listed") as caught:
        ingest(str(source), tmp_path / "data", dicom_config())
    assert found_in("".join(traceback.format_exception(caught.value)).encode()) == []


def test_key_makes_codes_also_of_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(chest(number)).save(folder / f"{MRN}-{number}.png")
    rows = [f"{MRN}-{number}.png,{NAME},Mass,{ACCESSION}" for number in range(3)]
    (folder / "labels.csv").write_text("\n".join(["file,patient,findings,study", *rows]))
    info = ingest(str(folder), tmp_path / "out" / "data", dicom_config(format="csv"))
    assert info.counts["patients"] == 1
    assert info.deidentified
    for name, content in contents(tmp_path / "out"):
        assert found_in(content) == [], name


def test_command_line_prints_no_planted_identifier(source: Path, tmp_path: Path) -> None:
    spoil_by_finding(source)
    command = [
        sys.executable,
        "-m",
        "chexradinet.cli",
        "ingest",
        str(source),
        "--data-format",
        "dicom",
    ]
    program = "from chexradinet.cli import main; main()"
    command = [sys.executable, "-c", program, *command[3:], "--out", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert b"labels.csv, row 9" in ended.stderr.replace(b"\n", b" ")
    assert found_in(ended.stdout + ended.stderr) == []


def test_errors_are_still_told_in_full_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.asarray(chest(0))).save(folder / "a.png")
    (folder / "labels.csv").write_text("file,patient,findings\na.png,p,Massive\n")
    with pytest.raises(ChexRadiNetError, match="'Massive'"):
        ingest(str(folder), tmp_path / "data", dicom_config(format="csv"))
