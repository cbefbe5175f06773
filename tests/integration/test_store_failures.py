"""What goes wrong between us and an S3 server: each failure has its error, no secret is told."""

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from minio.credentials.providers import AssumeRoleProvider

from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreAccessError,
    StoreBucketError,
    StoreError,
    StoreUnavailableError,
)
from chexradinet.store import open_store

MEBIBYTE = 1 << 20
AT_ONCE = StoreConfig(retry_total_s=0)
PATIENT = StoreConfig(retry_total_s=30, read_timeout_s=3, part_bytes=5 * MEBIBYTE)
READ_ONLY = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
  "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}]}"""


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
    with pytest.raises(StoreUnavailableError, match="not an S3 service"):
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
        open_store(s3_uri, PATIENT)[0].get("a")


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
