"""A proxy in front of a store that notes who asked for what and what the store answered."""

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.serving import serving

_USER = re.compile(r"Credential=([^/]+)/")
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Request(NamedTuple):
    """A request that reached the store."""

    user: str
    method: str
    path: str
    status: int


class Proxy(ThreadingHTTPServer):
    """Hands each request on as it is, so that its signature still fits."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = address
        self.requests: list[Request] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def denied(self) -> list[Request]:
        """Return the requests that the store refused for want of rights."""
        return [request for request in self.requests if request.status in (401, 403)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        upstream = http.client.HTTPConnection(self.server.address, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        data = answer.read()
        user = _USER.search(self.headers.get("Authorization", ""))
        self.server.requests.append(
            Request(user[1] if user else "", self.command, self.path, answer.status)
        )
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        known = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", known or str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def recording(address: str) -> Iterator[Proxy]:
    """Yield a running proxy to a server at `host:port`."""
    with serving(Proxy(address)) as proxy:
        yield proxy
