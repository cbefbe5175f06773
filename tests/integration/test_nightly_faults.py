"""A night on MinIO behind a proxy that loses, delays and doubles answers, and other bad luck.

After each fault every X-ray is scored once, with the digest of scores that a clean night has.
"""

import http.client
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chexradinet import store
from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings, Run
from chexradinet.errors import StoreAccessError
from chexradinet.nightly.ledger import open_ledger, read_completion
from chexradinet.nightly.run import nightly
from chexradinet.store import upload_directory
from chexradinet.store.administration import User, apply_policies
from chexradinet.store.s3 import S3Store
from chexradinet.store.uri import access_from_environment
from tests.nightly_world import FINDINGS, SCORING, World, fork, make_world

CONFIG = PlanConfig(
    settle_s=0.0,
    shard_size=3,
    # Alone in its batch, an X-ray has the same scores to the last bit in whatever company.
    results=ResultSettings(quality=QualityConfig(check_inversion=False), batch_size=1),
)
NUM_XRAYS, NUM_KILLS = 6, 20
SECRET = "a-secret-of-tests"  # noqa: S105 - of the test's own server


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_conditional(self) -> bool:
        """Whether it is a conditional write."""
        return self.method == "PUT" and bool({"if-match", "if-none-match"} & set(self.headers))


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Proxy:
    """A server before MinIO; `act` gives a request's answer, or None to end the connection."""

    endpoint: str
    target: str
    act: Callable[["Proxy", Request], Answer | None]
    seen: list[str] = field(default_factory=list)

    def first(self, request: Request) -> bool:
        """Tell whether a path is asked for the first time, and note it."""
        is_new = request.path not in self.seen
        self.seen.append(request.path)
        return is_new

    def ask(self, request: Request) -> Answer:
        """Pass a request on."""
        with closing(http.client.HTTPConnection(self.target, timeout=60)) as connection:
            connection.putrequest(
                request.method, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            found = connection.getresponse()
            kept = {
                name: value
                for name, value in found.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length")
            }
            if request.method == "HEAD":
                kept["Content-Length"] = found.getheader("Content-Length") or "0"
            return Answer(found.status, kept, found.read())


def pass_on(proxy: Proxy, request: Request) -> Answer:
    """Do nothing else."""
    return proxy.ask(request)


def count(proxy: Proxy, request: Request) -> Answer:
    """Note the request."""
    proxy.seen.append(request.path)
    return proxy.ask(request)


def lose(proxy: Proxy, request: Request) -> Answer | None:
    """Lose the answer to each conditional write once, after it was done."""
    answer = proxy.ask(request)
    return None if request.is_conditional and proxy.first(request) else answer


def delay(proxy: Proxy, request: Request) -> Answer:
    """Keep back the answer to each conditional write."""
    answer = proxy.ask(request)
    if request.is_conditional:
        time.sleep(0.05)
    return answer


def double(proxy: Proxy, request: Request) -> Answer:
    """Do each conditional write twice, and give the second answer."""
    if request.is_conditional and proxy.first(request):
        proxy.ask(request)
    return proxy.ask(request)


def change_clock(proxy: Proxy, request: Request) -> Answer:
    """Let the store's clock jump two days ahead and back with every write to the results."""
    answer = proxy.ask(request)
    if "inbox" in request.path:  # what is there keeps the time at which it was written
        return answer
    proxy.seen.append(request.path)
    shift = timedelta(days=2 * (len(proxy.seen) % 3 - 1))

    def shifted(found: "re.Match[bytes]") -> bytes:
        moment = datetime.fromisoformat(found[1].decode()) + shift
        return f"<LastModified>{moment:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>".encode()

    headers = dict(answer.headers)
    if "Last-Modified" in headers:
        moment = parsedate_to_datetime(headers["Last-Modified"]) + shift
        headers["Last-Modified"] = format_datetime(moment, usegmt=True)
    body = re.sub(rb"<LastModified>([^<]*)</LastModified>", shifted, answer.body)
    return Answer(answer.status, headers, body)


@pytest.fixture
def proxy(
    minio_server: SimpleNamespace, use_server: Callable[[SimpleNamespace], None]
) -> Iterator[Proxy]:
    """Return a proxy that the store talks to."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.rfile.read(length))
            found = state.act(state, request)
            if found is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        address = f"127.0.0.1:{server.server_address[1]}"
        state = Proxy(f"http://{address}", minio_server.address, pass_on)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_server(
            SimpleNamespace(
                endpoint=state.endpoint,
                access_key=minio_server.access_key,
                secret_key=minio_server.secret_key,
            )
        )
        yield state
        server.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return X-rays and a model in a folder, and the results of a clean night."""
    torch.set_num_threads(1)
    world = make_world(tmp_path_factory.mktemp("source"), num_png=NUM_XRAYS - 1, num_dicom=1)
    nightly(world.addresses, CONFIG, SCORING, Run(run_id="clean"))
    return world


@pytest.fixture
def world(
    source: World,
    proxy: Proxy,
    new_bucket: Callable[[SimpleNamespace], str],
    minio_server: SimpleNamespace,
    tmp_path: Path,
) -> World:
    """Return the same X-rays and model in a bucket behind the proxy."""
    bucket = f"s3://{new_bucket(minio_server)}"
    for name in ("inbox", "models"):
        shutil.copytree(source.root / name, tmp_path / name)
        upload_directory(tmp_path / name, f"{bucket}/{name}")
    return World(tmp_path, f"{bucket}/results", bucket)


def run(world: World, run_id: str = "test", ttl_s: float = 600.0) -> None:
    """Run a night in this process."""
    nightly(world.addresses, CONFIG, SCORING, Run(run_id=run_id, lease_ttl_s=ttl_s))


def run_until_complete(world: World) -> None:
    """Run nights until the lease of the one before runs out; S3 tells times in whole seconds."""
    deadline = time.monotonic() + 120
    while read_completion(open_ledger(world.results_uri), 1) is None:
        assert time.monotonic() < deadline
        run(world, "next", ttl_s=0.4)
        time.sleep(0.05)


def digest(world: World, number: int = 1) -> str:
    """Return the digest of a plan's scores."""
    completion = read_completion(open_ledger(world.results_uri), number)
    assert completion is not None
    return str(completion["scores_sha256"])


def assert_like_clean(world: World, source: World) -> None:
    """Compare a night's scores with those of the clean one."""
    assert len(world.rows("part-")) == NUM_XRAYS * len(FINDINGS)
    assert digest(world) == digest(source)
    run(world, "again")
    assert read_completion(open_ledger(world.results_uri), 2) is None, "nothing was new"


@pytest.mark.parametrize("act", [pass_on, lose, delay, double, change_clock])
def test_answers_that_are_lost_late_or_doubled_change_no_score(
    world: World, source: World, proxy: Proxy, act: Callable[[Proxy, Request], Answer | None]
) -> None:
    proxy.act = act
    run(world)
    if act is lose:
        assert any(path.endswith("plan.json") for path in proxy.seen)
        assert any(path.endswith("00001.zip") for path in proxy.seen)
    proxy.act = pass_on
    assert_like_clean(world, source)


@pytest.mark.parametrize("allowed", [0, 3, 6, 9])
def test_rights_that_are_withdrawn_in_mid_run_stop_it_and_the_next_one_ends_it(
    world: World,
    source: World,
    proxy: Proxy,
    minio_server: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    allowed: int,
) -> None:
    bucket = world.base_uri.removeprefix("s3://")
    user = User(policy=bucket, access_key=bucket, secret_key=SECRET)
    access = access_from_environment(
        {
            "AWS_ENDPOINT_URL": minio_server.endpoint,
            "AWS_ACCESS_KEY_ID": minio_server.access_key,
            "AWS_SECRET_ACCESS_KEY": minio_server.secret_key,
        }
    )

    def may(*actions: str) -> None:
        """Give the night's user these rights on the server."""
        resources = [f"arn:aws:s3:::{bucket}{end}" for end in ("", "/*")]
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        assert apply_policies({bucket: policy}, (user,), access)

    def withdraw(proxy: Proxy, request: Request) -> Answer | None:
        if request.method == "PUT" and f"/{bucket}/results/" in request.path:
            proxy.seen.append(request.path)
            if len(proxy.seen) == allowed + 1:
                proxy.act = pass_on
                may("s3:ListBucket", "s3:GetObject")
        return proxy.ask(request)

    may("s3:*")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret_key)
    proxy.act = withdraw
    with pytest.raises(StoreAccessError):
        run(world, ttl_s=0.01)  # without rights it cannot give its lease back, which runs out
    assert proxy.act is pass_on
    may("s3:*")
    run_until_complete(world)
    assert_like_clean(world, source)


