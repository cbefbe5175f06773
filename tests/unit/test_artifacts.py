"""Artifacts are whole or absent, and readers refuse what they do not know."""

import csv
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chexradinet.artifacts import (
    CsvWriter,
    Head,
    read_document,
    read_table,
    require_file,
    require_replaceable,
    sha256_of,
    write_document,
    write_table,
    writing_directory,
    writing_file,
)
from chexradinet.errors import ArtifactError, ConfigError

HEAD = Head("dataset.json", "dataset")


def test_an_error_while_writing_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    with writing_directory(target, HEAD) as folder:
        write_document(folder / HEAD.name, HEAD.kind, 1, {"text": "old"})
    with pytest.raises(RuntimeError, match="disk"), writing_directory(target, HEAD) as folder:  # noqa: PT012
        write_document(folder / HEAD.name, HEAD.kind, 1, {"text": "new"})
        raise RuntimeError("disk")
    assert read_document(target / HEAD.name, HEAD.kind, 1)["text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_finished_directory_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    for text in ("old", "new"):
        with writing_directory(target, HEAD) as folder:
            write_document(folder / HEAD.name, HEAD.kind, 1, {})
            (folder / text).write_text(text)
    assert sorted(path.name for path in target.iterdir()) == [HEAD.name, "new"]


def test_what_comes_into_the_place_while_it_is_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    with pytest.raises(ConfigError, match="not empty"), writing_directory(target, HEAD) as folder:  # noqa: PT012
        write_document(folder / HEAD.name, HEAD.kind, 1, {})
        target.mkdir()
        (target / "thesis.doc").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert [path.name for path in target.iterdir()] == ["thesis.doc"]


def test_a_killed_writer_leaves_nothing_under_the_name_of_the_artifact(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from chexradinet.artifacts import writing_directory\n"
        "with writing_directory(Path(sys.argv[1]), None) as folder:\n"
        "    (folder / 'half').write_bytes(b'x' * 1000)\n"
        "    print('half written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"half written"
        os.kill(process.pid, signal.SIGKILL)
    assert not target.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file"
    with writing_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_a_document_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    write_document(path, "dataset", 2, {})
    with pytest.raises(
        ArtifactError, match=r"'dataset' of schema 2, .* reads 'dataset' of schema 1"
    ):
        read_document(path, "dataset", 1)


def test_a_document_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    write_document(path, "bundle", 1, {})
    with pytest.raises(ArtifactError, match="'bundle'"):
        read_document(path, "dataset", 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="make the artifact again"):
        read_document(path, "dataset", 1)


def test_a_missing_document_table_or_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(ArtifactError, match="missing is missing"):
        read_document(path, "dataset", 1)
    with pytest.raises(ArtifactError, match="missing is missing"):
        read_table(path, "regions", 1)
    with pytest.raises(ArtifactError, match="missing is missing"):
        sha256_of(path)


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="Out of range"):
        write_document(path, "metrics", 1, {"auroc": float("nan")})
    assert not path.exists()


def test_a_table_keeps_values_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "regions.parquet"
    frame = pd.DataFrame({"image_id": ["a", "b"], "score": [0.25, None]})
    write_table(path, frame, "regions", 1, {"bundle": "abc"})
    read, provenance = read_table(path, "regions", 1)
    pd.testing.assert_frame_equal(read, frame)
    assert provenance == {"bundle": "abc"}
    with pytest.raises(ArtifactError, match="schema 1, but this release reads 'features'"):
        read_table(path, "features", 1)


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "regions.parquet"
    write_table(path, pd.DataFrame({"a": range(1000)}), "regions", 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="not a whole Parquet file"):
        read_table(path, "regions", 1)


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    for name in ("one", "two"):
        write_table(tmp_path / name, frame, "regions", 1, {"b": 1, "a": 2})
        time.sleep(0.01)
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")


STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


def killed_before(step: int, target: Path) -> bool:
    """Replace an artifact in another process, and end it before its n-th change of the disk."""
    child = os.fork()
    if child == 0:
        left = itertools.count(step - 1, -1)

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                if next(left) == 0:
                    os._exit(9)
                return change(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        require_replaceable(target, HEAD)
        write_artifact(target, "new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def write_artifact(target: Path, text: str) -> None:
    with writing_directory(target, HEAD) as folder:
        write_document(folder / HEAD.name, HEAD.kind, 1, {"text": text})


def test_a_kill_at_any_step_of_a_replacement_loses_neither_the_old_nor_the_new(
    tmp_path: Path,
) -> None:
    target = tmp_path / "dataset"
    aside = 0
    for step in itertools.count(1):
        write_artifact(target, "old")
        killed = killed_before(step, target)
        aside += not target.exists()
        require_replaceable(target, HEAD)
        text = read_document(target / HEAD.name, HEAD.kind, 1)["text"]
        assert text in ("old", "new")
        if not killed:
            assert text == "new"
            break
        write_artifact(target, "newest")
        assert read_document(target / HEAD.name, HEAD.kind, 1)["text"] == "newest"
        assert [path for path in tmp_path.iterdir() if "before" in path.name] == []
        for left in tmp_path.glob(".dataset.partial-*"):
            shutil.rmtree(left)
    assert step > 8
    assert aside == 1


REGIONS = Head("regions.parquet", "regions")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "dataset"


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_place_and_empty_directory_are_taken(target: Path) -> None:
    require_replaceable(target, HEAD)
    assert files_of(target.parent) == []
    target.mkdir()
    require_replaceable(target, HEAD)
    assert files_of(target.parent) == ["dataset"]


def test_older_artifact_of_the_same_kind_is_replaced_also_one_of_another_schema(
    target: Path,
) -> None:
    target.mkdir(parents=True)
    write_document(target / "dataset.json", "dataset", 99, {})
    require_replaceable(target, HEAD)
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
        require_replaceable(target, HEAD)


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
        require_replaceable(target, HEAD)


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
        require_replaceable(Path(name.format(folder=tmp_path)), HEAD)
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


@pytest.mark.parametrize(
    "cell", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", " =1", "\n=1", "\uff1d1+1"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_text(cell: str) -> None:
    stream = io.StringIO()
    CsvWriter(stream).writerow([cell, "1.2.3", "PA"])
    assert next(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [
        f"'{cell}",
        "1.2.3",
        "PA",
    ]


def test_numbers_stay_numbers_in_a_csv() -> None:
    stream = io.StringIO()
    CsvWriter(stream).writerow([-1.5, "-0.25", "+3", "-1e-3", "-inf", None, True])
    assert stream.getvalue() == "-1.5,-0.25,+3,-1e-3,-inf,,True\n"


def test_a_carriage_return_in_a_cell_begins_no_row() -> None:
    stream = io.StringIO()
    CsvWriter(stream).writerow(["\r=1", "a\r=2"])
    assert stream.getvalue() == "' =1,a =2\n"
