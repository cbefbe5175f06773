"""DICOM results of an X-ray: the one place where the nightly run asks for them.

An X-ray's files lie in a folder of its own, named after its plan and its object, so that collecting
can take away those of an X-ray without scores, and never those of another plan. Their UIDs and
bytes follow from the X-ray and the model: a rerun writes the same files again.
"""

import hashlib
import logging
from collections.abc import Iterable

from chexradinet.dicom_results.cases import ScoredCase, ScoringModel
from chexradinet.errors import (
    ConfigError,
    DicomResultError,
    RejectedImageError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.nightly.history import PlanHead
from chexradinet.nightly.ledger import Ledger, Plan, PlannedImage
from chexradinet.nightly.model import NightModel
from chexradinet.nightly.read import planned_content
from chexradinet.nightly.records import NightCase, urgency
from chexradinet.version import __version__

_log = logging.getLogger(__name__)


def dicom_folder(ledger: Ledger, plan: Plan, object_key: str) -> str:
    """Return what the keys of an X-ray's DICOM results start with."""
    return (
        ledger.key(dicom_start(plan)) + hashlib.sha256(object_key.encode()).hexdigest()[:16] + "/"
    )


def write_dicom(
    ledger: Ledger, plan: Plan, image: PlannedImage, scored: tuple[NightCase, NightModel]
) -> int:
    """Write the DICOM results of an X-ray that came as DICOM; return how many files.

    An X-ray that changed since it was scored, or that names no instance, has none.

    Raises:
        ConfigError: what writes them is not installed.
        StoreError: results cannot be written.
    """
    case, model = scored
    if not case.xray.sop_uid:
        return 0
    try:
        content = planned_content(plan.inbox_uri, image)
        files = _files(content, image, case, model)
    except (StoreConflictError, StoreNotFoundError, RejectedImageError, DicomResultError) as error:
        _log.warning(
            "no DICOM results of X-ray %s: %s", case.xray.image_key[:12], type(error).__name__
        )
        return 0
    folder = dicom_folder(ledger, plan, case.xray.object_key)
    for name, data in sorted(files.items()):
        ledger.store.put(folder + name, data)
    return len(files)


def keep_dicom(ledger: Ledger, plan: Plan, object_keys: Iterable[str]) -> None:
    """Take away a plan's DICOM results but for those of these X-rays.

    Others are of duplicates, and of X-rays that a killed run wrote them for and that changed or
    vanished before they were scored again.
    """
    kept = {dicom_folder(ledger, plan, key) for key in object_keys}
    for info in list(ledger.store.list(ledger.key(dicom_start(plan)))):
        if f"{info.key.rpartition('/')[0]}/" not in kept:
            ledger.store.delete(info.key)


def dicom_start(plan: Plan | PlanHead) -> str:
    """Return what the names of all DICOM results of a plan start with, below the results."""
    return f"dicom/date={plan.date}/{plan.number:06d}-"


def _files(
    content: bytes, image: PlannedImage, case: NightCase, model: NightModel
) -> dict[str, bytes]:
    try:
        # Here, not above: scoring must also run where these are not installed.
        from chexradinet.dicom.file import open_dicom
        from chexradinet.dicom.reader import read_radiograph
        from chexradinet.dicom_results.results import write_dicom_results
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dicom_results is set, and {error.name} is not installed; install it, or switch "
            "dicom_results off"
        ) from error
    found = urgency(case, model.settings)
    first = None if found is None else found[1]
    written = write_dicom_results(
        open_dicom(content).dataset,
        ScoredCase(
            pixels=read_radiograph(content, model.info.preprocessing.dicom).pixels,
            geometry=case.xray.geometry,
            model_side_px=case.xray.pixels.shape[0],
            heatmap=None if first is None else first.heatmap,
            heatmap_finding="" if first is None else first.name,
            findings=case.findings,
            model=ScoringModel(
                bundle_digest=model.digest,
                preprocessing_digest=model.info.preprocessing_digest,
                round=model.info.round,
                software_version=__version__,
            ),
            content_at=image.arrived,
            quality_notes=case.xray.quality,
            out_of_distribution=case.out_of_distribution,
            out_of_distribution_score=case.ood_score,
        ),
    )
    return {
        f"{written.structured_report_uid}.dcm": written.structured_report,
        f"{written.secondary_capture_uid}.dcm": written.secondary_capture,
    }
