"""What made a model, beside its data and settings: code, packages, machine.

It lies beside the model as `provenance.json` and is not part of the model's digest: equal weights
and settings are the same model, whichever machine made them.
"""

import hashlib
import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from chexradinet.artifacts import read_document, sha256_of, write_document
from chexradinet.config import digest_of
from chexradinet.config.training import OptimizationConfig
from chexradinet.model.bundle_info import PROVENANCE_FILE
from chexradinet.model.distributed import Ranks
from chexradinet.version import __version__

KIND = "provenance"
SCHEMA = 1
_PACKAGE = Path(__file__).resolve().parents[1]
_PROCESSORS = Path("/proc/cpuinfo")


def provenance(
    stage: str, data_digests: Sequence[str], config: OptimizationConfig
) -> dict[str, Any]:
    """Return what a stage's result comes from on this machine, JSON-ready.

    Args:
        stage: Name of the stage.
        data_digests: Data sets that it read.
        config: Its seed, and its threads, of which 0 stands for torch's own choice.
    """
    return {
        "stage": stage,
        "data_digests": list(data_digests),
        "seed": config.seed,
        **environment(),
        "threads": config.num_threads or torch.get_num_threads(),
        "processes": Ranks.current().size,
    }


def environment() -> dict[str, Any]:
    """Return code, packages and hardware of this process, JSON-ready."""
    on_gpu = torch.cuda.is_available()
    return {
        "code": {"version": __version__, "sha256": _code_digest()},
        "requirements_lock_sha256": _lock_digest(),
        "packages_sha256": _packages_digest(),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "processor": _processor(),
            "accelerator": torch.cuda.get_device_name() if on_gpu else None,
        },
    }


def write_provenance(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the records of all stages that led to a result, the first one first."""
    write_document(folder / PROVENANCE_FILE, KIND, SCHEMA, {"stages": list(records)})


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a bundle or an encoder; none for one of a release without them."""
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return []
    stages: list[dict[str, Any]] = read_document(path, KIND, SCHEMA)["stages"]
    return stages


@cache
def _code_digest() -> str:
    """Return the digest of the package's files, which tells a changed checkout from a release."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def _lock_digest() -> str | None:
    """Return the digest of the checkout's lock; None for an installed package, which has none."""
    path = _PACKAGE.parents[1] / "requirements.lock"
    return sha256_of(path) if path.is_file() else None


@cache
def _packages_digest() -> str:
    """Return the digest of what is installed, names and versions, wherever that came from."""
    return digest_of(sorted({f"{one.name}=={one.version}" for one in distributions()}))


def _processor() -> str:
    if _PROCESSORS.is_file():
        for line in _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
