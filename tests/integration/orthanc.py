"""A running Orthanc with DICOMweb, and a way to give it files."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.conftest import skip_unless_ci

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def running_orthanc(
    folder: Path, port: int, **settings: object
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an archive on this machine, open to all; its DICOMweb service is at `/dicom-web`.

    Args:
        folder: Folder for its files.
        port: Port of its HTTP server.
        settings: Settings that differ.
    """
    if shutil.which("Orthanc") is None or not _PLUGIN.exists():
        skip_unless_ci("Debian's packages orthanc and orthanc-dicomweb are not installed")
    known = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps({**known, **settings}))
    with (folder / "log").open("wb") as log:
        command = ["Orthanc", str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def store(url: str, data: bytes) -> None:
    """Give a file to the archive."""
    request = urllib.request.Request(f"{url}/instances", data=data, method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        response.read()
