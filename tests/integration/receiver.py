"""Debian's Orthanc with the settings of `manifests/options/orthanc`, behind TLS."""

import contextlib
import json
import secrets
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.orthanc import running_orthanc

OPTION = Path(__file__).resolve().parents[2] / "manifests" / "options" / "orthanc"
OF_THE_MACHINE = {"StorageDirectory", "IndexDirectory", "HttpPort", "SslCertificate", "Plugins"}


@contextlib.contextmanager
def running_receiver(
    folder: Path, free_port: Callable[[], int], certificate: Path
) -> Iterator[SimpleNamespace]:
    """Run the receiver; yield its addresses and credentials.

    Only what depends on the machine differs from the shipped settings: folders, ports, and TLS.
    """
    port, dicom_port, password = free_port(), free_port(), secrets.token_hex(8)
    shipped = json.loads((OPTION / "orthanc.json").read_text("utf-8"))
    settings = {
        **{name: value for name, value in shipped.items() if name not in OF_THE_MACHINE},
        "DicomServerEnabled": True,
        "DicomPort": dicom_port,
        "RegisteredUsers": {"u": password},
        "SslEnabled": False,  # Orthanc 1.10 of Debian 12 crashes if it is to speak TLS itself
        "LuaScripts": [str(OPTION / "dicomweb-only.lua")],
    }
    with running_orthanc(folder, port, **settings) as process:
        for each in (port, dicom_port):
            wait_until_listening(each, process)
        with behind_tls(port, certificate) as secure_port:
            yield SimpleNamespace(
                uri=f"dicomweb+https://127.0.0.1:{secure_port}/dicom-web",
                url=f"https://127.0.0.1:{secure_port}/dicom-web",
                dicom_port=dicom_port,
                user="u",
                password=password,
                certificate=certificate,
            )


def passed_on(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def behind_tls(port: int, certificate: Path) -> Iterator[int]:
    """Speak TLS in front of a port, as a gateway does; yield its own port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Gateway(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection(("127.0.0.1", port)) as server,
            ):
                back = threading.Thread(target=passed_on, args=(server, client), daemon=True)
                back.start()
                passed_on(client, server)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Gateway) as gateway:
        gateway.daemon_threads = True
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        yield int(gateway.server_address[1])
        gateway.shutdown()


def wait_until_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server takes connections; without credentials it answers nothing else."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"{process.args!r} does not listen on port {port}")
