"""Settings of every stage: frozen, keyword-only, checked where they are made.

The defaults are those of the trials that the model card names; `docs/adr` says why where it
matters.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TypeVar

from chexradinet.errors import ConfigError
from chexradinet.findings import canonical_finding, canonical_findings

PREPROCESSING_VERSION = 2
"""Raised whenever the same file would give other model pixels; part of the preprocessing digest."""

Choice = TypeVar("Choice", bound=StrEnum)

MAX_ROUNDS_LIMIT = 8
"""Most rounds a pipeline can be compiled for: each adds a sub-pipeline and an input."""


def require(holds: bool, setting: str, value: object, needed: str) -> None:
    """Raise a `ConfigError` that names a setting, what it was and what it must be."""
    if not holds:
        raise ConfigError(f"{setting} is {value!r}; it must be {needed}")


def choice(kind: type[Choice], setting: str, value: str) -> Choice:
    """Return the member of a setting's names, from plain text.

    Raises:
        ConfigError: no member has this name; it lists those that there are.
    """
    known = [member.value for member in kind]
    require(value in known, setting, str(value), f"one of {', '.join(known)}")
    return kind(value)


def canonical_json(value: object) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


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
    store: "StoreConfig" = field(default_factory=lambda: StoreConfig())
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


class Backbone(StrEnum):
    """Residual networks that the classifier can be built on."""

    RESNET18 = "resnet18"
    RESNET34 = "resnet34"
    RESNET50 = "resnet50"
    RESNET18_NARROW = "resnet18-narrow"
    """ResNet-18's depth with stages of 16, 32, 48 and 64 channels: for laptops and tests."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the classifier."""

    backbone: Backbone = Backbone.RESNET50
    """Depth and width."""
    map_stride: int = 16
    """Input pixels a cell of the heatmap covers, along each axis: 8, 16 or 32."""

    def __post_init__(self) -> None:
        """Check the stride and accept the backbone by name."""
        require(self.map_stride in (8, 16, 32), "map_stride", self.map_stride, "8, 16 or 32")
        object.__setattr__(self, "backbone", choice(Backbone, "backbone", self.backbone))


