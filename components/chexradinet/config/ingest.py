"""From a source to model pixels: preprocessing, quality, conventions of public data sets."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from chexradinet.config.checks import choice, digest_of, require
from chexradinet.config.store import StoreConfig
from chexradinet.findings import canonical_finding, canonical_findings

PREPROCESSING_VERSION = 2
"""Raised whenever the same file would give other model pixels; part of the preprocessing digest."""


class GeometryMode(StrEnum):
    """How an image of any shape becomes a square."""

    SQUASH = "squash"
    """Each axis scaled on its own, as NIH ChestX-ray14 was published."""
    PAD = "pad"
    """One scale for both axes, black bars on the short side."""


@dataclass(frozen=True, kw_only=True)
class DicomConfig:
    """How stored values of a DICOM file become grey levels. Recorded with the data set."""

    voi_index: int = 0
    """Which of several windows or VOI LUTs to apply, from 0; the last where there are fewer."""
    prefer_voi_lut: bool = True
    """Whether a VOI LUT goes before a window where a file has both."""

    def __post_init__(self) -> None:
        """Check the index."""
        require(self.voi_index >= 0, "voi_index", self.voi_index, "at least 0")


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """How an original image becomes model pixels. Training and scoring must agree on all of it."""

    image_side: int = 224
    """Height and width of the model's input, in pixels."""
    geometry: GeometryMode = GeometryMode.SQUASH
    """How the shape is made square."""
    dicom: DicomConfig = field(default_factory=DicomConfig)
    """How DICOM files are shown; of no effect on others."""

    def __post_init__(self) -> None:
        """Check the side, accept the mode by name and the DICOM settings as read from JSON."""
        require(32 <= self.image_side <= 2048, "image_side", self.image_side, "in [32, 2048] px")
        object.__setattr__(self, "geometry", choice(GeometryMode, "geometry", self.geometry))
        if isinstance(self.dicom, dict):
            object.__setattr__(self, "dicom", DicomConfig(**self.dicom))

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values; `PreprocessingConfig(**values)` reads them back.

        `dicom` is left out where it is the default, so that data sets and bundles made before it
        was part of the preprocessing, and all of PNG and JPEG files, keep their digest.
        """
        values = asdict(self)
        if self.dicom == DicomConfig():
            del values["dicom"]
        return values

    def digest(self) -> str:
        """Return the digest that a data set and a bundle must share to be used together.

        It covers what changes model pixels: side, geometry, and which window of a DICOM file is
        applied.
        """
        return digest_of({"version": PREPROCESSING_VERSION, **self.as_dict()})


class SourceFormat(StrEnum):
    """Conventions of label tables and files that `ingest` reads."""

    NIH = "nih"
    """NIH ChestX-ray14."""
    CHEXPERT = "chexpert"
    MIMIC = "mimic"
    """MIMIC-CXR-JPG."""
    RSNA = "rsna"
    """RSNA Pneumonia Detection Challenge."""
    CSV = "csv"
    """One table: file, patient, findings joined by `|`, and optional columns."""
    DICOM = "dicom"
    """DICOM files and a `csv` table."""


class UncertainLabel(StrEnum):
    """What a label of -1 (a report that hedges) becomes; names as in Irvin et al. 2019."""

    IGNORE = "ignore"
    """Unknown: masked out of the loss."""
    ONES = "ones"
    ZEROS = "zeros"


def parse_uncertain(text: str) -> tuple[UncertainLabel, dict[str, UncertainLabel]]:
    """Return the policy for all findings and its exceptions by canonical finding.

    Args:
        text: Such as `ignore`, or `zeros,Edema=ones,Pleural Effusion=ignore`.

    Raises:
        ConfigError: a part is neither a policy nor `finding=policy`.
        UnknownFindingError: an exception names an unknown finding.
    """
    known = [policy.value for policy in UncertainLabel]
    overall, exceptions = UncertainLabel.IGNORE, {}
    for part in text.split(","):
        finding, equals, policy = part.rpartition("=")
        needed = f"one of {known}, or Finding=policy, joined by commas"
        require(policy.strip() in known, "uncertain", text, needed)
        if equals:
            exceptions[canonical_finding(finding)] = UncertainLabel(policy.strip())
        else:
            overall = UncertainLabel(policy.strip())
    return overall, exceptions


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What an X-ray must be to enter a data set or to be scored."""

    min_age_years: float = 18.0
    """Youngest patient; 0 takes every age. A patient of unknown age is taken and flagged."""
    min_side_px: int = 32
    """Shortest side of an image."""
    check_inversion: bool = True
    """Whether to compare Photometric Interpretation with the image."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(0 <= self.min_age_years < 120, "min_age_years", self.min_age_years, "in [0, 120)")
        require(self.min_side_px >= 1, "min_side_px", self.min_side_px, "at least 1")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a source becomes a data set."""

    format: SourceFormat = SourceFormat.CSV
    """Convention of the source."""
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    """How an original becomes model pixels."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """What a DICOM file must be; others have no header to judge."""
    findings: tuple[str, ...] = ()
    """Findings to keep, in this order; empty keeps all that the table knows."""
    uncertain: str = "ignore"
    """What -1 becomes, as `parse_uncertain` reads it."""
    validation_fraction: float = 0.1
    """Part of the training patients that becomes the validation split where the table has none."""
    test_fraction: float = 0.1
    """Part of all patients that becomes the test split where the table has no split at all."""
    split_seed: int = 0
    """Of the splits that no table gives; recorded in the data set."""
    max_reject_fraction: float = 0.5
    """Largest part of the files that may be rejected before the run fails, in [0, 1]."""
    shard_size: int = 4096
    """Images in a file of pixels."""
    num_workers: int = 0
    """Processes that decode; 0 takes what processors and memory allow, 1 only this process."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """How object storage or an archive is talked to."""

    def __post_init__(self) -> None:
        """Check every number, and accept format and findings by any known name."""
        for name in ("validation_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 0.9, name, getattr(self, name), "in [0, 0.9)")
        rejects = self.max_reject_fraction
        require(0 <= rejects <= 1, "max_reject_fraction", rejects, "in [0, 1]")
        require(self.shard_size >= 1, "shard_size", self.shard_size, "at least 1")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "at least 0")
        parse_uncertain(self.uncertain)
        object.__setattr__(self, "format", choice(SourceFormat, "format", self.format))
        object.__setattr__(self, "findings", canonical_findings(self.findings))

    def digest(self) -> str:
        """Return the digest of all that decides the bytes of a data set made from one source."""
        values = asdict(self)
        for name in ("max_reject_fraction", "num_workers", "store"):
            del values[name]
        return digest_of({"version": PREPROCESSING_VERSION, **values})
