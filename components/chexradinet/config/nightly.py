"""Settings of the nightly run: where things are, what results depend on, and how it is computed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from chexradinet.config import (
    QualityConfig,
    RadiomicsConfig,
    RegionConfig,
    require,
)
from chexradinet.errors import ConfigError
from chexradinet.findings import KNOWN_FINDINGS

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

MAX_HOURS = 8760
"""Longest wait that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class WorklistConfig:
    """How a night's studies are ordered."""

    max_wait_h: float = 72.0
    """No study is kept waiting beyond this age by its priority, in hours since it arrived."""
    interval_h: float = 24.0
    """Hours after the day of the list until the next one is read."""
    urgency: Mapping[str, float] = field(default_factory=dict)
    """Urgencies that differ from `DEFAULT_URGENCY`."""

    def __post_init__(self) -> None:
        """Check every number and name."""
        year = f"at most {MAX_HOURS} (a year)"
        wait, interval = self.max_wait_h, self.interval_h
        require(0 < wait <= MAX_HOURS, "max_wait_h", wait, f"above 0 and {year}")
        require(0 <= interval <= MAX_HOURS, "interval_h", interval, f"at least 0 and {year}")
        for finding, urgency in self.urgency.items():
            require(finding in KNOWN_FINDINGS, "urgency", finding, "a canonical finding")
            require(0 <= urgency <= 1, f"urgency of {finding}", urgency, "in [0, 1]")

    def urgency_of(self, finding: str) -> float:
        """Return a finding's urgency, in [0, 1]."""
        return float(self.urgency.get(finding, DEFAULT_URGENCY.get(finding, 0.0)))


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """All that results depend on beside model and X-ray: a plan keeps it until it is complete."""

    quality: QualityConfig = field(default_factory=QualityConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    radiomics: RadiomicsConfig = field(default_factory=RadiomicsConfig)
    worklist: WorklistConfig = field(default_factory=WorklistConfig)
    batch_size: int = 16
    """Images a forward pass."""
    report_cases: int = 24
    """Most flagged X-rays that the report shows."""
    dicom_results: bool = False
    """Whether to write a structured report and an overlay for each DICOM X-ray."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.report_cases >= 0, "report_cases", self.report_cases, "at least 0")

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; `settings_of` reads them back."""
        return asdict(self)


def settings_of(record: Mapping[str, Any]) -> ResultSettings:
    """Return the settings that a plan holds.

    Raises:
        ConfigError: this release does not know one of them.
    """
    parts = {
        "quality": QualityConfig,
        "regions": RegionConfig,
        "radiomics": RadiomicsConfig,
        "worklist": WorklistConfig,
    }
    try:
        return ResultSettings(
            **{key: parts[key](**value) if key in parts else value for key, value in record.items()}
        )
    except TypeError as error:
        raise ConfigError(
            f"the plan's settings are of another release ({error}); finish it with the release "
            "that made it"
        ) from error


def night_settings(min_age_years: float, max_wait_h: float, dicom_results: bool) -> ResultSettings:
    """Return the settings that a shell offers, the others at their defaults.

    Args:
        min_age_years: Youngest patient to score; 0 takes every age.
        max_wait_h: Hours that no study is kept waiting beyond by its priority.
        dicom_results: Whether to write DICOM results.
    """
    return ResultSettings(
        quality=QualityConfig(min_age_years=min_age_years),
        worklist=WorklistConfig(max_wait_h=max_wait_h),
        dicom_results=dicom_results,
    )


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How a night is planned."""

    shard_size: int = 500
    """X-rays a shard: what a killed run does again at most."""
    max_images: int = 50_000
    """Most X-rays of a plan; the ones that came first go first, the rest the next time."""
    settle_s: float = 60.0
    """An object younger than this is left for the next night: it may still be written."""
    rescore_since: str = ""
    """`YYYY-MM-DD`: X-rays planned since then with another model are planned again."""
    results: ResultSettings = field(default_factory=ResultSettings)
    """What results depend on."""

    def __post_init__(self) -> None:
        """Check every number and the date."""
        require(self.shard_size >= 1, "shard_size", self.shard_size, "at least 1")
        require(self.max_images >= 1, "max_images", self.max_images, "at least 1")
        require(self.settle_s >= 0, "settle_s", self.settle_s, "at least 0")
        if self.rescore_since:
            try:
                date.fromisoformat(self.rescore_since)
            except ValueError as error:
                raise ConfigError(
                    f"rescore_since is {self.rescore_since!r}; it must be a date as 2026-01-31"
                ) from error


DEVICES = ("auto", "cpu", "cuda")
"""Where the network can run; `auto` is the accelerator where there is one."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How scores are computed; on another device or number of threads the last digits may differ.

    A shard that is scored is never computed again, so each X-ray's results are of one device.
    """

    device: str = "auto"
    """One of `DEVICES`."""
    num_threads: int = 0
    """Torch threads on a CPU; 0 leaves torch's own choice."""
    num_decoders: int = 2
    """Processes that read and decode ahead of the network; 1 decodes in this one."""

    def __post_init__(self) -> None:
        """Check the device's name and every number."""
        known = self.device in DEVICES
        require(known, "device", self.device, f"one of {', '.join(DEVICES)}")
        require(self.num_threads >= 0, "num_threads", self.num_threads, "at least 0")
        require(self.num_decoders >= 1, "num_decoders", self.num_decoders, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which run a stage works for."""

    run_id: str
    """The same in all stages of a run."""
    lease_ttl_s: float = 600.0
    """Seconds without a sign of life after which another run may take over."""
