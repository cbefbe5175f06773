import pytest

from chexradinet.flows.matching import find_file, index_files

FILES = [
    "images_001/images/1.png",
    "train/p1/s1/v1.jpg",
    "train/p1/s2/v1.jpg",
    "b/2.png",
    "c/2.png",
]


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("1.png", "images_001/images/1.png"),
        ("images/1.png", "images_001/images/1.png"),
        ("other/1.png", None),
        ("ages/1.png", None),
        ("CheXpert-v1.0/train/p1/s2/v1.jpg", "train/p1/s2/v1.jpg"),
        ("p1/s1/v1.jpg", "train/p1/s1/v1.jpg"),
        ("2.png", "b/2.png"),
        ("c/2.png", "c/2.png"),
        ("../c/2.png", "c/2.png"),
        ("3.png", None),
    ],
)
def test_file_is_meant_when_one_path_ends_in_the_other(named: str, file: str | None) -> None:
    assert find_file(named, index_files(FILES)) == file
