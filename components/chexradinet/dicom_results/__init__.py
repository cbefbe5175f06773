"""Nightly scores as DICOM. Here: what scoring says of one X-ray, as they need it, without pydicom.

Coordinates: see `records`. The heatmap covers the model's square, regions are in original pixels,
`geometry` joins the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite

import numpy as np
import numpy.typing as npt

from chexradinet.config import require
from chexradinet.evaluation.classification import Array
from chexradinet.records import Box, Geometry

DEVICE_NAME = "ChexRadiNet"
"""Manufacturer and name of the device observer."""


@dataclass(frozen=True, kw_only=True)
class ScoringModel:
    """What scored: all that makes two results of one X-ray comparable, or not."""

    bundle_digest: str
    """SHA-256 of the model bundle, in hex."""
    preprocessing_digest: str
    """SHA-256 of the preprocessing, in hex."""
    round: int
    """Round of the training pipeline that the bundle comes from."""
    software_version: str
    """Version of this package."""

    def __post_init__(self) -> None:
        """Refuse digests that are none: identifiers are derived from them."""
        for name in ("bundle_digest", "preprocessing_digest"):
            digest = getattr(self, name)
            is_hex = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
            require(is_hex, name, digest, "a SHA-256 in lower-case hex")

    @property
    def device_name(self) -> str:
        """Name of the model as a device, with its round."""
        return f"{DEVICE_NAME} round {self.round}"


@dataclass(frozen=True, kw_only=True)
class ScoredFinding:
    """One finding in one X-ray."""

    name: str
    """Canonical name, or any other: then its code is private."""
    probability: float
    """In [0, 1]; a plain score if `calibrated` does not say that it is one."""
    threshold: float | None
    """Operating threshold in [0, 1]; None if there is none."""
    flagged: bool | None
    """Whether the probability reaches the threshold; None if there is none: not assessed."""
    calibrated: bool
    """Whether the probability is calibrated, or the plain sigmoid."""
    region: Box | None = None
    """Where the model looked, in original pixels; may reach over the image's edge."""
    radiomics: Mapping[str, float] = field(default_factory=dict)
    """Features of the region by pyradiomics' names; empty if not computed."""
    sensitivity: float | None = None
    """Fraction of the test split's positives that the threshold flags; None if unknown."""
    specificity: float | None = None
    """Fraction of the test split's negatives that it does not flag; None if unknown."""

    code: tuple[str, str, str] | None = None
    """Value, scheme and meaning in a report; None for the one that `finding_code` knows."""

    def __post_init__(self) -> None:
        """Check both numbers."""
        require(bool(self.name.strip()), "name", self.name, "a finding's name")
        require(0 <= self.probability <= 1, "probability", self.probability, "in [0, 1]")
        threshold = self.threshold
        require(threshold is None or 0 <= threshold <= 1, "threshold", threshold, "in [0, 1]")
        known = (self.flagged is None) == (threshold is None)
        require(known, "flagged", self.flagged, "None if, and only if, there is no threshold")


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredCase:
    """One scored X-ray."""

    pixels: npt.NDArray[np.uint8]
    """Grey levels: upright display pixels of shape (H, W), or the model's of shape (S, S)."""
    geometry: Geometry
    """Way from the model's pixels to the original's, as they are stored."""
    model_side_px: int
    """S: rows and columns of the model's input."""
    heatmap: Array | None
    """Map of `heatmap_finding` over the model's square, any resolution; None for no colour."""
    heatmap_finding: str = ""
    """The finding whose map is drawn, if it is flagged; empty without a map."""
    findings: tuple[ScoredFinding, ...]
    """All findings of the model, in its order."""
    model: ScoringModel
    """What scored."""
    content_at: datetime
    """When the results count as made; the caller's, so that a rerun gives equal files."""
    quality_notes: tuple[str, ...] = ()
    """Codes of what the quality gate let pass but noted, such as `view_unknown`."""
    out_of_distribution: bool | None = None
    """Whether the model was not made for X-rays like this one; None if it cannot tell."""
    out_of_distribution_score: float | None = None
    """Distance from the X-rays it was calibrated on, at least 0; None if it cannot tell."""

    def __post_init__(self) -> None:
        """Check that there is something to say, and that the pixels are one of the two kinds."""
        require(bool(self.findings), "findings", self.findings, "at least one finding")
        require(self.model_side_px >= 1, "model_side_px", self.model_side_px, "at least 1 px")
        upright = self.geometry.upright
        grid = (upright.original_height, upright.original_width)
        square = (self.model_side_px, self.model_side_px)
        known = self.pixels.shape in (grid, square) and self.pixels.dtype == np.uint8
        needed = f"uint8 of shape {grid} (original) or {square} (model)"
        require(known, "pixels", f"{self.pixels.dtype} {self.pixels.shape}", needed)
        names = {finding.name for finding in self.findings}
        known = self.heatmap is None or self.heatmap_finding in names
        require(known, "heatmap_finding", self.heatmap_finding, "one of the case's findings")
        distance = self.out_of_distribution_score
        known = distance is None or (isfinite(distance) and distance >= 0)
        require(known, "out_of_distribution_score", distance, "at least 0")

    @property
    def drawn(self) -> ScoredFinding | None:
        """The finding whose map and region are drawn; None without a map or if not flagged."""
        if self.heatmap is None:
            return None
        named = (one for one in self.findings if one.name == self.heatmap_finding)
        return next((one for one in named if one.flagged), None)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DicomResults:
    """Two DICOM files about one X-ray. They name the patient: they are clinical data."""

    structured_report: bytes
    """Comprehensive 3D SR, TID 1500."""
    secondary_capture: bytes
    """Secondary Capture Image, RGB."""
    structured_report_uid: str
    """SOP Instance UID; names the file well, as it is the same on a rerun."""
    secondary_capture_uid: str
    """SOP Instance UID."""
