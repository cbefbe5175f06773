"""What a server that answers on the wire may not make the client of a bucket do."""

import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreError, StoreUnavailableError
from chexradinet.store.administration import BucketConfig, User, apply_policies, create_buckets
from chexradinet.store.protocol import ObjectStore
from chexradinet.store.s3 import S3Store
from chexradinet.store.uri import S3Access
from tests.serving import serving

ONCE = StoreConfig(retry_total_s=0, connect_timeout_s=30, read_timeout_s=60)


class Server(ThreadingHTTPServer):
    """Answers every request in one way, and notes that it came."""

    def __init__(self, status: int, location: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.location = status, location
        self.paths: list[str] = []
        self.access = S3Access(
            endpoint=f"127.0.0.1:{self.server_port}",
            secure=False,
            access_key="name",
            secret_key="planted",
        )


class Handler(BaseHTTPRequestHandler):
    """Answers for `Server`."""

    server: Server

    def answer(self) -> None:
        """Send the status, and where else to ask."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


OPERATIONS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "stat": lambda store, _: store.stat("a"),
    "get": lambda store, _: store.get("a"),
    "list": lambda store, _: list(store.list()),
    "put": lambda store, _: store.put("a", b"x-ray"),
    "create": lambda store, _: store.create("a", b"x-ray"),
    "put_file": lambda store, path: store.put_file("a", path),
    "delete": lambda store, _: store.delete("a"),
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_request_follows_a_redirect_to_another_host(
    tmp_path: Path, status: int, operation: str
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(6 << 20)
    config = ONCE.changed(part_bytes=5 << 20)
    with serving(Server(200)) as other:
        location = f"http://127.0.0.1:{other.server_port}/stolen"
        with serving(Server(status, location)) as server:
            store = S3Store("bucket", server.access, config)
            with pytest.raises(StoreError, match=server.access.endpoint):
                OPERATIONS[operation](store, large)
            assert server.paths
    assert other.paths == []


@pytest.mark.parametrize("status", [301, 307])
def test_setting_up_a_store_follows_no_redirect(status: int) -> None:
    with serving(Server(200)) as other:
        location = f"http://127.0.0.1:{other.server_port}/stolen"
        with serving(Server(status, location)) as server:
            with pytest.raises(StoreError, match=server.access.endpoint):
                create_buckets((BucketConfig(name="bucket"),), server.access)
            user = User(policy="p", access_key="name", secret_key="planted-key")
            assert not apply_policies({"p": {}}, (user,), server.access)
    assert other.paths == []


def test_retries_are_bounded_and_name_the_host(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Server(503)) as server, caplog.at_level(logging.WARNING):
        store = S3Store("bucket", server.access, ONCE.changed(retry_total_s=0.3))
        with pytest.raises(StoreUnavailableError, match=server.access.endpoint):
            store.put("a", b"x-ray")
    assert 2 <= len(server.paths) <= 6
    assert f"{server.access.endpoint} failed with" in caplog.text
