"""Artifacts are whole or absent, and readers refuse what they do not know."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from chexradinet.artifacts import (
    read_document,
    read_table,
    sha256_of,
    write_document,
    write_table,
    writing_directory,
    writing_file,
)
from chexradinet.errors import ArtifactError, ConfigError
from chexradinet.replacing import Head

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
    with pytest.raises(ArtifactError, match="no whole Parquet file"):
        read_table(path, "regions", 1)


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    for name in ("one", "two"):
        write_table(tmp_path / name, frame, "regions", 1, {"b": 1, "a": 2})
        time.sleep(0.01)
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
