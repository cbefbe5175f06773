"""The quality gate: whether an X-ray may enter a data set or be scored, and why not.

One bad file must not fail a night, and the wrong kind of image must not get a score. Every reason
is a `RejectReason`; what is odd but acceptable is a flag. Sizes, truncation and decoding are judged
by the reader; the gate judges what was read. A detail quotes a header value only if it is a term
of the standard, because a field may hold a name that belongs elsewhere.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.config import QualityConfig
from chexradinet.errors import RejectedImageError
from chexradinet.records import RadiographHeader, RejectReason

RADIOGRAPH_MODALITIES = ("CR", "DX", "DR", "RG", "RF")
"""Modalities of projection radiographs; `DR` is not in the standard, but in use."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Prefix of the SOP classes of secondary captures."""

INVERTED_BELOW = -0.05
"""Chest contrast under which an image is taken for inverted. 255 of 255 real frontal radiographs
lie above 0.09, with borders or cropped above 0.06 (tests/unit/dataset/test_quality.py), so their
inverted copies lie under -0.06."""

UNSURE_BELOW = 0.05
"""Chest contrast under which polarity is flagged as unsure."""

_RADIOGRAPH_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
)
_ANY_MODALITY = ("", "OT", "SC")
_OTHER_MODALITIES = ("CT", "MR", "US", "MG", "PT", "NM", "XA", "IO", "PX", "ES", "SR", "OT", "SC")
_OTHER_PARTS = (
    *("ABDOMEN", "PELVIS", "HIP", "LEG", "KNEE", "ANKLE", "FOOT", "ARM", "SHOULDER", "ELBOW"),
    *("WRIST", "HAND", "SKULL", "NECK", "SPINE", "CSPINE", "TSPINE", "LSPINE", "BREAST"),
)
_SIDE = 48
_COARSE = 96
_FLAT_LEVELS = 24


class Verdict(NamedTuple):
    """What the gate says."""

    reason: RejectReason | None
    """None if the X-ray is accepted."""
    detail: str
    """What was found, without patient data; empty if accepted."""
    flags: tuple[str, ...]
    """Oddities of an accepted X-ray, such as `view_unknown`."""


def gate(header: "RadiographHeader", pixels: NDArray[np.uint8], config: QualityConfig) -> Verdict:
    """Judge a radiograph that has been read.

    Args:
        header: What the file says.
        pixels: Display grey levels of shape (H, W), bright where dense.
        config: Limits.

    Returns:
        The first reason that applies: those of the header, then those of the image.
    """
    verdict = gate_header(header, config)
    if verdict.reason is not None:
        return verdict
    height, width = pixels.shape
    if min(height, width) < config.min_side_px:
        detail = f"{height}x{width} px; both sides must be at least {config.min_side_px}"
        return Verdict(RejectReason.TOO_SMALL, detail, ())
    if pixels.min() == pixels.max():
        return Verdict(RejectReason.CONSTANT, f"every pixel is {pixels.flat[0]}", ())
    if not config.check_inversion:
        return verdict
    contrast = chest_contrast(pixels)
    if contrast < INVERTED_BELOW:
        detail = f"{header.photometric_interpretation}, but lungs are brighter than mediastinum "
        detail += f"(contrast {contrast:.2f})"
        return Verdict(RejectReason.INVERTED, detail, ())
    unsure = ("polarity_unsure",) if contrast < UNSURE_BELOW else ()
    return Verdict(None, "", verdict.flags + unsure)


def refuse_inverted(pixels: NDArray[np.uint8], config: QualityConfig) -> None:
    """Judge a picture without a header, alike for training and scoring.

    Raises:
        RejectedImageError: its black and white are swapped.
    """
    if config.check_inversion and chest_contrast(pixels) < INVERTED_BELOW:
        detail = "lungs are brighter than the mediastinum in a file without header"
        raise RejectedImageError(RejectReason.INVERTED, detail)


def gate_header(header: "RadiographHeader", config: QualityConfig) -> Verdict:
    """Judge a header alone, so that an X-ray of the wrong kind need not be decoded."""
    for reason, detail in (
        _modality_reason(header),
        _subject_reason(header),
        _age_reason(header, config),
    ):
        if reason is not None:
            return Verdict(reason, detail, ())
    return Verdict(None, "", _flags(header))


