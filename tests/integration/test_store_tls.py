"""A store over TLS, with a certificate of the test's own."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3
from minio import Minio

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreBucketError, StoreConflictError, StoreUnavailableError
from chexradinet.store import open_store

MEBIBYTE = 1 << 20
PATIENT = StoreConfig(retry_total_s=30, read_timeout_s=3, part_bytes=5 * MEBIBYTE)


def make_certificate(folder: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 as MinIO wants them; return the certificate."""
    if shutil.which("openssl") is None and os.environ.get("CI") != "true":
        pytest.skip("openssl, which makes the certificate, is not on the PATH")
    certificate, key = folder / "public.crt", folder / "private.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate


def test_tls_server_is_trusted_with_its_bundle_and_refused_without(
    start_minio: Callable[..., SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate = make_certificate(tmp_path)
    server = start_minio(tmp_path)
    use_server(server)
    with pytest.raises(StoreUnavailableError, match="AWS_CA_BUNDLE"):
        open_store("s3://secure", PATIENT)[0].get("a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    store, _ = open_store("s3://secure", PATIENT)
    with pytest.raises(StoreBucketError):
        store.get("a")
    trusting = urllib3.PoolManager(ca_certs=str(certificate))
    Minio(
        server.address, server.access_key, server.secret_key,
        region="us-east-1", http_client=trusting,
    ).make_bucket("secure")  # fmt: skip
    (tmp_path / "large").write_bytes(bytes(11 * MEBIBYTE))
    store.put_file("large", tmp_path / "large")
    store.create("a", b"x")
    with pytest.raises(StoreConflictError):
        store.create("a", b"y")
    assert (store.get("a"), store.get("large")) == (b"x", bytes(11 * MEBIBYTE))
