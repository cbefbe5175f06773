"""The quality gate: whether an X-ray may enter a data set or be scored, and why not.

One bad file must not fail a night, and the wrong kind of image must not get a score. Every reason
is a `RejectReason`; what is odd but acceptable is a flag. Sizes, truncation and decoding are judged
by the reader; the gate judges what was read. A detail quotes a header value only if it is a term
of the standard, because a field may hold a name that belongs elsewhere.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.config import PreprocessingConfig, QualityConfig
from chexradinet.dataset.images import check_pixels, fit_to_model, read_image
from chexradinet.errors import RejectedImageError
from chexradinet.records import Geometry, RadiographHeader, RejectReason

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


def accepted_picture(
    content: bytes, quality: QualityConfig, preprocessing: PreprocessingConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Geometry]:
    """Return original and model pixels of a PNG or JPEG file, alike for training and scoring.

    Raises:
        RejectedImageError: as `read_image`, or its black and white are swapped.
    """
    original = read_image(content)
    if quality.check_inversion and chest_contrast(original) < INVERTED_BELOW:
        detail = "lungs are brighter than the mediastinum in a file without header"
        raise RejectedImageError(RejectReason.INVERTED, detail)
    pixels, geometry = fit_to_model(original, preprocessing)
    return original, pixels.astype(np.uint8, copy=False), geometry


def gate(
    header: RadiographHeader, pixels: NDArray[np.uint8], config: QualityConfig
) -> tuple[str, ...]:
    """Judge a radiograph that has been read; return its oddities, such as `view_unknown`.

    Args:
        header: What the file says.
        pixels: Display grey levels of shape (H, W), bright where dense.
        config: Limits.

    Raises:
        RejectedImageError: the first reason that applies: those of the header, then those of the
            image; it says what was found, without patient data.
    """
    gate_header(header, config)
    check_pixels(pixels, config.min_side_px)
    flags = _flags(header)
    if not config.check_inversion:
        return flags
    contrast = chest_contrast(pixels)
    if contrast < INVERTED_BELOW:
        detail = f"{header.photometric_interpretation}, but lungs are brighter than mediastinum "
        detail += f"(contrast {contrast:.2f})"
        raise RejectedImageError(RejectReason.INVERTED, detail)
    return (*flags, "polarity_unsure") if contrast < UNSURE_BELOW else flags


def gate_header(header: RadiographHeader, config: QualityConfig) -> None:
    """Judge a header alone, so that an X-ray of the wrong kind need not be decoded.

    Raises:
        RejectedImageError: the first reason that applies.
    """
    for reason, detail in _faults(header, config):
        raise RejectedImageError(reason, detail)


def _faults(header: RadiographHeader, config: QualityConfig) -> Iterator[tuple[RejectReason, str]]:
    of_radiograph = header.sop_class_uid in _RADIOGRAPH_CLASSES
    captured = header.sop_class_uid.startswith(SECONDARY_CAPTURE) and header.shows_chest
    any_modality = header.modality in _ANY_MODALITY and (of_radiograph or captured)
    if header.modality not in RADIOGRAPH_MODALITIES and not any_modality:
        named = header.modality if header.modality in _OTHER_MODALITIES else "not a known one"
        needed = f"it must be one of {', '.join(RADIOGRAPH_MODALITIES)}"
        yield RejectReason.WRONG_MODALITY, f"modality is {named}; {needed}"
    if not header.is_human:
        yield RejectReason.NOT_CHEST, "the patient is not human"
    if header.shows_chest is False:
        named = header.body_part if header.body_part in _OTHER_PARTS else "another"
        yield RejectReason.NOT_CHEST, f"body part is {named}"
    if header.is_frontal is False:
        yield RejectReason.NOT_FRONTAL, f"by {header.view_source}"
    if header.burned_in_annotation == "YES":
        yield RejectReason.BURNED_IN, "Burned In Annotation is YES"
    if header.age_years is not None and header.age_years < config.min_age_years:
        yield RejectReason.UNDER_AGE, f"younger than {config.min_age_years:g} years"


def _flags(header: RadiographHeader) -> tuple[str, ...]:
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
