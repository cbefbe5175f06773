"""Settings of the nightly run: where things are, what results depend on, and how it is computed."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from string import Formatter
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, model_validator

from chexradinet.config.base import Settings, internal, require
from chexradinet.config.ingest import QualityConfig
from chexradinet.config.training import Precision, RadiomicsConfig, RegionConfig
from chexradinet.errors import ConfigError
from chexradinet.findings import canonical_name

DEFAULT_URGENCY: Mapping[str, float] = {
    "Pneumothorax": 1.0,
    "Edema": 0.8,
    "Enlarged_Cardiomediastinum": 0.7,
    "Pneumonia": 0.7,
    "Consolidation": 0.6,
    "Effusion": 0.6,
    "Mass": 0.6,
    "Fracture": 0.5,
    "Infiltration": 0.5,
    "Lung_Lesion": 0.5,
    "Lung_Opacity": 0.5,
    "Atelectasis": 0.4,
    "Cardiomegaly": 0.4,
    "Nodule": 0.4,
    "Emphysema": 0.3,
    "Hernia": 0.3,
    "Fibrosis": 0.2,
    "Pleural_Other": 0.2,
    "Pleural_Thickening": 0.2,
    "Support_Devices": 0.1,
}
"""Urgency of each known finding, in [0, 1]."""

_TIMEZONE = "an IANA name, such as Europe/Berlin"
_VIEWER_URL = "an http or https address with {study_uid} or {accession}"

MAX_HOURS = 8760
"""Longest wait that can be asked for."""


class WorklistIdentifiers(StrEnum):
    """What names a study on the worklist, beside its Study Instance UID."""

    NONE = "none"
    """Nothing."""
    ACCESSION = "accession"
    """Accession number and study date."""
    PATIENT = "patient"
    """Accession number, study date and patient ID."""


class WorklistConfig(Settings):
    """How a night's studies are ordered and shown."""

    max_wait_h: float = Field(default=72.0, gt=0, le=MAX_HOURS)
    """Hours after its arrival beyond which no study is kept waiting by its priority."""
    interval_h: float = Field(default=24.0, ge=0, le=MAX_HOURS)
    """Hours after the day of the list until the next one is read."""
    urgency: dict[str, float] = Field(default={})
    """Urgencies in [0, 1] that differ from the defaults, as a JSON object by finding."""
    worklist_identifiers: WorklistIdentifiers = WorklistIdentifiers.ACCESSION
    """Name studies by none, accession or patient; patient adds the patient ID."""
    viewer_url: str = Field(default="", json_schema_extra={"needed": _VIEWER_URL})
    """Link to a study in the viewer, with {study_uid} or {accession}; empty for none."""
    timezone: str = Field(default="UTC", json_schema_extra={"needed": _TIMEZONE})
    """Time zone of the worklist page, which also shows UTC."""

    @model_validator(mode="after")
    def _viewer_and_timezone_are_known(self) -> Self:
        try:
            zone_is_known = bool(ZoneInfo(self.timezone))
        except (ValueError, ZoneInfoNotFoundError):
            zone_is_known = False
        require(zone_is_known, "timezone", self.timezone, _TIMEZONE)
        if self.viewer_url:
            try:
                names = {name for _, name, _, _ in Formatter().parse(self.viewer_url) if name}
            except ValueError:
                names = set()
            web = self.viewer_url.startswith(("https://", "http://"))
            holds = web and bool(names) and names <= {"study_uid", "accession"}
            require(holds, "viewer_url", self.viewer_url, _VIEWER_URL)
        return self

    @model_validator(mode="after")
    def _urgencies_are_known(self) -> Self:
        for finding, urgency in self.urgency.items():
            wanted = "a finding under its canonical name"
            require(finding == canonical_name(finding), "urgency", finding, wanted)
            require(0 <= urgency <= 1, f"urgency of {finding}", urgency, "in [0, 1]")
        return self

    def urgency_of(self, finding: str) -> float:
        """Return a finding's urgency, in [0, 1]."""
        return float(self.urgency.get(finding, DEFAULT_URGENCY.get(finding, 0.0)))


class ResultSettings(Settings):
    """All that results depend on beside model and X-ray: a plan keeps it until it is complete."""

    quality: QualityConfig = QualityConfig()
    regions: RegionConfig = RegionConfig()
    radiomics: RadiomicsConfig = RadiomicsConfig()
    worklist: WorklistConfig = WorklistConfig()
    batch_size: int = Field(default=16, ge=1)
    """Images per forward pass."""
    report_cases: int = internal(24, ge=0)
    """Most flagged X-rays that the report shows."""
    dicom_results: bool = False
    """Also write a structured report and an overlay for each DICOM X-ray."""


def settings_of(record: Mapping[str, Any]) -> ResultSettings:
    """Return the settings that a plan holds.

    Raises:
        ConfigError: this release does not know one of them.
    """
    try:
        return ResultSettings(**record)
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"the plan's settings are of another release ({error}); finish it with the release "
            "that made it"
        ) from error


class PlanConfig(Settings):
    """How a night is planned."""

    shard_size: int = Field(default=500, ge=1)
    """X-rays per shard: what a killed run repeats at most."""
    max_images: int = Field(default=50_000, ge=1)
    """Most X-rays of a night; the oldest are scored first, the rest the next time."""
    settle_s: float = Field(default=60.0, ge=0)
    """Seconds an object must be old: a younger one may still be written."""
    rescore_since: str = ""
    """YYYY-MM-DD: score again what another model scored since; empty for none."""
    results: ResultSettings = ResultSettings()
    """What results depend on."""

    @model_validator(mode="after")
    def _date_can_be_read(self) -> Self:
        if self.rescore_since:
            try:
                date.fromisoformat(self.rescore_since)
            except ValueError as error:
                raise ConfigError(
                    f"rescore_since is {self.rescore_since!r}; it must be a date as 2026-01-31"
                ) from error
        return self


class Device(StrEnum):
    """Where the network runs; `auto` is the accelerator if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ScoreConfig(Settings):
    """How scores are computed.

    With other threads or on another device the last digits may differ, with float16 the third. A
    shard that is scored is never computed again, so each X-ray's results are of one device.
    """

    device: Device = Device.AUTO
    """Where the network runs; auto is the accelerator if there is one."""
    precision: Precision = Precision.FLOAT32
    """Arithmetic of the network; auto is float16 on an accelerator, which can move a flag that lies
    at its threshold."""
    num_threads: int = internal(0, ge=0)
    """Torch threads on a CPU; 0 leaves torch's own choice."""
    num_decoders: int = Field(default=2, ge=0)
    """Processes that read and decode ahead of the network; 0 takes what processors and memory
    allow."""
    num_measurers: int = internal(0, ge=0)
    """Processes that measure radiomics beside the network; 1 measures in the same process, 0 does
    so on a CPU and takes a quarter of the processors beside an accelerator."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """Most seconds that decoding one file may take; over it the file is rejected."""


class Run(Settings):
    """Which run a stage works for."""

    run_id: str
    """The same in all stages of a run."""
    lease_ttl_s: float = Field(default=600.0, gt=0)
    """Seconds without a sign of life after which another run takes over."""
