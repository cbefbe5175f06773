"""What only a directory does as a store: links, pipes, damage, full disks, kills."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chexradinet.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
)
from chexradinet.store import upload_directory
from chexradinet.store.local import LocalStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with something beside it."""
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> LocalStore:
    """Return an empty store."""
    return LocalStore(root)


def test_missing_directory_is_empty_and_made_by_the_first_write(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "new" / "folder")
    assert list(store.list()) == []
    assert not (tmp_path / "new").exists()
    store.put("a", b"x")
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"x"


def test_file_altered_in_place_is_refused(store: LocalStore, root: Path, tmp_path: Path) -> None:
    store.put("a", b"as written")
    with (root / "a").open("r+b") as stream:
        stream.write(b"AS")
    with pytest.raises(StoreIntegrityError, match="SHA-256"):
        store.get("a")
    with pytest.raises(StoreIntegrityError, match="SHA-256"):
        store.get_file("a", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_file_of_another_writer_is_read(store: LocalStore, root: Path) -> None:
    (root / "a").write_bytes(b"theirs")
    assert store.get("a") == b"theirs"
    assert store.stat("a").sha256 is None


def test_etag_tells_a_file_that_is_still_being_written(store: LocalStore, root: Path) -> None:
    (root / "a").write_bytes(b"half")
    before = store.stat("a").etag
    with (root / "a").open("ab") as stream:
        stream.write(b" whole")
    assert store.stat("a").etag != before


def test_link_inside_is_followed_and_link_outside_is_not(
    store: LocalStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("real", b"x")
    (root / "inside").symlink_to("real")
    (root / "outside").symlink_to("../outside")
    (root / "nowhere").symlink_to("none")
    (root / "up").symlink_to("..", target_is_directory=True)
    (root / "self").symlink_to(".", target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        assert [info.key for info in store.list()] == ["inside", "real"]
    assert "left out 2" in caplog.text
    assert store.get("inside") == b"x"
    for key in ("outside", "up/outside"):
        with pytest.raises(StoreAccessError, match="leaves"):
            store.get(key)
    with pytest.raises(StoreAccessError, match="leaves"):
        store.put("up/planted", b"x")
    assert list(store.list("up/")) == list(store.list("self/")) == []


def test_writing_over_a_link_replaces_the_link_and_not_its_target(
    store: LocalStore, root: Path
) -> None:
    (root / "link").symlink_to("../outside")
    store.put("link", b"new")
    assert not (root / "link").is_symlink()
    assert (root.parent / "outside").read_bytes() == b"outside"


def test_pipes_folders_and_names_of_other_encodings_are_no_objects(
    store: LocalStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.dcm")).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert list(store.list()) == []
    assert "left out 2" in caplog.text
    for key in ("pipe", "folder", "pipe/a"):
        with pytest.raises(StoreNotFoundError):
            store.get(key)
        assert not store.exists(key)


def test_temporary_files_of_a_killed_writer_are_not_listed(store: LocalStore, root: Path) -> None:
    (root / ".object.partial-0123456789ab").write_bytes(b"half")
    (root / ".dataset.partial-0123456789ab").mkdir()
    (root / ".dataset.partial-0123456789ab" / "a").write_bytes(b"half")
    assert list(store.list()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_folder_and_file_without_permission_are_told(store: LocalStore, root: Path) -> None:
    store.put("closed/a", b"x")
    store.put("file", b"x")
    (root / "file").chmod(0)
    with pytest.raises(StoreAccessError, match="file"):
        store.get("file")
    (root / "closed").chmod(0)
    with pytest.raises(StoreAccessError, match="closed"):
        list(store.list())
    (root / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EACCES, StoreAccessError),
        (errno.EROFS, StoreAccessError),
        (errno.EINVAL, StoreError),
    ],
)
def test_what_the_system_says_has_its_error_and_leaves_nothing(
    store: LocalStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[StoreError],
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match="cannot write"):
        store.put("a", b"x")
    assert list(root.iterdir()) == []


@pytest.fixture
def at_most_a_mebibyte() -> Iterator[None]:
    """Let the system refuse files over 1 MiB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("at_most_a_mebibyte")
def test_full_disk_is_told_and_leaves_the_older_object(store: LocalStore, root: Path) -> None:
    store.put("a", b"older")
    with pytest.raises(StoreFullError, match="free space"):
        store.put("a", bytes(2 << 20))
    assert store.get("a") == b"older"
    assert [path.name for path in root.iterdir()] == ["a"]


def test_compare_and_swap_tells_both_etags(store: LocalStore) -> None:
    etag = store.put("a", b"one")
    store.put("a", b"two!")
    with pytest.raises(StoreConflictError, match=etag):
        store.put("a", b"three", if_match=etag)
    assert store.get("a") == b"two!"


def test_object_and_folder_of_one_name_are_refused(store: LocalStore) -> None:
    store.put("a/b", b"x")
    with pytest.raises(StoreError, match="cannot write"):
        store.put("a", b"x")
    with pytest.raises(StoreError, match="cannot write"):
        store.put("a/b/c", b"x")


def test_missing_source_is_named(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="none"):
        store.put_file("a", tmp_path / "none")
    with pytest.raises(StoreNotFoundError, match="nothing to upload"):
        upload_directory(tmp_path / "none", str(tmp_path / "target"))


def test_killed_writer_leaves_the_older_object_whole(store: LocalStore, root: Path) -> None:
    store.put("a", b"older")
    program = (
        "import sys, pathlib; from chexradinet.store.local import LocalStore\n"
        "store = LocalStore(pathlib.Path(sys.argv[1])); print('ready', flush=True)\n"
        "while True: store.put('a', bytes(32 << 20))"
    )
    command = [sys.executable, "-c", program, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
    assert store.get("a") in (b"older", bytes(32 << 20))
    assert [info.key for info in store.list()] == ["a"]
