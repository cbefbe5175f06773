"""From a source to model pixels: preprocessing, quality, conventions of public data sets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from chexradinet.config.base import Settings, digest_of, internal, require, stored_as
from chexradinet.errors import ConfigError, UnknownFindingError
from chexradinet.findings import KNOWN, Vocabulary, own_findings

PREPROCESSING_VERSION = 3
"""Raised whenever the same file would give other model pixels; part of the preprocessing digest."""


class GeometryMode(StrEnum):
    """How an image of any shape becomes a square."""

    SQUASH = "squash"
    """Each axis scaled on its own, as NIH ChestX-ray14 was published."""
    PAD = "pad"
    """One scale for both axes, black bars on the short side."""


class DicomConfig(Settings):
    """How stored values of a DICOM file become grey levels. Recorded with the data set."""

    voi_index: int = Field(default=0, ge=0)
    """Which of several windows or VOI LUTs to apply, from 0; the last if there are fewer."""
    prefer_voi_lut: bool = True
    """Whether a VOI LUT goes before a window if a file has both."""


class PreprocessingConfig(Settings):
    """How an original image becomes model pixels. Training and scoring must agree on all of it."""

    image_side: int = Field(default=224, ge=32, le=2048)
    """Side of the model's square input, in pixels."""
    geometry: GeometryMode = GeometryMode.SQUASH
    """squash scales each axis on its own, as NIH did; pad keeps the proportions."""
    dicom: DicomConfig = DicomConfig()
    """How DICOM files are shown; of no effect on others."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; `PreprocessingConfig(**values)` reads them back.

        `dicom` is left out if it is the default, so that data sets and bundles made before it
        was part of the preprocessing, and all of PNG and JPEG files, keep their digest.
        """
        values = self.record()
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

    AUTO = "auto"
    """Found out from the names and columns of the tables, and from the files."""
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
        require(policy.strip() in known, "uncertain_labels", text, needed)
        if equals:
            exceptions[KNOWN.canonical(finding)] = UncertainLabel(policy.strip())
        else:
            overall = UncertainLabel(policy.strip())
    return overall, exceptions


def _split_names(value: object) -> object:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return _names_of_file(Path(value))
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


def _names_of_file(path: Path) -> list[str]:
    """Read a YAML list of names, or of mappings; docs/datasets.md has an example."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [_entry(item) for item in content]
    except OSError as error:
        raise ValueError(
            f"findings {path} cannot be read: {error.strerror}; on a cluster write the names out"
        ) from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"findings {path} is not a YAML list of names, or of mappings with name and, if "
            "wanted, synonyms (a list), urgency and code (value, scheme and meaning)"
        ) from error


def _entry(item: Any) -> str:  # noqa: ANN401 - what YAML holds
    if not isinstance(item, dict):
        return str(item)
    if unknown := set(item) - {"name", "synonyms", "urgency", "code"}:
        raise KeyError(*unknown)
    entry = str(item["name"])
    if "synonyms" in item:
        entry += f"={'/'.join(item['synonyms'])}"
    if "urgency" in item:
        entry += f";urgency={item['urgency']}"
    if "code" in item:
        entry += ";code=" + ":".join(str(item["code"][k]) for k in ("value", "scheme", "meaning"))
    return entry


class QualityConfig(Settings):
    """What an X-ray must be to enter a data set or to be scored."""

    min_age_years: float = Field(default=18.0, ge=0, lt=120)
    """Youngest patient of a DICOM file; 0 takes every age. An unknown age is taken and flagged."""
    min_side_px: int = Field(default=32, ge=1)
    """Shortest side of a DICOM image, in pixels."""
    check_inversion: bool = True
    """Reject images whose black and white are swapped, whatever the header says."""


class StoreConfig(Settings):
    """How object storage is talked to."""

    retry_total_s: float = Field(default=120.0, ge=0)
    """Seconds after the first failure during which a request is repeated; 0 for one attempt."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    read_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for the next bytes of an answer."""
    part_bytes: int = Field(default=16 * 1024 * 1024, ge=5 * 1024 * 1024)
    """Files larger than this are uploaded in parts of this size: the memory an upload takes."""


class IngestConfig(Settings):
    """How a source becomes a data set."""

    data_format: SourceFormat = stored_as("format", SourceFormat.AUTO)
    """Convention of the source's label table and files."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    """How an original becomes model pixels."""
    quality: QualityConfig = QualityConfig()
    """What a DICOM file must be; others have no header to judge."""
    findings: Annotated[tuple[str, ...], BeforeValidator(_split_names)] = Field(
        default=(),
        json_schema_extra={"needed": "names of findings as in docs/datasets.md, or a YAML file"},
    )
    """Findings to learn, in order, own names with synonyms too: `Mass,Tuberculosis=TB/Koch`."""
    uncertain_labels: str = stored_as("uncertain", "ignore")
    """What a label of -1 becomes: ignore, ones or zeros; `zeros,Edema=ones` for exceptions."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=0.9)
    """Part of the training patients that validates, if the table has no validation split."""
    test_fraction: float = Field(default=0.1, ge=0, lt=0.9)
    """Part of all patients that tests, if the table names no split at all."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the splits that no table gives; recorded in the data set."""
    max_reject_fraction: float = Field(default=0.5, ge=0, le=1)
    """Rejected part of the source above which the run fails."""
    ingest_shard_size: int = stored_as("shard_size", 4096, ge=1)
    """Images per file of pixels; a killed ingest continues after the last full file."""
    ingest_workers: int = stored_as("num_workers", 0, ge=0)
    """Processes that decode; 0 takes what processors and memory allow."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """Most seconds that decoding one file may take; over it the file is rejected."""
    reuse: bool = True
    """Take a finished result of equal inputs and settings instead of making it again."""
    store: StoreConfig = internal(StoreConfig())
    """How object storage or an archive is talked to."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        try:
            parse_uncertain(self.uncertain_labels)
            asked = own_findings(self.findings)[0]
            object.__setattr__(self, "findings", tuple(str(one) for one in asked.values()))
        except UnknownFindingError as error:
            raise ConfigError(str(error)) from error
        return self

    @property
    def finding_names(self) -> tuple[str, ...]:
        """Canonical names of the findings to learn; empty for all of the table."""
        return tuple(own_findings(self.findings)[0])

    @property
    def finding_details(self) -> dict[str, dict[str, Any]]:
        """Urgency and code of the findings that have one of their own."""
        asked = own_findings(self.findings)[0]
        return {name: details for name, one in asked.items() if (details := one.details())}

    @property
    def vocabulary(self) -> Vocabulary:
        """Spellings of findings in the label table."""
        return own_findings(self.findings)[1]

    def digest(self) -> str:
        """Return the digest of all that decides the bytes of a data set made from one source."""
        values = self.record()
        for name in ("max_reject_fraction", "num_workers", "reuse", "store"):
            del values[name]
        return digest_of({"version": PREPROCESSING_VERSION, **values})
