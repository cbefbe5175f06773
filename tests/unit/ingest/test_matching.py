import logging

import pytest

from chexradinet.errors import LabelTableError
from chexradinet.ingest.matching import find_files, index_files, match_rows

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
    with pytest.raises(LabelTableError, match=r"2 rows of labels\.csv .*'v1\.jpg', means"):
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
