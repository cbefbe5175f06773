"""Ingest from and into a real object store: same bytes as from a folder, whatever happens."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from chexradinet.config import StoreConfig
from chexradinet.dataset import open_dataset
from chexradinet.errors import (
    SourceError,
    StoreAccessError,
    StoreBucketError,
    StoreError,
    StoreUnavailableError,
)
from chexradinet.ingest import Bucket, Folder
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import WORK_VARIABLE, ingest_to
from chexradinet.phantom import write_phantom
from chexradinet.store import download_directory, open_store, upload_directory
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom, dicom_config, write_dicom
from tests.stores import content, listed

AT_ONCE = StoreConfig(retry_total_s=0, connect_timeout_s=30, read_timeout_s=60)
NAME = "ZIEGENHAGEN^THEOPHIL"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / "work"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of DICOM files with awkward names, a bad file, and a table."""
    folder = tmp_path / "source"
    write_dicom(folder / f"{NAME} ü 胸" / "a b", 8)
    write_dicom(folder / "a", 1, suffix="")
    (folder / "a.dcm").write_bytes(dicom(20))
    (folder / "z" / "cut.dcm").parent.mkdir()
    (folder / "z" / "cut.dcm").write_bytes(dicom(21)[:-800])
    rows = [f"xray-{number:04d}.dcm,{NAME}-{number},Mass" for number in range(8)]
    table = ["file,patient,findings", *rows, "a.dcm,q,Nodule", "z/cut.dcm,r,Nodule"]
    (folder / "labels.csv").write_text("\n".join(table))
    return folder


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a data set but for the line that says where it came from."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    lines = files["dataset.json"].splitlines()
    files["dataset.json"] = b"\n".join(line for line in lines if b'"source"' not in line)
    return files


def test_bucket_gives_the_same_bytes_and_digest_as_a_folder(
    source: Path, s3_uri: str, tmp_path: Path
) -> None:
    upload_directory(source, f"{s3_uri}/in box é")
    config = dicom_config(shard_size=3)
    places = [str(source), source.as_uri(), f"{s3_uri}/in box é"]
    places.append(places[-1].replace("s3://", "minio://"))
    infos = [
        ingest(place, tmp_path / str(number), config.changed(ingest_workers=1 + number % 2))
        for number, place in enumerate(places)
    ]
    assert {info.digest for info in infos} == {infos[0].digest}
    assert infos[0].counts["images"] == 9
    assert infos[0].counts["rejected"] == {"duplicate": 1, "truncated": 1}
    assert all(bytes_of(tmp_path / str(n)) == bytes_of(tmp_path / "0") for n in range(4))