def test_a_run_that_is_stopped_past_its_lease_repeats_nothing_when_it_wakes(
    world: World, source: World
) -> None:
    child = fork()
    if child == 0:
        code = 1
        try:
            # Connections must not be shared over a fork.
            store._opened.cache_clear()
            create = S3Store.create

            def stopping(store: S3Store, key: str, data: bytes) -> str:
                if key.endswith("00000.zip"):
                    os.kill(os.getpid(), signal.SIGSTOP)
                return create(store, key, data)

            S3Store.create = stopping  # type: ignore[assignment, method-assign]
            run(world, "sleeper", ttl_s=0.4)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    run_until_complete(world)
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert_like_clean(world, source)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_that_is_killed_at_any_request_is_ended_by_the_next_with_the_same_scores(
    world: World, source: World, proxy: Proxy
) -> None:
    clean = World(world.root, f"{world.base_uri}/clean", world.base_uri)
    proxy.act = count
    run(clean)
    num_requests, draw, num_killed = len(proxy.seen), random.Random(20260215), 0
    for point in range(NUM_KILLS):
        torn = World(world.root, f"{world.base_uri}/torn-{point}", world.base_uri)
        last, is_done = draw.randint(1, num_requests), draw.random() < 0.5
        num_killed += _killed_at(torn, proxy, last, is_done)
        run_until_complete(torn)
        assert digest(torn) == digest(source), f"request {last}, done: {is_done}"
        assert len(torn.rows("part-")) == NUM_XRAYS * len(FINDINGS)
    assert num_killed >= NUM_KILLS * 3 // 4


