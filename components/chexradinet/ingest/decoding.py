"""One file of a source to model pixels and what is known of it, or to the reason why not.

Runs in worker processes. What comes out of a DICOM header is coded here already, so that no
identifier leaves the worker.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.dataset.deidentification import (
    DeidentificationKey,
    coarse_age,
    coded,
    deidentification_key,
    deidentified_ids,
)
from chexradinet.dataset.geometry import fit_to_model
from chexradinet.dataset.images import pixel_digest, read_image
from chexradinet.dataset.labels.header_table import HeaderRow
from chexradinet.errors import RejectedImageError
from chexradinet.ingest.sources import DICOM_SUFFIXES, Source
from chexradinet.records import Geometry, View
from chexradinet.unforeseen import refusing_faults

if TYPE_CHECKING:
    from chexradinet.records import RadiographHeader

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is kept of one X-ray beside its pixels."""

    digest: str
    """SHA-256 of the original pixels."""
    geometry: Geometry
    image_id: str = ""
    """Code of the SOP Instance UID, or of the pixels where a header has none; empty without one."""
    patient_id: str = ""
    """Code; empty without a header."""
    study_id: str = ""
    """Code; empty without a header."""
    view: View = View.UNKNOWN
    """From the header, like age and sex: what a table leaves open."""
    age: float | None = None
    sex: str = ""
    header: HeaderRow | None = None
    """None for files that are not DICOM."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; `facts_of` reads them back."""
        return asdict(self)


def facts_of(values: Mapping[str, Any]) -> Facts:
    """Read what `Facts.as_dict` returned."""
    header = values["header"]
    return Facts(
        **{
            **values,
            "geometry": Geometry(**values["geometry"]),
            "view": View(values["view"]),
            "header": None if header is None else HeaderRow(**header),
        }
    )


@dataclass(frozen=True, slots=True)
class Decoded:
    """One X-ray, ready for the data set."""

    facts: Facts
    pixels: NDArray[np.uint8] | None
    """Model pixels, shape (S, S); None where a finished shard holds them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One file that is no X-ray for the data set; returned, not raised, as it crosses processes."""

    reason: str
    """A value of `RejectReason`."""
    detail: str
    """What was wrong, without patient data."""
    image_id: str = ""
    """Code of the SOP Instance UID, where the header was read."""


Outcome = Decoded | Refused | RejectedImageError
"""An X-ray, or why it is none; an error only of a file that killed the process it was read in."""
Decode = Callable[[str], Outcome]
"""From a file of the source to its outcome; picklable."""


def decoder(source: Source, config: IngestConfig, key: DeidentificationKey | None) -> Decode:
    """Return what decodes one file of a source.

    Args:
        source: Where files are read from.
        config: How.
        key: Makes codes; only DICOM files need it.
    """
    return partial(_decode, source, config, key)


def is_dicom(file: str, content: bytes, config: IngestConfig) -> bool:
    """Tell whether a file is to be read as DICOM: by its suffix, and anyhow in a DICOM source."""
    if file.casefold().endswith(DICOM_SUFFIXES):
        return True
    return config.format is SourceFormat.DICOM and not content.startswith(_PICTURES)


def _decode(
    source: Source, config: IngestConfig, key: DeidentificationKey | None, file: str
) -> Outcome:
    try:
        content = source.read(file)
        with refusing_faults():
            if is_dicom(file, content, config):
                return _decode_dicom(content, config, key or deidentification_key())
            return _decode_picture(content, config)
    except RejectedImageError as error:
        return Refused(error.reason, error.detail)


def _decode_picture(content: bytes, config: IngestConfig) -> Decoded:
    original = read_image(io.BytesIO(content))
    pixels, geometry = fit_to_model(original, config.preprocessing)
    facts = Facts(digest=pixel_digest(original), geometry=geometry)
    return Decoded(facts, pixels.astype(np.uint8, copy=False))


def _decode_dicom(
    content: bytes, config: IngestConfig, key: DeidentificationKey
) -> Decoded | Refused:
    seen: list[RadiographHeader] = []
    try:
        return _radiograph(content, config, key, seen.append)
    except RejectedImageError as error:
        uids = [header.sop_instance_uid for header in seen if header.sop_instance_uid]
        image_id = coded(key, "image", uids[0]) if uids else ""
        return Refused(error.reason, error.detail, image_id)


def _radiograph(
    content: bytes,
    config: IngestConfig,
    key: DeidentificationKey,
    note: "Callable[[RadiographHeader], None]",
) -> Decoded:
    # Here, so that folders of PNG and JPEG are read where pydicom is absent.
    from chexradinet.dataset.quality import Verdict, gate, gate_header
    from chexradinet.dicom.reader import read_radiograph, to_model

    def refuse(verdict: Verdict) -> None:
        if verdict.reason is not None:
            raise RejectedImageError(verdict.reason, verdict.detail)

    def judge(header: "RadiographHeader") -> None:
        note(header)
        refuse(gate_header(header, config.quality))

    radiograph = read_radiograph(content, config.preprocessing.dicom, judge)
    verdict = gate(radiograph.header, radiograph.pixels, config.quality)
    refuse(verdict)
    pixels, geometry = to_model(radiograph, config.preprocessing)
    digest = pixel_digest(radiograph.pixels)
    return Decoded(_facts(radiograph.header, verdict.flags, (digest, geometry), key), pixels)


def _facts(
    header: "RadiographHeader",
    flags: tuple[str, ...],
    image: tuple[str, Geometry],
    key: DeidentificationKey,
) -> Facts:
    digest, geometry = image
    if not header.sop_instance_uid:
        header = replace(header, sop_instance_uid=digest)
    ids = deidentified_ids(header, key)
    return Facts(
        digest=digest,
        geometry=geometry,
        image_id=ids.image_id,
        patient_id=ids.patient_id,
        study_id=ids.study_id,
        view=header.view,
        age=coarse_age(header.age_years),
        sex=header.sex,
        header=HeaderRow(
            study_date=ids.study_date.isoformat() if ids.study_date else "",
            manufacturer=header.manufacturer,
            model=header.model,
            photometric_interpretation=header.photometric_interpretation,
            transfer_syntax=header.transfer_syntax,
            spacing_source=header.spacing_source,
            pixel_aspect_ratio=header.pixel_aspect_ratio,
            window=header.window,
            flags="|".join(flags),
        ),
    )
