"""What goes wrong between us and an S3 server: each failure has its error, no secret is told."""

import io
import logging
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from minio import Minio
from minio.credentials.providers import AssumeRoleProvider
from urllib3.exceptions import ProtocolError

from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreIntegrityError,
    StoreUnavailableError,
)
from chexradinet.store import ObjectStore, list_uris, open_store, read_bytes

MEBIBYTE = 1 << 20
AT_ONCE = StoreConfig(retry_total_s=0)
PATIENT = StoreConfig(retry_total_s=30, read_timeout_s=3, part_bytes=5 * MEBIBYTE)
READ_ONLY = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
  "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}]}"""


@pytest.fixture
def client(minio_server: SimpleNamespace) -> Minio:
    """Return a bare client with all rights on the shared server."""
    server = minio_server
    return Minio(
        server.address, server.access_key, server.secret_key, secure=False, region="us-east-1"
    )


@pytest.fixture
def answering() -> Iterator[Callable[[int, str, str], str]]:
    """Return a function that starts a server which gives one answer to everything."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, content_type: str, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def every_operation(uri: str, config: StoreConfig) -> list[StoreError]:
    """Try each operation and return the errors; an operation that succeeds fails the test."""
    store, _ = open_store(uri, config)
    operations: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.stat("a"),
        lambda: store.exists("a"),
        lambda: store.put("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: list(store.list()),
    ]
    errors = []
    for operation in operations:
        with pytest.raises(StoreError) as caught:
            operation()
        errors.append(caught.value)
    return errors


def assert_all(errors: list[StoreError], kind: type[StoreError], text: str) -> None:
    """Check the class and the words of every error."""
    for error in errors:
        assert type(error) is kind, error
        assert text in str(error)


def test_closed_port_is_unavailable(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    errors = every_operation(s3_uri, AT_ONCE)
    assert_all(errors, StoreUnavailableError, endpoint)
    assert_all(errors, StoreUnavailableError, "AWS_ENDPOINT_URL")


def test_unknown_host_is_unavailable(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    errors = every_operation(s3_uri, AT_ONCE)
    assert_all(errors, StoreUnavailableError, "no-such-host.invalid")


def test_tls_to_a_plain_port_is_told_at_once(
    s3_uri: str, minio_server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{minio_server.address}")
    assert_all(every_operation(s3_uri, PATIENT), StoreUnavailableError, "AWS_CA_BUNDLE")


@pytest.mark.parametrize("status", [200, 404])
def test_web_server_that_is_no_s3_is_told_at_once(
    s3_uri: str,
    answering: Callable[[int, str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", answering(status, "text/html", "<html>Hello<br></html>"))
    with pytest.raises(StoreUnavailableError, match="no S3 service"):
        list(open_store(s3_uri, PATIENT)[0].list())


def test_unknown_access_key_is_told(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert_all(every_operation(s3_uri, PATIENT), StoreAccessError, "AWS_ACCESS_KEY_ID")


def test_wrong_secret_is_told(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistyped-secret")
    assert_all(every_operation(s3_uri, PATIENT), StoreAccessError, "AWS_SECRET_ACCESS_KEY")


def test_missing_bucket_is_told_and_never_taken_for_an_empty_one(s3_uri: str) -> None:
    assert_all(every_operation(f"{s3_uri}-not", PATIENT), StoreBucketError, "-not")


def test_credentials_that_may_only_read_cannot_write(
    s3_uri: str, minio_server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_uri)[0].put("a", b"there")
    limited = AssumeRoleProvider(
        sts_endpoint=minio_server.endpoint,
        access_key=minio_server.access_key,
        secret_key=minio_server.secret_key,
        policy=READ_ONLY,
        region="us-east-1",
    ).retrieve()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", limited.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", limited.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(limited.session_token))
    store, _ = open_store(s3_uri, PATIENT)
    assert store.get("a") == b"there"
    for operation in (lambda: store.put("a", b"x"), lambda: store.delete("a")):
        with pytest.raises(StoreAccessError, match="may not do this"):
            operation()
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{limited.session_token}x")
    with pytest.raises(StoreAccessError, match="AWS_SESSION_TOKEN"):
        read_bytes(f"{s3_uri}/a", PATIENT)


def error_document(code: str) -> str:
    """Return an error as S3 words it."""
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message></Error>'


@pytest.mark.parametrize(
    ("status", "code", "kind", "text"),
    [
        (400, "ExpiredToken", StoreAccessError, "expired"),
        (403, "RequestTimeTooSkewed", StoreAccessError, "clock"),
        (400, "AuthorizationHeaderMalformed", StoreAccessError, "AWS_REGION"),
        (301, "PermanentRedirect", StoreAccessError, "AWS_REGION"),
        (507, "XMinioStorageFull", StoreError, "full"),
        (403, "SomethingNew", StoreAccessError, "SomethingNew"),
        (400, "SomethingNew", StoreError, "SomethingNew"),
    ],
)
def test_refusals_are_told_at_once(
    s3_uri: str,
    answering: Callable[[int, str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    kind: type[StoreError],
    text: str,
) -> None:
    url = answering(status, "application/xml", error_document(code))
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for error in every_operation(s3_uri, PATIENT):
        assert isinstance(error, kind)
        assert text in str(error)


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "ServiceUnavailable"])
def test_overload_is_unavailable_after_the_time_for_retries(
    s3_uri: str,
    answering: Callable[[int, str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    url = answering(503, "application/xml", error_document(code))
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(StoreUnavailableError, match=code):
        open_store(s3_uri, StoreConfig(retry_total_s=0.5))[0].get("a")
    assert "attempt 2" in caplog.text


def test_no_secret_is_in_an_error_or_a_log(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    planted = {
        "AWS_ACCESS_KEY_ID": "planted-name",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_SESSION_TOKEN": "planted-token",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    texts = [caplog.text]
    for error in every_operation(s3_uri, StoreConfig(retry_total_s=0.3)):
        chained: BaseException | None = error
        while chained is not None:
            texts.append(f"{chained} {chained!r}")
            chained = chained.__cause__ or chained.__context__
    assert len(texts) > 6
    assert not [text for text in [*texts, caplog.text] if "planted" in text]


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
    (info,) = list_uris(s3_uri)
    assert info.sha256 is None
    assert read_bytes(info.uri) == b"theirs"


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
