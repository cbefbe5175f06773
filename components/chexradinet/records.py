"""Records and codes that pass between stages. Plain values: no I/O, no arrays of images.

Coordinates: rows grow downwards, columns to the right, the origin is the top left corner of the
image, and a pixel covers the half-open square from its index to its index plus one.
"""

import math
from dataclasses import asdict, dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any

from chexradinet.errors import ConfigError


class Split(StrEnum):
    """Part of a data set; a patient is in exactly one."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class View(StrEnum):
    """DICOM View Position (0018,5101) of a frontal radiograph, or unknown."""

    PA = "PA"
    AP = "AP"
    UNKNOWN = ""


class RejectReason(StrEnum):
    """Why an X-ray did not enter a data set or was not scored. The values are stable codes."""

    UNREADABLE = "unreadable"
    """The file cannot be opened or decoded at all."""
    TRUNCATED = "truncated"
    """The file ends before its pixels do."""
    NOT_AN_IMAGE = "not_an_image"
    """The file holds no pixels: another kind of file, or a DICOM object without Pixel Data."""
    WRONG_MODALITY = "wrong_modality"
    """The DICOM Modality is not that of a projection radiograph."""
    NOT_FRONTAL = "not_frontal"
    """The view is lateral or another that is neither PA nor AP."""
    NOT_CHEST = "not_chest"
    """Body Part Examined names another part, or the patient is not human."""
    MULTI_FRAME = "multi_frame"
    """More than one frame."""
    TOO_SMALL = "too_small"
    """A side is shorter than the smallest that is meaningful."""
    TOO_LARGE = "too_large"
    """Bytes, inflated bytes or elements are more than any X-ray has."""
    CONSTANT = "constant"
    """All pixels have one value."""
    DUPLICATE = "duplicate"
    """The same SOP Instance UID or the same pixels were already seen."""
    UNDER_AGE = "under_age"
    """The patient is younger than the model is meant for."""
    INVERTED = "inverted"
    """Photometric Interpretation is contradicted by the image."""
    BURNED_IN = "burned_in"
    """Burned In Annotation says that the pixels carry identifying text."""
    IMPLAUSIBLE = "implausible"
    """The header's sizes are absurd or contradict the length of the pixels."""
    MISSING = "missing"
    """The label table names a file that is not there."""
    NOT_LABELLED = "not_labelled"
    """The label table does not name this file."""
    NOT_FINITE = "not_finite"
    """The model gave a score or a map that is not a finite number."""
    AMBIGUOUS = "ambiguous"
    """Several rows of the label table name this file."""
    TOO_SLOW = "too_slow"
    """Decoding took longer than a file may take."""
    UNAVAILABLE = "unavailable"
    """The archive failed on this file, also after repeating."""


class RegionStatus(StrEnum):
    """How a heatmap became a region; only `OK` has a box."""

    OK = "ok"
    NO_EVIDENCE = "no_evidence"
    """Nowhere positive: nothing speaks for the finding."""
    CONSTANT = "constant"
    """Every place has the same value: the map points nowhere."""
    NOT_FINITE = "not_finite"
    """The map holds NaN or infinity."""
    TOO_SMALL = "too_small"
    """No connected component reaches the smallest size."""
    WHOLE_IMAGE = "whole_image"
    """The component covers more of the image than a region may."""


