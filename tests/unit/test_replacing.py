"""Nothing is replaced but an older artifact of the same kind, whatever path a user gives."""

from pathlib import Path

import pandas as pd
import pytest

from chexradinet.artifacts import write_document, write_table
from chexradinet.errors import ConfigError
from chexradinet.replacing import Head, require_file, require_replaceable

DATASET = Head("dataset.json", "dataset")
REGIONS = Head("regions.parquet", "regions")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "dataset"


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_place_and_empty_directory_are_taken(target: Path) -> None:
    require_replaceable(target, DATASET)
    assert files_of(target.parent) == []
    target.mkdir()
    require_replaceable(target, DATASET)
    assert files_of(target.parent) == ["dataset"]


def test_older_artifact_of_the_same_kind_is_replaced_also_one_of_another_schema(
    target: Path,
) -> None:
    target.mkdir(parents=True)
    write_document(target / "dataset.json", "dataset", 99, {})
    require_replaceable(target, DATASET)
    write_table(target / "regions.parquet", pd.DataFrame({"a": [1]}), "regions", 1)
    require_replaceable(target, REGIONS)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"kind": 5}', b'{"kind": "bundle"}', b"\xff\xfe", b"[" * 100_000],
)
def test_document_of_another_kind_protects_what_lies_beside_it(
    target: Path, content: bytes
) -> None:
    target.mkdir(parents=True)
    (target / "dataset.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"no dataset\.json of kind 'dataset'"):
        require_replaceable(target, DATASET)


def test_table_of_another_kind_or_of_somebody_else_protects_its_directory(target: Path) -> None:
    target.mkdir(parents=True)
    pd.DataFrame({"a": [1]}).to_parquet(target / "regions.parquet")
    with pytest.raises(ConfigError, match="not empty"):
        require_replaceable(target, REGIONS)
    (target / "regions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="not empty"):
        require_replaceable(target, REGIONS)


def test_folder_inside_an_artifact_is_not_lost_with_it(target: Path) -> None:
    (target / "my notes").mkdir(parents=True)
    write_document(target / "dataset.json", "dataset", 1, {})
    with pytest.raises(ConfigError, match="my notes"):
        require_replaceable(target, DATASET)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/", "a name of its own"),
        (".", "a name of its own"),
        ("..", "a name of its own"),
        ("{folder}/file", "is a file"),
        ("{folder}/file/dataset", "cannot be made: (Not a directory|File exists)"),
        ("{folder}/nowhere", "leads to no directory"),
        ("/proc/x/dataset", "cannot be made"),
        ("{folder}/" + "x" * 300, "cannot be made: File name too long"),
        ("{folder}/" + "x" * 240, "cannot be made: File name too long"),
    ],
)
def test_path_that_cannot_become_a_directory_is_told(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=told):
        require_replaceable(Path(name.format(folder=tmp_path)), DATASET)
    assert files_of(tmp_path) == ["file", "nowhere"]


def test_file_is_checked_by_its_name_and_by_whether_it_can_be_made(tmp_path: Path) -> None:
    require_file(tmp_path / "new" / "report.html", ".html")
    assert files_of(tmp_path / "new") == []
    for path, told in (
        (tmp_path / "labels.csv", "does not end in .html"),
        (tmp_path, "does not end in .html"),
        (Path("/proc/nope/report.html"), "cannot be written"),
        (tmp_path / ("x" * 300 + ".html"), "File name too long"),
    ):
        with pytest.raises(ConfigError, match=told):
            require_file(path, ".html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        require_file(tmp_path / "folder.html", ".html")