class GuidanceRecipe(StrEnum):
    """What a guided round adds to the classification loss."""

    NONE = "none"
    """Nothing: the control arm."""
    CONTRASTIVE = "contrastive"
    """NT-Xent between the image and the radiomics embedding of the same X-ray."""
    SHARPEN = "sharpen"
    """Entropy of the labelled findings' maps."""
    SHARPEN_CONTRASTIVE = "sharpen+contrastive"
    """Both."""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Loss of a guided round: `(1 - s - c) * classification + s * entropy + c * contrastive`."""

    recipe: GuidanceRecipe = GuidanceRecipe.SHARPEN_CONTRASTIVE
    """Which terms take part; the weight of a term that does not is 0."""
    permute_radiomics: bool = False
    """Shuffle the features over the images: what it keeps of a gain is not radiomics."""
    sharpen_weight: float = 0.10
    """`s` above, in [0, 0.5]. At 0.3 the maps collapse in the second round."""
    contrastive_weight: float = 0.05
    """`c` above, in [0, 0.5]. At 0.3 it costs accuracy: NT-Xent is ten times the other term."""
    temperature: float = 0.2
    """Of NT-Xent, above 0."""

    def __post_init__(self) -> None:
        """Check the weights and accept the recipe by name."""
        for name in ("sharpen_weight", "contrastive_weight"):
            require(0 <= getattr(self, name) <= 0.5, name, getattr(self, name), "in [0, 0.5]")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        object.__setattr__(self, "recipe", choice(GuidanceRecipe, "recipe", self.recipe))

    @property
    def sharpens(self) -> bool:
        """Whether the entropy term takes part."""
        return "sharpen" in self.recipe.value

    @property
    def contrasts(self) -> bool:
        """Whether the contrastive term takes part."""
        return "contrastive" in self.recipe.value

    @property
    def arm(self) -> str:
        """Name of the recipe as reports print it; `@permuted` where features are shuffled."""
        return self.recipe.value + ("@permuted" if self.permute_radiomics else "")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a round is trained."""

    epochs: int = 10
    """Passes over the training split."""
    batch_size: int = 16
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    max_shift_fraction: float = 1 / 16
    """Augmentation: largest shift along each axis, as a fraction of the image's side."""
    max_contrast_change: float = 0.15
    """Augmentation: contrast is scaled by a factor in 1 +- this."""
    max_brightness_change: float = 0.25
    """Augmentation: largest brightness offset, in standard deviations of the input."""
    seed: int = 0
    """Of initial weights, order and augmentation; equal seeds see equal images in equal order."""
    num_threads: int = 0
    """Torch threads on a CPU; 0 leaves torch's own choice."""
    mixed_precision: bool = True
    """bfloat16 where an accelerator supports it; a CPU always computes in float32."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        require(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "in (0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        shift = self.max_shift_fraction
        require(0 <= shift < 0.5, "max_shift_fraction", shift, "in [0, 0.5)")
        require(self.num_threads >= 0, "num_threads", self.num_threads, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """How a heatmap becomes a region."""

    threshold: float = 0.6
    """Fraction of the rectified map's maximum a pixel must reach, in (0, 1)."""
    blur_px: int = 5
    """Side of the Gaussian kernel applied after upsampling, odd, 1 for none."""
    min_side_px: int = 3
    """Shortest side of a region, in model pixels."""
    min_area_px: int = 9
    """Fewest pixels of a component."""
    max_area_fraction: float = 0.85
    """Largest part of the image a box may cover, in (0, 1]."""
    border_px: int = 1
    """Outer pixels a box leaves free: radiomics refuses a mask without background."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(0 < self.threshold < 1, "threshold", self.threshold, "in (0, 1)")
        odd = self.blur_px >= 1 and self.blur_px % 2 == 1
        require(odd, "blur_px", self.blur_px, "odd and at least 1")
        require(self.min_side_px >= 2, "min_side_px", self.min_side_px, "at least 2")
        require(self.min_area_px >= 1, "min_area_px", self.min_area_px, "at least 1")
        fraction = self.max_area_fraction
        require(0 < fraction <= 1, "max_area_fraction", fraction, "in (0, 1]")
        require(self.border_px >= 1, "border_px", self.border_px, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RadiomicsConfig:
    """Settings of the 102 features."""

    bin_width: float = 8.0
    """Width of a grey-level bin on the 8-bit range."""
    spacing_mm: float = 1.0
    """Nominal distance between model pixels; fixed, so that X-rays of any source compare."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(0 < self.bin_width <= 128, "bin_width", self.bin_width, "in (0, 128]")
        require(self.spacing_mm > 0, "spacing_mm", self.spacing_mm, "above 0")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is judged."""

    bootstrap_samples: int = 1000
    """Resamples of patients for the 95% intervals."""
    sensitivity: float = 0.90
    """Operating thresholds reach at least this sensitivity on the validation split, in (0, 1)."""
    min_positives: int = 10
    """Fewest positive validation cases a finding needs to be calibrated."""
    seed: int = 0
    """Of the bootstrap and of the random-map control."""

    def __post_init__(self) -> None:
        """Check every number."""
        samples = self.bootstrap_samples
        require(samples >= 100, "bootstrap_samples", samples, "at least 100")
        require(0 < self.sensitivity < 1, "sensitivity", self.sensitivity, "in (0, 1)")
        require(self.min_positives >= 2, "min_positives", self.min_positives, "at least 2")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How object storage is talked to."""

    retry_total_s: float = 120.0
    """Seconds after the first failure during which a request is repeated; 0 for one attempt."""
    connect_timeout_s: float = 10.0
    """Seconds to wait for a connection."""
    read_timeout_s: float = 60.0
    """Seconds to wait for the next bytes of an answer."""
    part_bytes: int = 16 * 1024 * 1024
    """Files larger than this are uploaded in parts of this size: the memory an upload takes."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(self.retry_total_s >= 0, "retry_total_s", self.retry_total_s, "at least 0")
        for name in ("connect_timeout_s", "read_timeout_s"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        smallest = 5 * 1024 * 1024
        require(self.part_bytes >= smallest, "part_bytes", self.part_bytes, "at least 5 MiB")
