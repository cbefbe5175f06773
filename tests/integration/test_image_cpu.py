"""The CPU flavour of the worker image, built with stand-ins for the CPU wheels of torch.

The real wheels are on a package index of their own. What is tested is the way there: that the lock
is asked for, that its hashes are held, that torch and torchvision come from that index together,
and that nothing of CUDA gets in.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from images.build import NAME, ROOT, BuildError, find_engine
from tests.serving import serving

pytestmark = [pytest.mark.image, pytest.mark.slow]

TAG = f"{NAME}:0.0.0-cpu"
WHEELS = {"torch": "2.14.0+cpu", "torchvision": "0.29.0+cpu"}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _write_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel that can be imported, and the index page that leads to it."""
    page = folder / "simple" / name
    page.mkdir(parents=True)
    file = f"{name}-{version}-cp311-cp311-manylinux_2_28_x86_64.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(page / file, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"__version__ = '{version}'\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        tag = "cp311-cp311-manylinux_2_28_x86_64"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256((page / file).read_bytes()).hexdigest()
    link = f'<a href="{file.replace("+", "%2B")}#sha256={digest}">{file}</a>'
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")


@pytest.fixture
def torch_index(tmp_path: Path) -> Iterator[str]:
    """Serve stand-ins for the CPU wheels; return the address of their index."""
    for name, version in WHEELS.items():
        _write_wheel(tmp_path / "index", name, version)
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "index"))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/simple"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the build reads, under a version that no one else builds."""
    if "host" not in os.environ.get("CONTAINER_BUILD_OPTIONS", ""):
        pytest.skip("the build must reach this machine: CONTAINER_BUILD_OPTIONS='--network host'")
    try:
        find_engine(os.environ.get("CONTAINER_BUILDER", ""))
    except BuildError as error:
        pytest.skip(str(error))
    copy = tmp_path / "checkout"
    for name in ("components", "images"):
        ignored = shutil.ignore_patterns("__pycache__", "torch-cpu.lock")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("README.md", "LICENSE", "requirements.lock"):
        shutil.copy(ROOT / name, copy / name)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (copy / "pyproject.toml").write_text(
        "\n".join(
            'version = "0.0.0"' if line.startswith("version = ") else line
            for line in project.splitlines()
        ),
        encoding="utf-8",
    )
    return copy


def _build(checkout: Path, torch_index: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "images/build.py", "--flavor", "cpu", "--torch-index", torch_index]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def _write_lock(checkout: Path, torch_index: str) -> Path:
    """Write the lock of the CPU wheels with the recipe of `make lock-torch-cpu`."""
    shutil.copy(ROOT / "Makefile", checkout / "Makefile")
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run(
        ["make", "lock-torch-cpu", f"TORCH_INDEX={torch_index}", "-o", ".venv/.ready"],
        cwd=checkout,
        check=True,
        capture_output=True,
    )
    return checkout / "images" / "worker" / "torch-cpu.lock"


def test_the_cpu_flavour_holds_the_locked_torch_of_its_index_and_no_cuda(
    checkout: Path, torch_index: str
) -> None:
    refused = _build(checkout, torch_index)
    assert refused.returncode == 1
    assert "make lock-torch-cpu TORCH_INDEX=" in refused.stderr + refused.stdout

    lock = _write_lock(checkout, torch_index)
    text = lock.read_text(encoding="utf-8")
    assert [line.split()[0] for line in text.splitlines() if "==" in line] == [
        f"{name}=={version}" for name, version in WHEELS.items()
    ]
    digest = text.partition("sha256:")[2][:64]
    lock.write_text(text.replace(digest, digest[::-1]), encoding="utf-8")
    refused = _build(checkout, torch_index)
    assert refused.returncode == 1, "a wheel of another hash was accepted"

    lock.write_text(text, encoding="utf-8")
    built = _build(checkout, torch_index)
    assert built.returncode == 0, built.stderr[-2000:]
    listed = _installed()
    assert {"torch-2.14.0+cpu", "torchvision-0.29.0+cpu", "pyradiomics-3.0.1"} <= listed
    assert "chexradinet-0.0.0" in listed
    assert not [name for name in listed if name.startswith(("nvidia", "cuda", "triton"))]


def _installed() -> set[str]:
    """Return the distributions of the built image, and remove the image."""
    engine = find_engine(os.environ.get("CONTAINER_BUILDER", ""))
    run = "podman" if engine == "buildah" else engine
    mount = ["create", TAG] if run == "docker" else ["create", "--name", "cpu-flavour", TAG]
    container = subprocess.run([run, *mount], capture_output=True, text=True, check=True).stdout
    try:
        packed = subprocess.run(
            [run, "export", container.strip()], capture_output=True, check=True
        ).stdout
    finally:
        subprocess.run([run, "rm", container.strip()], capture_output=True, check=True)
        subprocess.run([run, "rmi", TAG], capture_output=True, check=True)
    names = subprocess.run(
        ["tar", "--list"], input=packed, capture_output=True, check=True
    ).stdout.decode()
    return {
        part.removesuffix(".dist-info")
        for line in names.splitlines()
        for part in line.split("/")
        if part.endswith(".dist-info")
    }