def _killed_at(world: World, proxy: Proxy, last: int, is_done: bool) -> bool:
    """Run a night whose process is killed by its last request; return whether it came to that."""
    proxy.seen.clear()
    child = fork()
    if child == 0:
        try:
            store._opened.cache_clear()
            run(world, ttl_s=0.4)
        finally:
            os._exit(0)

    def kill(proxy: Proxy, request: Request) -> Answer | None:
        proxy.seen.append(request.path)
        if len(proxy.seen) < last:
            return proxy.ask(request)
        if is_done:
            proxy.ask(request)
        os.kill(child, signal.SIGKILL)
        return None

    proxy.act = kill
    _, status = os.waitpid(child, 0)
    proxy.act = pass_on
    return os.WIFSIGNALED(status)


def test_an_object_that_changes_between_listing_and_reading_is_scored_as_it_is_then(
    world: World, proxy: Proxy
) -> None:
    changed = (world.root / "inbox" / "x0001.png").read_bytes()
    other = world.add_png(77, "other.png").read_bytes()
    assert changed != other
    store = open_ledger(f"{world.base_uri}/inbox").store

    def change(proxy: Proxy, request: Request) -> Answer | None:
        if request.method == "GET" and request.path.endswith("x0001.png") and proxy.first(request):
            store.put("inbox/x0001.png", other)
        return proxy.ask(request)

    proxy.act = change
    run(world)
    assert "x0001.png" not in world.scored_keys()
    assert [row["status"] for row in world.table("rejected-")] == ["postponed"]
    run(world, "next")
    assert sorted(world.scored_keys()) == ["d0005.dcm", *(f"x000{n}.png" for n in range(5))]
    for name in ("x0001.png", "other.png"):
        (world.inbox / name).unlink()
    clean = World(world.root, str(world.root / "clean"))
    run(clean, "clean")
    (world.inbox / "x0001.png").write_bytes(other)
    run(clean, "changed")
    assert [digest(world, 1), digest(world, 2)] == [digest(clean, 1), digest(clean, 2)]


def test_one_uid_with_two_contents_in_one_night_is_scored_once(world: World, source: World) -> None:
    again = world.add_dicom(99, "z.dcm", {"SOPInstanceUID": "1.2.3.4.5"}).read_bytes()
    assert again != (world.inbox / "d0005.dcm").read_bytes()
    store = open_ledger(f"{world.base_uri}/inbox").store
    store.put("inbox/z.dcm", again)
    run(world)
    assert digest(world) == digest(source)
    assert [row["object_key"] for row in world.table("rejected-")] == ["z.dcm"]
    # And on another night, under another name.
    store.put("inbox/y.dcm", again)
    run(world, "next")
    assert len(world.scored_keys()) == NUM_XRAYS
    details = {row["object_key"]: row["detail"] for row in world.table("rejected-")}
    assert details["y.dcm"] == "scored in plan 1"