def _modality_reason(header: "RadiographHeader") -> tuple[RejectReason | None, str]:
    if header.modality in RADIOGRAPH_MODALITIES:
        return None, ""
    of_radiograph = header.sop_class_uid in _RADIOGRAPH_CLASSES
    captured = header.sop_class_uid.startswith(SECONDARY_CAPTURE) and header.shows_chest
    if header.modality in _ANY_MODALITY and (of_radiograph or captured):
        return None, ""
    named = header.modality if header.modality in _OTHER_MODALITIES else "not a known one"
    detail = f"modality is {named}; it must be one of {', '.join(RADIOGRAPH_MODALITIES)}"
    return RejectReason.WRONG_MODALITY, detail


def _subject_reason(header: "RadiographHeader") -> tuple[RejectReason | None, str]:
    if not header.is_human:
        return RejectReason.NOT_CHEST, "the patient is not human"
    if header.shows_chest is False:
        named = header.body_part if header.body_part in _OTHER_PARTS else "another"
        return RejectReason.NOT_CHEST, f"body part is {named}"
    if header.is_frontal is False:
        return RejectReason.NOT_FRONTAL, f"by {header.view_source}"
    if header.burned_in_annotation == "YES":
        return RejectReason.BURNED_IN, "Burned In Annotation is YES"
    return None, ""


def _age_reason(
    header: "RadiographHeader", config: QualityConfig
) -> tuple[RejectReason | None, str]:
    if header.age_years is None or header.age_years >= config.min_age_years:
        return None, ""
    return RejectReason.UNDER_AGE, f"younger than {config.min_age_years:g} years"


def _flags(header: "RadiographHeader") -> tuple[str, ...]:
    captured = header.sop_class_uid.startswith(SECONDARY_CAPTURE)
    flags = {
        "modality_unknown": header.modality in _ANY_MODALITY,
        "view_unknown": header.is_frontal is None,
        "body_part_unknown": header.shows_chest is None,
        "age_unknown": header.age_years is None,
        "for_processing": header.presentation_intent == "FOR PROCESSING",
        "burned_in_unknown": captured and not header.burned_in_annotation,
    }
    return tuple(name for name, holds in flags.items() if holds) + header.notes


def chest_contrast(pixels: NDArray[np.uint8]) -> float:
    """Return how much brighter mediastinum and abdomen are than the lungs, in [-1, 1].

    Flat borders are cut off, as collimation and padding leave them. The rest is squashed to 48x48
    and its grey levels replaced by their ranks, so that neither exposure nor window matters. The
    mean rank over two ellipses, where a frontal chest has its lungs, is taken from the mean over a
    midline strip and the lower edge. Inverting the image changes the sign and nothing else.
    """
    coarse = np.asarray(
        cv2.resize(_shrunk(pixels), (_COARSE, _COARSE), interpolation=cv2.INTER_AREA), np.uint8
    )
    small = cv2.resize(_without_borders(coarse), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    levels, inverse, counts = np.unique(small, return_inverse=True, return_counts=True)
    # Equal levels share the mean of their ranks.
    mean_ranks = (np.cumsum(counts) - (counts + 1) / 2) / max(small.size - 1, 1)
    ranks = mean_ranks[inverse].reshape(small.shape)
    lungs, dense = _regions()
    return float(ranks[dense].mean() - ranks[lungs].mean()) if len(levels) > 1 else 0.0


def _shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average squares of whole pixels, as large as leave the sides at least `_COARSE` long.

    OpenCV does this in a sixth of the time that a shrink by a broken factor takes; what does not
    fill a square at the lower and right edge is left out.
    """
    height, width = pixels.shape
    factor = min(height, width) // _COARSE
    if factor < 2:
        return pixels
    rows, columns = height // factor, width // factor
    whole = pixels[: rows * factor, : columns * factor]
    shrunk = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.uint8)


def _without_borders(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut off outer rows and columns of nearly one grey level, at most a quarter on each side."""
    quarter = len(pixels) // 4
    kept = []
    for axis in (1, 0):
        structured = np.ptp(pixels, axis=axis) > _FLAT_LEVELS
        first = min(int(structured.argmax()), quarter)
        last = min(int(structured[::-1].argmax()), quarter)
        kept.append(slice(first, len(pixels) - last))
    return pixels[kept[0], kept[1]]


def _regions() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where lungs and where dense tissue lie in a frontal chest of 48x48 pixels."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1)
    heights = ((rows - 0.45) / 0.27) ** 2
    lungs = np.minimum(
        heights + ((columns - 0.29) / 0.13) ** 2, heights + ((columns - 0.71) / 0.13) ** 2
    )
    mediastinum = (np.abs(columns - 0.5) < 0.08) & (rows > 0.15) & (rows < 0.95)
    abdomen = (rows > 0.88) & (columns > 0.2) & (columns < 0.8)
    return np.asarray(lungs <= 1.0), np.asarray(mediastinum | abdomen)
