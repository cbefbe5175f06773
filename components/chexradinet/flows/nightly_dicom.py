"""DICOM results of an X-ray: the one place where the nightly run asks for them.

An X-ray's files lie in a folder of its own, named after its object, so that collecting can take
away those of a duplicate. Their UIDs and bytes follow from the X-ray and the model: a rerun writes
the same files again.
"""

import hashlib
import importlib
import logging
from collections.abc import Callable
from typing import cast

from chexradinet.errors import (
    ConfigError,
    RejectedImageError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.flows.ledger import Ledger, Plan, PlannedImage
from chexradinet.flows.nightly_read import planned_content
from chexradinet.results.scored_case import ScoredCase

WriteResults = Callable[[bytes, ScoredCase], dict[str, bytes]]
"""From the original file and what scoring says of it to files by name."""

_log = logging.getLogger(__name__)


def dicom_folder(ledger: Ledger, date: str, object_key: str) -> str:
    """Return what the keys of an X-ray's DICOM results start with."""
    name = hashlib.sha256(object_key.encode()).hexdigest()[:16]
    return ledger.key("dicom", f"date={date}", name, "")


def write_dicom(ledger: Ledger, plan: Plan, image: PlannedImage, case: ScoredCase) -> int:
    """Write the DICOM results of an X-ray that came as DICOM; return how many files.

    Raises:
        ConfigError: what writes them is not installed.
        StoreError: results cannot be written.
    """
    if not case.sop_uid:
        return 0
    try:
        original = planned_content(plan.inbox_uri, image)
    except (StoreConflictError, StoreNotFoundError, RejectedImageError):
        _log.warning("X-ray %s changed after it was scored: no DICOM results", case.image_key[:12])
        return 0
    files = _writer()(original, case)
    folder = dicom_folder(ledger, plan.date, case.object_key)
    for name, data in sorted(files.items()):
        ledger.store.put(folder + name, data)
    return len(files)


def remove_dicom(ledger: Ledger, date: str, object_key: str) -> None:
    """Take away the DICOM results of an X-ray that turned out to be a duplicate."""
    for info in list(ledger.store.list(dicom_folder(ledger, date, object_key))):
        ledger.store.delete(info.key)


def _writer() -> WriteResults:
    # By name: scoring must also run where highdicom is not installed.
    try:
        module = importlib.import_module("chexradinet.results.dicom_results")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dicom_results is set, and {error.name} is not installed; install it, or switch "
            "dicom_results off"
        ) from error
    return cast(WriteResults, module.write_dicom_results)
