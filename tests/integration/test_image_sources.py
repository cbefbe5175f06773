"""What the worker image is made from, and how it is built: without building it."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chexradinet.config.parameters import WORKER_IMAGE
from images.build import (
    NAME,
    BuildError,
    build_environment,
    certificates,
    command_line,
    find_engine,
    image_labels,
)

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = REPOSITORY / "images" / "worker"


def _locked(path: Path) -> dict[str, str]:
    """Return the text of each requirement with its hashes, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z0-9_.-]+)==", line):
            name = match[1]
        found[name] = found.get(name, "") + line + "\n"
    return found


def _fake_engine(folder: Path, name: str, status: int = 0) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {status}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("lock", ["requirements.lock", "kfp.lock"])
def test_the_image_holds_no_version_that_the_tests_do_not_run_with(lock: str) -> None:
    everything = _locked(REPOSITORY / "requirements.lock")
    image = _locked(WORKER / lock)
    assert image
    assert {name: everything.get(name) for name in image} == image


def test_the_image_holds_no_development_tool() -> None:
    image = _locked(WORKER / "requirements.lock")
    assert not {"pytest", "ruff", "mypy", "kfp", "uv", "pip"} & set(image)
    assert {"torch", "pyradiomics", "minio", "requests", "kubernetes"} <= set(image)


@pytest.mark.parametrize("lock", sorted(WORKER.glob("*.lock")), ids=lambda path: path.name)
def test_every_locked_requirement_has_a_hash(lock: Path) -> None:
    for name, text in _locked(lock).items():
        assert "--hash=sha256:" in text, name


def test_pyradiomics_is_built_against_the_numpy_that_it_runs_with() -> None:
    tools, image = (
        _locked(WORKER / "build-requirements.lock"),
        _locked(WORKER / "requirements.lock"),
    )
    assert tools["numpy"] == image["numpy"]


def test_one_name_everywhere() -> None:
    assert WORKER_IMAGE.split(":")[0].rpartition("/")[2] == NAME
    named = [
        match
        for path in sorted((REPOSITORY / "manifests").rglob("*.yaml"))
        for match in re.findall(r"chexradinet-worker[a-z-]*", path.read_text(encoding="utf-8"))
    ]
    assert named
    assert set(named) == {NAME}


def test_nothing_of_the_build_names_a_package_index() -> None:
    for path in WORKER.iterdir():
        assert not re.search(r"https?://", path.read_text(encoding="utf-8")), path.name


def test_index_and_proxy_reach_the_build_and_paths_of_this_machine_do_not() -> None:
    environment = {
        "PIP_INDEX_URL": "https://index.example.org/simple?a=1&b=2",
        "UV_HTTP_TIMEOUT": "60",
        "https_proxy": "http://proxy.example.org:3128",
        "PIP_FIND_LINKS": "/opt/wheels",
        "UV_CACHE_DIR": "cache",
        "AWS_SECRET_ACCESS_KEY": "not for the build",
    }
    assert build_environment(environment).splitlines() == [
        "PIP_INDEX_URL='https://index.example.org/simple?a=1&b=2'",
        "UV_HTTP_TIMEOUT=60",
        "https_proxy=http://proxy.example.org:3128",
    ]


def test_certificates_are_passed_as_a_secret(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    environment = {"PIP_CERT": "/nowhere.pem", "SSL_CERT_FILE": str(bundle)}
    assert certificates(environment) == bundle
    assert "SSL_CERT_FILE=/run/secrets/certificates\n" in build_environment(environment)
    assert certificates({}) is None
    assert build_environment({}) == ""


def test_a_docker_client_without_a_daemon_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="install one"):
        find_engine()
    _fake_engine(tmp_path, "buildah")
    _fake_engine(tmp_path, "docker", status=1)
    assert find_engine() == "buildah"
    _fake_engine(tmp_path, "docker")
    assert find_engine() == "docker"
    with pytest.raises(BuildError, match="podman is not on the PATH"):
        find_engine("podman")


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_the_command_of_each_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_BUILD_OPTIONS", "--network 'host'")
    secrets = {"certificates": Path("/etc/bundle.pem")}
    arguments = {"FLAVOR": "gpu", "SOURCE_DATE_EPOCH": "315532800"}
    command = command_line(engine, ("name:1", {"revision": "abc"}), arguments, secrets)
    assert command[:6] == [engine, "build", "--file", "images/worker/Dockerfile", "--tag", "name:1"]
    assert command[6] == "--label=revision=abc"
    assert command[-5:] == [
        "--secret", "id=certificates,src=/etc/bundle.pem", "--network", "host", ".",
    ]  # fmt: skip
    assert ("--timestamp" in command) == (engine != "docker")


def test_a_failed_build_is_said_in_one_line(tmp_path: Path) -> None:
    _fake_engine(tmp_path, "podman", status=3)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "images" / "build.py"), "--engine", "podman"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"images: podman ended with status 3 and did not build {WORKER_IMAGE}; "
        "the end of its output says why\n"
    )


def test_the_base_image_is_pinned_by_its_digest() -> None:
    text = (WORKER / "Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", text, re.MULTILINE)
    assert re.fullmatch(r"debian:12\.\d+-slim@sha256:[0-9a-f]{64}", base)
    names = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= names | {"${BASE_IMAGE}"}


def test_the_licence_label_names_nvidias_where_cuda_is_inside() -> None:
    label = "org.opencontainers.image.licenses"
    assert image_labels("cpu")[label] == "Apache-2.0"
    assert image_labels("gpu")[label] == "Apache-2.0 AND LicenseRef-NVIDIA-Proprietary"
    worker = _locked(WORKER / "requirements.lock")
    assert any(name.startswith("nvidia-") for name in worker)
