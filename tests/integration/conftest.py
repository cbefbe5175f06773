"""Real servers for tests: MinIO on the loopback interface, with its data in a temporary folder."""

import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from minio import Minio
from numpy.typing import NDArray

from chexradinet.store import open_store
from chexradinet.store.protocol import ObjectStore

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / ".tools"
MINIO_MODULE = "github.com/minio/minio@latest"


def skip_unless_ci(reason: str) -> None:
    """Skip the test, or fail it where CI must not pass over it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI must not skip this test")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def minio_binary() -> str:
    """Return the path of a MinIO server, built from source where there is none."""
    found = shutil.which("minio") or shutil.which("minio", path=str(TOOLS))
    if found is None and shutil.which("go"):
        environment = {**os.environ, "GOBIN": str(TOOLS)}
        subprocess.run(["go", "install", MINIO_MODULE], env=environment, check=True)
        found = shutil.which("minio", path=str(TOOLS))
    if found is None:
        skip_unless_ci("neither minio nor go, which builds it, is on the PATH")
    return str(found)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a function that finds a loopback port nobody listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def wait_until_up() -> Callable[..., None]:
    """Return a function that waits until a URL answers, or fails when its process ends."""

    def wait(
        url: str, process: "subprocess.Popen[bytes]", context: ssl.SSLContext | None = None
    ) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5, context=context):  # noqa: S310 (loopback)
                    return
            except OSError:
                time.sleep(0.05)
        pytest.fail(f"{process.args!r} does not answer at {url}")

    return wait


@pytest.fixture(scope="session")
def start_minio(
    minio_binary: str,
    free_port: Callable[[], int],
    wait_until_up: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., SimpleNamespace]]:
    """Return a function that starts a server of one's own, over TLS with a folder of certificates.

    What it returns has `endpoint` (a URL), `address`, `access_key`, `secret_key`, and the functions
    `kill` and `start`, which keep address and data.
    """
    started: list[SimpleNamespace] = []

    def make(
        certificates: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp("minio")
        server = SimpleNamespace(
            address=f"127.0.0.1:{free_port()}",
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_hex(20),
            over=False,
        )
        server.endpoint = f"{'https' if certificates else 'http'}://{server.address}"
        context = ssl.create_default_context(cafile=certificates and certificates / "public.crt")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MINIO_ROOT_USER": server.access_key,
            "MINIO_ROOT_PASSWORD": server.secret_key,
            "MINIO_BROWSER": "off",
            **(settings or {}),
        }
        command = [minio_binary, "server", "--quiet", "--address", server.address]
        command += ["--certs-dir", str(certificates or folder / "none"), f"{folder}/data"]

        def start() -> None:
            if server.over:  # a test that failed left a timer behind
                return
            with (folder / "log").open("ab") as log:
                server.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            # Not /live: what is asked between live and ready may hang for a minute.
            wait_until_up(f"{server.endpoint}/minio/health/cluster", server.process, context)

        def kill() -> None:
            server.process.kill()
            server.process.wait()

        server.start, server.kill = start, kill
        started.append(server)
        start()
        return server

    yield make
    for server in started:
        server.over = True
        server.kill()


@pytest.fixture(scope="session")
def minio_server(start_minio: Callable[[], SimpleNamespace]) -> SimpleNamespace:
    """Return the server that tests share: `endpoint`, `access_key`, `secret_key`."""
    return start_minio()


@pytest.fixture
def use_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[SimpleNamespace], None]:
    """Return a function that points this process, and those it starts, to a server."""

    def use(server: SimpleNamespace) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        for name in (
            "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE",
        ):  # fmt: skip
            monkeypatch.delenv(name, raising=False)

    return use


@pytest.fixture
def new_bucket() -> Callable[[SimpleNamespace], str]:
    """Return a function that makes an empty bucket on a server and returns its name."""

    def make(server: SimpleNamespace) -> str:
        name = f"test-{secrets.token_hex(6)}"
        client = Minio(
            server.address, server.access_key, server.secret_key, secure=False, region="us-east-1"
        )
        client.make_bucket(name)
        return name

    return make


@pytest.fixture
def s3_uri(
    minio_server: SimpleNamespace,
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
) -> str:
    """Return the URI of an empty bucket; the `AWS_…` variables lead to it during the test."""
    use_server(minio_server)
    return f"s3://{new_bucket(minio_server)}"


@pytest.fixture
def client(minio_server: SimpleNamespace) -> Minio:
    """Return a bare client with all rights on the shared server."""
    server = minio_server
    return Minio(
        server.address, server.access_key, server.secret_key, secure=False, region="us-east-1"
    )


@pytest.fixture(params=["directory", "minio"])
def folder_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an empty folder with an awkward name, in either store."""
    root = str(tmp_path) if request.param == "directory" else request.getfixturevalue("s3_uri")
    return f"{root}/the inbox é"


@pytest.fixture
def store(folder_uri: str) -> ObjectStore:
    """Return either store."""
    return open_store(folder_uri)[0]


@pytest.fixture(scope="session")
def dcmtk() -> Callable[..., None]:
    """Return a function that runs a program of DCMTK, given as its words."""
    if shutil.which("dcm2pnm") is None:
        skip_unless_ci("DCMTK is not installed: apt-get install dcmtk")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def scene() -> Callable[..., NDArray[np.integer]]:
    """Return a function that draws a smooth 12-bit scene with noise.

    Its sides are odd, so that padding bytes are needed; 8-bit scenes keep the upper bits.
    """

    def draw(dtype: type, rows: int = 67, columns: int = 51) -> NDArray[np.integer]:
        row, column = np.mgrid[0:rows, 0:columns]
        noise = np.random.default_rng(3).normal(0, 12, row.shape)
        values = np.clip(2048 + 1700 * np.sin(column / 9) * np.cos(row / 7) + noise, 0, 4095)
        if dtype is np.uint8:
            return np.asarray(values / 16, dtype=np.uint8)
        offset = 2048 if dtype is np.int16 else 0
        return np.asarray(values - offset, dtype=dtype)

    return draw


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory, tool: Callable[[str, str], str]) -> Path:
    """Return a certificate for this machine with its key in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    openssl = tool("openssl", "install Debian's package openssl")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


@pytest.fixture(scope="session")
def receiver(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int], certificate: Path
) -> Iterator[SimpleNamespace]:
    """Return a running Orthanc that takes X-rays by C-STORE and speaks DICOMweb over TLS."""
    from tests.integration.receiver import running_receiver  # which needs this module

    with running_receiver(tmp_path_factory.mktemp("orthanc"), free_port, certificate) as server:
        yield server


@pytest.fixture
def trusted(receiver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the receiver, with the environment that lets us in."""
    monkeypatch.delenv("DICOMWEB_TOKEN", raising=False)
    monkeypatch.setenv("DICOMWEB_USER", receiver.user)
    monkeypatch.setenv("DICOMWEB_PASSWORD", receiver.password)
    monkeypatch.setenv("DICOMWEB_CA_BUNDLE", str(receiver.certificate))
    return receiver
