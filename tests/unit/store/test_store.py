"""Whole directories by URI: what the stores themselves do not show."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chexradinet.errors import ConfigError, StoreError, StoreIntegrityError
from chexradinet.store import add_directory, download_directory, upload_directory
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import ObjectInfo


def with_key(store: LocalStore, key: str) -> Iterator[ObjectInfo]:
    """Return a listing of one object under another name, as a bucket could hold."""
    store.put("a", b"x")
    info = store.stat("a")
    for name in ("a", key):
        yield ObjectInfo(
            key=name,
            uri=info.uri,
            size_bytes=info.size_bytes,
            etag=info.etag,
            modified=info.modified,
        )


@pytest.mark.parametrize("key", ["../planted", "/planted", "b/../../planted"])
def test_key_that_would_leave_the_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(LocalStore, "list", lambda store, prefix: with_key(store, key))
    with pytest.raises(ConfigError, match="planted"):
        download_directory(str(tmp_path / "source"), tmp_path / "target" / "here")
    assert not (tmp_path / "target").exists()
    assert not list(tmp_path.rglob("planted"))


def test_object_and_folder_of_one_name_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "list", lambda store, prefix: with_key(store, "a/b"))
    with pytest.raises(StoreError):
        download_directory(str(tmp_path / "source"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_damaged_object_leaves_the_older_directory(tmp_path: Path) -> None:
    for name, text in (("source", "new"), ("target", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
    upload_directory(tmp_path / "source", str(tmp_path / "stored"))
    with (tmp_path / "stored" / "a").open("r+b") as stream:
        stream.write(b"N")
    with pytest.raises(StoreIntegrityError):
        download_directory(str(tmp_path / "stored"), tmp_path / "target")
    assert (tmp_path / "target" / "a").read_text() == "old"


def test_heads_are_written_after_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("a.json", "b.npy", "sub/c.json", "z.parquet"):
        (tmp_path / "source" / name).write_text("{}")
    written: list[str] = []
    put_file = LocalStore.put_file

    def watch(store: LocalStore, key: str, path: Path) -> str:
        etag = put_file(store, key, path)
        written.append(key)
        return etag

    monkeypatch.setattr(LocalStore, "put_file", watch)
    upload_directory(tmp_path / "source", str(tmp_path / "target"))
    assert written[-1] == "a.json"
    assert sorted(written) == ["a.json", "b.npy", "sub/c.json", "z.parquet"]


def test_adding_a_directory_again_reads_what_is_there_and_writes_and_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    for name in ("bundle.json", "weights"):
        (tmp_path / "source" / name).write_text(name)
    add_directory(tmp_path / "source", str(tmp_path / "stored"))
    for method in ("put_file", "delete"):
        monkeypatch.setattr(LocalStore, method, lambda *_: pytest.fail("not to be called"))
    add_directory(tmp_path / "source", str(tmp_path / "stored"))
    assert (tmp_path / "stored" / "weights").read_text() == "weights"


@pytest.mark.parametrize("altered", ["Weights", "w"])
def test_adding_a_directory_puts_back_a_file_that_was_altered(tmp_path: Path, altered: str) -> None:
    (tmp_path / "source").mkdir()
    for name in ("bundle.json", "weights"):
        (tmp_path / "source" / name).write_text(name)
    add_directory(tmp_path / "source", str(tmp_path / "stored"))
    (tmp_path / "stored" / "weights").unlink()
    (tmp_path / "stored" / "weights").write_text(altered)
    add_directory(tmp_path / "source", str(tmp_path / "stored"))
    assert (tmp_path / "stored" / "weights").read_text() == "weights"