class FeatureStatus(StrEnum):
    """How a region became radiomics features; only `OK` has values."""

    OK = "ok"
    NO_REGION = "no_region"
    """The heatmap gave no region."""
    NOT_INSTALLED = "not_installed"
    """Scored without pyradiomics: flags come without features there."""
    FAILED = "failed"
    """The feature classes refused the region."""
    NOT_FINITE = "not_finite"
    """A feature is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open rectangle `[top, bottom) x [left, right)` in pixels, origin top left."""

    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        """Refuse a box without area or with a side that is not a number."""
        finite = all(math.isfinite(side) for side in (self.top, self.left, self.bottom, self.right))
        if not (finite and self.top < self.bottom and self.left < self.right):
            raise ConfigError(f"{self} has no area; a box needs top < bottom and left < right")

    @property
    def area_px(self) -> float:
        """Area in square pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def intersection_over_union(self, other: "Box") -> float:
        """Return the overlap with another box, in [0, 1]."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        width = min(self.right, other.right) - max(self.left, other.left)
        if height <= 0 or width <= 0:
            return 0.0
        shared = height * width
        return shared / (self.area_px + other.area_px - shared)

    def contains(self, row: float, column: float) -> bool:
        """Tell whether a point lies inside."""
        return self.top <= row < self.bottom and self.left <= column < self.right

    def clipped(self, height: float, width: float) -> "Box | None":
        """Return the part inside an image of this size, or None if nothing is left."""
        top, left = max(self.top, 0.0), max(self.left, 0.0)
        bottom, right = min(self.bottom, height), min(self.right, width)
        return Box(top, left, bottom, right) if top < bottom and left < right else None


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """Where a reader saw a finding. For evaluation only: never read in training."""

    finding: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Map from model pixels to original pixels: `original = model * scale + offset`, per axis.

    The map is exact in continuous coordinates (a pixel is a square, not a point). The model always
    sees an upright image; if the original is stored otherwise, a scale is negative (mirrored or
    upside down) or `transposed` says that original rows lie along model columns.
    """

    original_height: int
    """Rows of the original image, in pixels."""
    original_width: int
    """Columns of the original image, in pixels."""
    row_scale: float
    """Original rows a model row covers; negative if the original runs to the head."""
    column_scale: float
    """Original columns a model column covers; negative if it runs to the patient's right."""
    row_offset: float = 0.0
    """Original row of the model's top edge; outside the image if that was padded."""
    column_offset: float = 0.0
    """Original column of the model's left edge; outside the image if that was padded."""
    row_spacing_mm: float | None = None
    """Distance between original rows in millimetres, if the header tells it."""
    column_spacing_mm: float | None = None
    """Distance between original columns in millimetres, if known."""
    spacing_source: str = ""
    """`imager_pixel_spacing` (at the detector), `pixel_spacing` (there too, or corrected for
    magnification, in a plane that the header may not tell), or empty for any other."""
    transposed: bool = False
    """Whether original rows are mapped from model columns, and original columns from model rows."""

    def to_original(self, box: Box) -> Box:
        """Map a box in model pixels to original pixels, unclipped."""
        first = self.point_to_original(box.top, box.left)
        second = self.point_to_original(box.bottom, box.right)
        (top, bottom), (left, right) = (sorted(ends) for ends in zip(first, second, strict=True))
        return Box(top, left, bottom, right)

    def point_to_original(self, row: float, column: float) -> tuple[float, float]:
        """Map row and column in model pixels to row and column in original pixels."""
        row, column = (column, row) if self.transposed else (row, column)
        original_row = row * self.row_scale + self.row_offset
        return original_row, column * self.column_scale + self.column_offset

    def to_model(self, box: Box) -> Box:
        """Map a box in original pixels to model pixels, unclipped."""
        rows = sorted((row - self.row_offset) / self.row_scale for row in (box.top, box.bottom))
        columns = sorted(
            (column - self.column_offset) / self.column_scale for column in (box.left, box.right)
        )
        (top, bottom), (left, right) = (columns, rows) if self.transposed else (rows, columns)
        return Box(top, left, bottom, right)

    def in_mm(self, box: Box) -> Box | None:
        """Return a box in original pixels in millimetres, None without a spacing."""
        down, across = self.row_spacing_mm, self.column_spacing_mm
        if down is None or across is None:
            return None
        return Box(box.top * down, box.left * across, box.bottom * down, box.right * across)

    @property
    def upright(self) -> "Geometry":
        """The map from model pixels to the original turned upright, in which scales are above 0."""
        rows = (self.original_height, self.row_scale, self.row_offset, self.row_spacing_mm)
        columns = (
            self.original_width,
            self.column_scale,
            self.column_offset,
            self.column_spacing_mm,
        )
        rows, columns = (columns, rows) if self.transposed else (rows, columns)
        return Geometry(
            original_height=rows[0],
            original_width=columns[0],
            row_scale=abs(rows[1]),
            column_scale=abs(columns[1]),
            row_offset=rows[2] if rows[1] > 0 else rows[0] - rows[2],
            column_offset=columns[2] if columns[1] > 0 else columns[0] - columns[2],
            row_spacing_mm=rows[3],
            column_spacing_mm=columns[3],
            spacing_source=self.spacing_source,
        )

    def to_upright(self, box: Box) -> Box:
        """Map a box in original pixels to the original turned upright."""
        return self.upright.to_original(self.to_model(box))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready values; `Geometry(**record)` reads it back.

        `transposed` is left out if it is false, as in records made before there was one.
        """
        values = asdict(self)
        if not self.transposed:
            del values["transposed"]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where a heatmap looked, in model pixels."""

    status: RegionStatus
    box: Box | None = None
    """Tightest box of the chosen component; present exactly when the status is `OK`."""
    peak_row: float | None = None
    """Row of the map's maximum, if the map has one."""
    peak_column: float | None = None
    """Column of the map's maximum, if the map has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiographHeader:
    """Header of one radiograph. What identifies the patient is left out of its `repr`."""

    sop_instance_uid: str = field(repr=False)
    study_instance_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    accession_number: str = field(default="", repr=False)
    study_date: date | None = field(repr=False)
    acquisition_date: date | None = field(repr=False)
    sop_class_uid: str
    modality: str
    view: View
    """`PA`, `AP` or unknown, by the rules of `dicom.header`."""
    is_frontal: bool | None
    """None if the header does not say."""
    view_source: str
    """Which rule decided the view; empty if none did."""
    body_part: str
    """Body Part Examined, upper case."""
    shows_chest: bool | None
    """Whether the body part is the chest; None if none is named."""
    is_human: bool
    """False if anything in the header speaks of an animal."""
    age_years: float | None
    """From Patient's Age, else, also if that is zero, from birth date and study date."""
    sex: str
    """`F`, `M`, `O` or empty."""
    manufacturer: str
    model: str
    presentation_intent: str
    """`FOR PRESENTATION`, `FOR PROCESSING` or empty."""
    burned_in_annotation: str
    """`YES`, `NO` or empty."""
    photometric_interpretation: str
    """One of `dicom.pixels.PHOTOMETRIC`, so that it cannot hold anything else."""
    rows: int
    columns: int
    row_spacing_mm: float | None
    """Distance between rows, if the header tells it; in which plane, `spacing_source` says."""
    column_spacing_mm: float | None
    spacing_source: str
    """`imager_pixel_spacing`, `pixel_spacing` or empty."""
    pixel_aspect_ratio: float
    """Height of a pixel over its width."""
    orientation: str
    """Where rows and columns run, as `LF`: to the patient's left and feet, as an upright frontal
    does; also if the header does not say."""
    transfer_syntax: str
    """UID."""
    window: str = ""
    """Which VOI LUT or window was applied; empty until pixels are decoded."""
    notes: tuple[str, ...] = ()
    """Oddities that did not prevent reading."""
