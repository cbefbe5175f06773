import logging
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.ingest.matching import (
    detect_format,
    find_files,
    index_files,
    match_rows,
    read_table,
)

FILES = [
    "images_001/images/1.png",
    "train/p1/s1/v1.jpg",
    "train/p1/s2/v1.jpg",
    "b/2.png",
    "c/2.png",
    "2.png",
    "x/c/2.png",
]


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("1.png", ["images_001/images/1.png"]),
        ("images/1.png", ["images_001/images/1.png"]),
        ("other/1.png", []),
        ("ages/1.png", []),
        ("CheXpert-v1.0/train/p1/s2/v1.jpg", ["train/p1/s2/v1.jpg"]),
        ("p1/s1/v1.jpg", ["train/p1/s1/v1.jpg"]),
        ("v1.jpg", ["train/p1/s1/v1.jpg", "train/p1/s2/v1.jpg"]),
        ("2.png", ["2.png"]),
        ("c/2.png", ["c/2.png"]),
        ("b/2.png", ["b/2.png"]),
        ("3.png", []),
    ],
)
def test_file_is_meant_when_one_path_ends_in_the_other_and_the_same_path_goes_first(
    named: str, found: list[str]
) -> None:
    assert find_files(named, index_files(FILES)) == found


def test_name_that_several_files_have_is_refused_with_the_number_of_such_rows() -> None:
    with pytest.raises(LabelTableError, match=r"2 rows of labels\.csv .*'v1\.jpg', matches"):
        match_rows("labels.csv", ["v1.jpg", "1.png", "s/v1.jpg", "c/../v1.jpg", "v1.jpg"], FILES)


def test_uid_that_several_files_have_is_left_to_their_headers() -> None:
    files = ["a/1.2.3", "b/1.2.3", "a/IM1", "b/IM1"]
    assert match_rows("t", ["1.2.3"], files, may_be_uids=True) == (None,)
    with pytest.raises(LabelTableError, match="1 rows"):
        match_rows("t", ["1.2.3"], files)
    with pytest.raises(LabelTableError, match="1 rows"):
        match_rows("t", ["IM1"], files, may_be_uids=True)


@pytest.mark.parametrize(
    ("named", "file", "found"),
    [
        ("00000001_000.png", "images/00000001_000.jpg", True),
        ("id-7.dcm", "id-7.PNG", True),
        ("p10/p1/s5/d-0.jpg", "files/p10/p1/s5/d-0.dcm", True),
        ("p10/p1/s5/d-0.jpg", "files/p10/p1/s6/d-0.dcm", False),
        ("1.2.3.4", "1.2.3.4.dcm", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("chest.v1", "chest.v2", False),
    ],
)
def test_file_that_differs_in_the_suffix_alone_is_meant_and_told(
    named: str, file: str, found: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert match_rows("t", [named], ["other.png", file]) == (file if found else None,)
    assert ("1 rows of t differ from files in the suffix only" in caplog.text) == found


def test_suffix_is_not_passed_over_where_it_would_be_a_guess() -> None:
    assert match_rows("t", ["a.jpg"], ["a.png", "a.dcm"]) == (None,)
    # Both claim it, which the plan tells from a match.
    assert match_rows("t", ["a.jpg", "a.tif"], ["a.png"]) == ("a.png", "a.png")
    assert match_rows("t", ["a.jpg", "a.png"], ["a.png"]) == (None, "a.png")


@pytest.mark.parametrize(
    ("table", "head", "file", "expected"),
    [
        ("Data_Entry_2017.csv", "Image Index,Finding Labels,Patient ID", "a.png", "nih"),
        ("labels.csv", "file,patient,findings", "a.PNG", "csv"),
        ("labels.csv", "file,patient,findings", "a.dcm", "dicom"),
        ("labels.csv", "file,patient,findings", "IM0001", "dicom"),
        ("stage_2_train_labels.csv", "patientId,x,y,width,height,Target", "a.dcm", "rsna"),
        ("mimic-cxr-2.0.0-metadata.csv", "dicom_id", "a.jpg", "mimic"),
        ("notes.csv", "a,b", "a.dcm", "dicom"),
    ],
)
def test_the_format_is_found_by_tables_and_files(
    tmp_path: Path, table: str, head: str, file: str, expected: str
) -> None:
    (tmp_path / table).write_text(f"{head}\n")
    assert detect_format(tmp_path, [table, file]) == expected


def test_the_format_of_chexpert_is_found_by_its_two_tables(tmp_path: Path) -> None:
    for name in ("train.csv", "valid.csv"):
        (tmp_path / name).write_text("Path\n")
    assert detect_format(tmp_path, ["a.jpg"]) == "chexpert"


def test_tables_of_two_formats_need_a_word(tmp_path: Path) -> None:
    assert detect_format(tmp_path, ["a.png"]) == "csv"
    (tmp_path / "labels.csv").write_text("file,patient,findings\n")
    (tmp_path / "Data_Entry.csv").write_text("Image Index,Finding Labels,Patient ID\n")
    with pytest.raises(SourceError, match="are those of nih, csv; give data_format"):
        detect_format(tmp_path, ["a.png"])


def test_a_wrong_format_is_told_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,patient,findings\n")
    config = IngestConfig(data_format="nih")  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="look like data_format=csv: give that, or auto"):
        read_table(tmp_path, config)
