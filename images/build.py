"""Build the worker image with docker, podman or buildah, whichever is there.

`python3 images/build.py [--flavor cpu --torch-index URL]`. The machine's package index, proxy and
certificates reach the build as secrets: no layer holds them.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "chexradinet-worker-python"
"""'python' is in it because kfp's local runner warns about every image without."""

ENGINES = ("docker", "podman", "buildah")
_PASSED_ON = re.compile(r"(PIP|UV)_[A-Z_]+|(https?|no)_proxy", re.IGNORECASE)
_OWN_BUSINESS = re.compile(
    r"(PIP|UV)_(CERT|CACHE_DIR|LINK_MODE|PYTHON.*|PROJECT.*|REQUIRE.*|.*VENV)"
)
_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_LICENSES = {"cpu": "Apache-2.0", "gpu": "Apache-2.0 AND LicenseRef-NVIDIA-Proprietary"}
"""SPDX expression by flavour: the project's own, and NVIDIA's for the CUDA libraries."""
_WITHOUT_HISTORY = 315532800
"""1980-01-01, the first day of the zip format."""


class BuildError(Exception):
    """The image cannot be built; the message says what to do."""


def find_engine(wanted: str = "") -> str:
    """Return the program to build with: the wanted one, or the first that works.

    Raises:
        BuildError: there is none.
    """
    if wanted:
        if not shutil.which(wanted):
            raise BuildError(f"{wanted} is not on the PATH; install it or name another: {ENGINES}")
        return wanted
    for engine in ENGINES:
        if shutil.which(engine) and (engine != "docker" or _succeeds(["docker", "info"])):
            return engine
    raise BuildError("none of docker (with its daemon), podman and buildah works; install one")


def build_environment(environment: Mapping[str, str]) -> str:
    """Return the lines of shell that give the build this machine's index, proxy and options.

    Values that are paths on this machine mean nothing in the build and are left out.
    """
    chosen = {
        name: value
        for name, value in environment.items()
        if _PASSED_ON.fullmatch(name)
        and not _OWN_BUSINESS.fullmatch(name)
        and not value.startswith("/")
    }
    if certificates(environment):
        chosen |= dict.fromkeys(_CERTIFICATES, "/run/secrets/certificates")
    return "".join(f"{name}={shlex.quote(chosen[name])}\n" for name in sorted(chosen))


def certificates(environment: Mapping[str, str]) -> Path | None:
    """Return the file of certificates that this machine's package clients trust, if one is set."""
    for name in _CERTIFICATES:
        path = Path(environment.get(name, ""))
        if path.is_file():
            return path
    return None


def build_arguments(flavor: str, torch_index: str) -> dict[str, str]:
    """Return the build arguments: flavour, and a time that does not depend on the clock."""
    return {
        "FLAVOR": flavor,
        "TORCH_INDEX": torch_index,
        "SOURCE_DATE_EPOCH": source_date_epoch(os.environ),
    }


def image_labels(flavor: str) -> dict[str, str]:
    """Return the labels that say what was built; the others stand in the Dockerfile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    standard = {
        "version": project["version"],
        "revision": _git("describe", "--always", "--abbrev=40", "--dirty") or "unknown",
        "created": _git("log", "-1", "--format=%cI") or "1980-01-01T00:00:00Z",
        "licenses": _LICENSES[flavor],
    }
    named = {f"org.opencontainers.image.{name}": value for name, value in standard.items()}
    return {**named, "io.chexradinet.flavor": flavor}


def source_date_epoch(environment: Mapping[str, str]) -> str:
    """Return the time of all files in the image: when the locked dependencies last changed.

    So layers of dependencies are equal, byte for byte, from one commit to the next.
    """
    given = environment.get("SOURCE_DATE_EPOCH")
    return (
        given or _git("log", "-1", "--format=%ct", "--", "images/worker") or str(_WITHOUT_HISTORY)
    )


def command_line(
    engine: str,
    described: tuple[str, Mapping[str, str]],
    arguments: Mapping[str, str],
    secrets: Mapping[str, Path],
) -> list[str]:
    """Return an engine's build command; docker finds the ignore file and the time by itself."""
    tag, labels = described
    command = [engine, "build", "--file", "images/worker/Dockerfile", "--tag", tag]
    command += [f"--label={name}={value}" for name, value in labels.items()]
    if engine != "docker":
        command += ["--format", "oci", "--layers", "--timestamp", arguments["SOURCE_DATE_EPOCH"]]
        command += ["--ignorefile", "images/worker/Dockerfile.dockerignore"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, path in secrets.items():
        command += ["--secret", f"id={name},src={path}"]
    return [*command, *shlex.split(os.environ.get("CONTAINER_BUILD_OPTIONS", "")), "."]


def build(engine: str, flavor: str, torch_index: str) -> str:
    """Build the image and return its tag.

    Raises:
        BuildError: the engine failed; its own output says why.
    """
    labels = image_labels(flavor)
    version = labels["org.opencontainers.image.version"]
    tag = f"{NAME}:{version}" + ("" if flavor == "gpu" else f"-{flavor}")
    arguments = build_arguments(flavor, torch_index)
    with tempfile.TemporaryDirectory() as folder:
        secrets = {"build-environment": Path(folder) / "build-environment"}
        secrets["build-environment"].write_text(build_environment(os.environ), encoding="utf-8")
        trusted = certificates(os.environ)
        if trusted:
            secrets["certificates"] = trusted
        command = command_line(engine, (tag, labels), arguments, secrets)
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            # A negative status is a signal, and then the engine could not say anything.
            raise BuildError(
                f"{engine} ended with status {status} and did not build {tag}; the end of its "
                "output says why"
            )
    return tag


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the worker image.")
    parser.add_argument("--engine", default=os.environ.get("CONTAINER_BUILDER", ""))
    parser.add_argument("--flavor", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--torch-index", default="", help="package index with CPU wheels of torch")
    given = parser.parse_args()
    try:
        engine = find_engine(given.engine)
        tag = build(engine, given.flavor, given.torch_index)
    except BuildError as error:
        sys.stderr.write(f"images: {error}\n")
        return 1
    sys.stdout.write(f"built {tag} with {engine}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
