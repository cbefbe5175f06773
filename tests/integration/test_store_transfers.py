"""Transfers to and from a real S3 server that break off, lie or are refused midway."""

import io
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from minio import Minio
from urllib3.exceptions import ProtocolError

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreConflictError, StoreIntegrityError
from chexradinet.store import open_store
from chexradinet.store.protocol import ObjectStore
from tests.stores import content, listed

MEBIBYTE = 1 << 20
PATIENT = StoreConfig(retry_total_s=30, read_timeout_s=3, part_bytes=5 * MEBIBYTE)


def test_other_bytes_under_the_old_checksum_are_refused(
    s3_uri: str, client: Minio, tmp_path: Path
) -> None:
    store, _ = open_store(s3_uri)
    store.put("a", b"as written")
    metadata = {"sha256": str(store.stat("a").sha256)}
    bucket = s3_uri.removeprefix("s3://")
    client.put_object(bucket, "a", io.BytesIO(b"as altered"), 10, metadata=dict(metadata))
    with pytest.raises(StoreIntegrityError, match="SHA-256"):
        store.get("a")
    with pytest.raises(StoreIntegrityError, match="SHA-256"):
        store.get_file("a", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_objects_of_other_writers_are_read(s3_uri: str, client: Minio) -> None:
    client.put_object(s3_uri.removeprefix("s3://"), "a/b", io.BytesIO(b"theirs"), 6)
    client.put_object(s3_uri.removeprefix("s3://"), "folder/", io.BytesIO(b""), 0)
    (info,) = listed(s3_uri)
    assert info.sha256 is None
    assert content(info.uri) == b"theirs"


@pytest.mark.parametrize("method", ["create", "swap"])
def test_write_whose_answer_was_lost_is_known_for_our_own(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    store, _ = open_store(s3_uri, PATIENT)
    old = store.put("a", b"old") if method == "swap" else None
    put = Minio._put_object
    calls: list[int] = []

    def lose_the_first_answer(self: Minio, *arguments: object) -> object:
        answer = put(self, *arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            raise ProtocolError("planted")
        return answer

    monkeypatch.setattr(Minio, "_put_object", lose_the_first_answer)
    if old is None:
        store.create("a", b"mine")
    else:
        store.put("a", b"mine", if_match=old)
    assert store.get("a") == b"mine"
    with pytest.raises(StoreConflictError):
        store.create("a", b"mine")


@pytest.fixture
def own_server(
    start_minio: Callable[[], SimpleNamespace], use_server: Callable[[SimpleNamespace], None]
) -> SimpleNamespace:
    """Return a server to kill."""
    server = start_minio()
    use_server(server)
    return server


@pytest.fixture
def own_store(
    own_server: SimpleNamespace, new_bucket: Callable[[SimpleNamespace], str]
) -> ObjectStore:
    """Return a bucket of the server to kill."""
    return open_store(f"s3://{new_bucket(own_server)}", PATIENT)[0]


def test_upload_goes_on_after_the_server_was_killed_and_restarted(
    own_server: SimpleNamespace,
    own_store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = random.Random(2).randbytes(24 * MEBIBYTE)
    (tmp_path / "source").write_bytes(data)
    send, restart = Minio._upload_part, threading.Timer(1.0, own_server.start)
    sent: list[int] = []

    def kill_before_the_third(self: Minio, *arguments: object) -> str:
        sent.append(1)
        if len(sent) == 3:
            own_server.kill()
            restart.start()
        return send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Minio, "_upload_part", kill_before_the_third)
    own_store.put_file("large", tmp_path / "source")
    restart.join()
    assert own_store.get("large") == data
    assert len(sent) > 5


def test_download_goes_on_after_the_server_was_killed_and_restarted(
    own_server: SimpleNamespace, own_store: ObjectStore
) -> None:
    data = random.Random(3).randbytes(64 * MEBIBYTE)
    own_store.put("large", data)
    chunks = own_store.chunks("large")
    read = [next(chunks)]
    own_server.kill()
    restart = threading.Timer(1.0, own_server.start)
    restart.start()
    read.extend(chunks)
    restart.join()
    assert b"".join(read) == data


def test_object_replaced_during_a_resumed_download_is_not_mixed(
    own_server: SimpleNamespace, own_store: ObjectStore
) -> None:
    own_store.put("large", bytes(64 * MEBIBYTE))
    chunks = own_store.chunks("large")
    next(chunks)
    own_server.kill()
    own_server.start()
    own_store.put("large", b"\1" * 64 * MEBIBYTE)
    with pytest.raises(StoreConflictError, match="large"):
        list(chunks)


def test_upload_that_fails_midway_leaves_nothing(
    s3_uri: str, client: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(12 * MEBIBYTE))
    send = Minio._upload_part

    def grow_the_file(self: Minio, *arguments: object) -> str:
        with source.open("ab") as stream:
            stream.write(b"more")
        return send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Minio, "_upload_part", grow_the_file)
    store, _ = open_store(s3_uri, PATIENT)
    with pytest.raises(StoreIntegrityError, match="changed while"):
        store.put_file("large", source)
    assert list(store.list()) == []
    uploads = client._list_multipart_uploads(s3_uri.removeprefix("s3://"), prefix="large")
    assert uploads.uploads == []


def test_upload_whose_process_is_killed_leaves_nothing_to_see(s3_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(64 * MEBIBYTE))
    program = (
        "import pathlib, sys\n"
        "from minio import Minio\n"
        "from chexradinet.config import StoreConfig\n"
        "from chexradinet.store import open_store\n"
        "send = Minio._upload_part\n"
        "def tell(*arguments):\n"
        "    etag = send(*arguments)\n"
        "    print('part', flush=True)\n"
        "    return etag\n"
        "Minio._upload_part = tell\n"
        "store, _ = open_store(sys.argv[1], StoreConfig(part_bytes=5 << 20))\n"
        "store.put_file('large', pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, s3_uri, str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"part\n"
        process.kill()
    store, _ = open_store(s3_uri)
    assert list(store.list()) == []
    store.put_file("large", source)
    assert store.stat("large").size_bytes == 64 * MEBIBYTE