def test_public_data_set_is_read_from_a_bucket(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    write_phantom(tmp_path / "phantom", 6, 64, seed=1)
    upload_directory(tmp_path / "phantom", s3_uri)
    config = dicom_config(format="csv")
    info = ingest(s3_uri, tmp_path / "dataset", config)
    assert info.source == s3_uri
    assert info.digest == ingest(str(tmp_path / "phantom"), tmp_path / "other", config).digest


def test_data_set_is_uploaded_and_replaces_a_larger_one(
    source: Path, s3_uri: str, tmp_path: Path
) -> None:
    out = f"{s3_uri}/data sets/first"
    ingest_to(str(source), out, dicom_config(shard_size=2))
    info = ingest_to(str(source), out, dicom_config(shard_size=5), report=str(tmp_path / "r.html"))
    assert (tmp_path / "r.html").exists()
    download_directory(out, tmp_path / "fetched")
    assert open_dataset(tmp_path / "fetched").digest == info.digest
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == {
        *info.files,
        "dataset.json",
    }
    assert list((tmp_path / "work").rglob("*.npy")) == []


def test_upload_that_failed_is_made_up_for_without_decoding(
    source: Path,
    start_minio: Callable[[], SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_minio()
    use_server(server)
    out = f"s3://{new_bucket(server)}/data"
    config = dicom_config(shard_size=3, store=AT_ONCE)

    def lose_the_server(done: int, total: int) -> None:
        if done == total:
            server.kill()

    with pytest.raises(StoreUnavailableError):
        ingest_to(str(source), out, config, lose_the_server)
    assert open_dataset(next((tmp_path / "work").rglob("dataset"))).info.counts["images"] == 9
    server.start()
    reads = counted_reads(monkeypatch, Folder)
    info = ingest_to(str(source), out, config)
    assert reads == []
    download_directory(out, tmp_path / "fetched")
    assert open_dataset(tmp_path / "fetched").digest == info.digest
    assert list((tmp_path / "work").rglob("*.npy")) == []


def test_missing_bucket_and_empty_prefix_are_told(s3_uri: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing-here holds nothing"):
        ingest(f"{s3_uri}/nothing-here", tmp_path / "dataset", dicom_config())
    with pytest.raises(StoreBucketError):
        ingest("s3://no-such-bucket-here/x", tmp_path / "dataset", dicom_config())


def counted_reads(
    monkeypatch: pytest.MonkeyPatch, source: type[Bucket] | type[Folder] = Bucket
) -> list[str]:
    """Return a list that the files read from this kind of source from now on are added to."""
    files: list[str] = []
    read: Callable[..., bytes] = source.read

    def noted(opened: object, file: str) -> bytes:
        files.append(file)
        return read(opened, file)

    def here(items: list[Any], decode: Callable[..., Any], _: int) -> Iterator[Any]:
        return map(decode, items)

    monkeypatch.setattr(source, "read", noted)
    monkeypatch.setattr("chexradinet.ingest.ingest.decode_in_order", here)
    return files


def test_credentials_that_expire_midway_fail_the_run_and_lose_nothing(
    source: Path,
    s3_uri: str,
    minio_server: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_dicom(source / "more", 80)  # so that no worker has read all of it in time
    (source / "labels.csv").unlink()
    upload_directory(source, s3_uri)
    admin = MinioAdmin(
        endpoint=minio_server.address,
        credentials=StaticProvider(minio_server.access_key, minio_server.secret_key),
        secure=False,
    )
    reader, secret = "reader-" + secrets.token_hex(4), secrets.token_hex(16)

    def grant() -> None:
        admin.user_add(reader, secret)
        admin.attach_policy(["readwrite"], user=reader)

    config = dicom_config(shard_size=3, store=AT_ONCE, max_reject_fraction=1)

    def expire(done: int, total: int) -> None:
        if done == 7:
            admin.user_remove(reader)

    grant()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", reader)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StoreAccessError, match=r"credentials are refused.*shards are kept") as told:
        ingest(s3_uri, tmp_path / "dataset", config, expire)
    assert NAME not in str(told.value)
    assert not (tmp_path / "dataset").exists()
    grant()
    reads = counted_reads(monkeypatch)
    info = ingest(s3_uri, tmp_path / "dataset", config)
    assert (
        0 < len(reads) <= 91 - 6
    )  # two shards are full after the sixth of eight X-rays by this name
    assert info.digest == ingest(str(source), tmp_path / "other", config).digest


@pytest.mark.parametrize("num_workers", [1, 2])
def test_store_that_stops_midway_fails_the_run_and_loses_nothing(
    source: Path,
    start_minio: Callable[[], SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
    tmp_path: Path,
    num_workers: int,
) -> None:
    server = start_minio()
    use_server(server)
    uri = f"s3://{new_bucket(server)}"
    write_dicom(source / "more", 80)
    (source / "labels.csv").unlink()
    upload_directory(source, uri)
    config = dicom_config(shard_size=3, store=AT_ONCE, num_workers=num_workers)

    def stop(done: int, total: int) -> None:
        if done == 7:
            server.kill()

    with pytest.raises(StoreUnavailableError, match="store does not answer") as told:
        ingest(uri, tmp_path / "dataset", config.changed(max_reject_fraction=1), stop)
    assert NAME not in str(told.value)
    server.start()
    everything = config.changed(max_reject_fraction=1)
    assert list(tmp_path.glob(".dataset.resume-*/outcomes-*.json"))
    alone = everything.changed(ingest_workers=1)
    info = ingest(uri, tmp_path / "dataset", alone)
    assert info.digest == ingest(str(source), tmp_path / "other", alone).digest


def test_object_removed_or_replaced_after_listing_is_a_rejection(
    source: Path, s3_uri: str, tmp_path: Path
) -> None:
    upload_directory(source, s3_uri)
    store, _ = open_store(s3_uri)

    def remove(done: int, total: int) -> None:
        if done == 1:
            store.delete("z/cut.dcm")

    info = ingest(s3_uri, tmp_path / "dataset", dicom_config(), remove)
    assert info.counts["rejected"] == {"duplicate": 1, "missing": 1}


PROGRAM = """
import sys, time
from pathlib import Path
from chexradinet.ingest.output import ingest_to
from tests.ingest_world import dicom_config

def wait_to_be_killed(done, total):
    if done == 7:
        Path(sys.argv[3]).touch()
        time.sleep(600)

if __name__ == "__main__":
    ingest_to(sys.argv[1], sys.argv[2], dicom_config(shard_size=3), wait_to_be_killed)
"""


def test_killed_ingest_between_buckets_goes_on_after_its_last_full_shard(
    source: Path, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_directory(source, f"{s3_uri}/in")
    marker = tmp_path / "marker"
    command = [sys.executable, "-c", PROGRAM, f"{s3_uri}/in", f"{s3_uri}/out", str(marker)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        deadline = time.monotonic() + 120
        while not marker.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    assert marker.exists()
    assert listed(f"{s3_uri}/out") == []
    reads = counted_reads(monkeypatch)
    info = ingest_to(f"{s3_uri}/in", f"{s3_uri}/out", dicom_config(shard_size=3))
    assert len(reads) == 11 - 6
    assert (
        info.digest == ingest(str(source), tmp_path / "dataset", dicom_config(shard_size=3)).digest
    )
    shutil.rmtree(tmp_path / "work")


def test_ingest_whose_pod_was_replaced_goes_on_from_the_bucket(
    source: Path, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_directory(source, f"{s3_uri}/in")
    undisturbed = ingest(f"{s3_uri}/in", tmp_path / "undisturbed", dicom_config(shard_size=3))
    monkeypatch.setenv(CHECKPOINT_VARIABLE, f"{s3_uri}/checkpoints")

    def evict(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(f"{s3_uri}/in", tmp_path / "pod 1" / "dataset", dicom_config(shard_size=3), evict)
    shutil.rmtree(tmp_path / "pod 1")
    reads = counted_reads(monkeypatch)
    info = ingest(f"{s3_uri}/in", tmp_path / "pod 2" / "dataset", dicom_config(shard_size=3))
    assert info == undisturbed
    assert len(reads) == 11 - 6
    assert bytes_of(tmp_path / "pod 2" / "dataset") == bytes_of(tmp_path / "undisturbed")
    kept = [
        found.uri.rpartition("/")[2]
        for found in listed(f"{s3_uri}/checkpoints")
        if "/finished-" not in found.uri
    ]
    assert sorted(kept) == sorted(
        name.format(number)
        for name in ("images-{:05d}.npy", "outcomes-{:05d}.json")
        for number in range(3)
    )
    text = b"".join(
        content(found.uri)
        for found in listed(f"{s3_uri}/checkpoints")
        if found.uri.endswith(".json")
    )
    assert NAME.encode() not in text


def test_store_errors_name_the_source_and_not_the_file(
    source: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload_directory(source, s3_uri)
    bucket = Bucket(s3_uri, AT_ONCE, tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError) as told:
        bucket.read(f"{NAME} ü 胸/a b/xray-0000.dcm")
    assert s3_uri in str(told.value)
    assert NAME not in str(told.value)
    assert told.value.__suppress_context__
