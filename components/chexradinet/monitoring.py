"""A run's figures for Prometheus, pushed to a Pushgateway: gauges that describe the last batch.

A batch job ends before anything could scrape it, so it pushes. Only what a push carries is
replaced there: a failed run carries no `..._last_success_timestamp_seconds`, and that one stays.

Label values come from fixed lists (stage, reason, kind, round), are findings of a model, or are a
model's digest on its information metric: nothing that grows with patients or images can become a
time series.
"""

import functools
import http.client
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chexradinet.config import MAX_ROUNDS_LIMIT, require
from chexradinet.records import RejectReason

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

ADDRESS_VARIABLE = "PUSHGATEWAY_URL"
"""Environment variable with the Pushgateway's address, such as `http://pushgateway:9091`."""
PUSH_TIMEOUT_S = 5.0
"""Longest wait for the Pushgateway, in seconds: a run never waits longer for its telemetry."""
PUSH_INTERVAL_S = 60.0
"""Seconds between two pushes of a running training."""
PROGRESS_VARIABLE = "CHEXRADINET_PROGRESS_S"
"""Environment variable with the seconds between two lines of progress in a stage's log."""
PROGRESS_INTERVAL_S = 180.0
"""The same without that variable."""
BACK_OFF_S = 600.0
"""Seconds after a failed push: an absent gateway must not slow a training down."""
JOB = "chexradinet"
"""Grouping key `job` of every push; the others are `pipeline` and, for durations, `stage`."""

STAGES = (
    "ingest", "pretrain", "train", "heatmap", "radiomics", "retrain", "evaluate", "publish",
    "plan", "score", "collect", "upload",
)  # fmt: skip
"""Every stage of both pipelines."""
DRIFT_KINDS = (
    "scores", "embeddings", "outliers", "exposure", "view", "age", "sex", "manufacturer",
)  # fmt: skip
"""What is compared with the reference distributions of the model."""

_LABELS = {
    "stage": re.compile("|".join(STAGES)),
    "reason": re.compile("|".join(RejectReason)),
    "finding": re.compile(r"\w[\w +/()-]{0,63}"),
    "kind": re.compile("|".join(DRIFT_KINDS)),
    "round": re.compile(f"[0-{MAX_ROUNDS_LIMIT}]"),
}
"""What the values of each label look like."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOG = logging.getLogger(__name__)


def _metric(meaning: str, *, name: str = "", label: str = "", empty: bool = True) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Declare a field that is one gauge, by its own name unless another is given."""
    about = {"meaning": meaning, "name": name, "label": label}
    kept: dict[str, Any] = {"default_factory": dict} if label and empty else {"default": None}
    return field(metadata=about, **kept)


@dataclass(frozen=True, kw_only=True)
class RunTelemetry:
    """Figures of any run. What is not known is left out and keeps its last pushed value.

    Raises:
        ConfigError: a label is not of its list, or a number is negative or not finite.
    """

    pipeline = "run"
    """Second word of each metric's name, and the grouping key at the Pushgateway."""

    success: bool | None = None
    """Whether the run ended well; None while it still runs."""
    duration_seconds: float | None = _metric("Wall time of the last run.")
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each finished stage; the keys are of `STAGES`. Pushed under the stage's name,
    so that each stays until the stage ends again."""
    timestamp_seconds: float = field(default_factory=time.time)
    """When this was true, in Unix time."""
    model_digest: str | None = None
    """SHA-256 of the bundle in hex: that was used (nightly) or made (training)."""
    model_round: int | None = None
    """Round of the bundle, in [0, MAX_ROUNDS_LIMIT]."""

    def __post_init__(self) -> None:
        """Check every label and number."""
        _check("stage_seconds", "stage", self.stage_seconds)
        _check("timestamp_seconds", "", {"": self.timestamp_seconds})
        for one in fields(self):
            if one.metadata:
                _check(one.name, one.metadata["label"], self._values(one.name))
        complete = (self.model_digest is None) == (self.model_round is None)
        require(complete, "model_round", self.model_round, "given together with model_digest")
        if self.model_digest is not None:
            known = _SHA256.fullmatch(self.model_digest)
            require(bool(known), "model_digest", self.model_digest, "a SHA-256 in hex")
            _check("model_round", "round", {str(self.model_round): 0.0})

    def _values(self, name: str) -> dict[str, float]:
        """Return a metric's values by label value; a metric without a label has the key ''."""
        value = getattr(self, name)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {str(key): float(number) for key, number in value.items()}
        return {"": float(value)}

    def gauges(self) -> Iterator[tuple[str, str, str, dict[str, float]]]:
        """Yield name, meaning, label and values of every known metric."""
        now = self.timestamp_seconds
        yield "last_update_timestamp_seconds", "When these figures were pushed.", "", {"": now}
        running = float(self.success is None)
        yield "running", "1 while the run is in progress, 0 once it ended.", "", {"": running}
        if self.success is not None:
            yield "success", "1 if the last run ended well, else 0.", "", {"": float(self.success)}
        if self.success:
            yield "last_success_timestamp_seconds", "When a run last ended well.", "", {"": now}
        for one in fields(self):
            if one.metadata and (values := self._values(one.name)):
                name = one.metadata["name"] or one.name
                yield name, one.metadata["meaning"], one.metadata["label"], values


@dataclass(frozen=True, kw_only=True)
class NightlyTelemetry(RunTelemetry):
    """Figures of a night's scoring."""

    pipeline = "nightly"

    images_scored: int | None = _metric("X-rays scored in the last run.")
    rejected: Mapping[RejectReason, int] | None = _metric(
        "X-rays not scored, by reason.", name="images_rejected", label="reason", empty=False
    )
    """A reason that is not named counts 0; None if nothing is known."""
    flagged: Mapping[str, int] = _metric("X-rays flagged.", name="images_flagged", label="finding")
    """X-rays at or above the operating threshold, by finding; name those with 0 too."""
    oldest_unscored_age_seconds: float | None = _metric("Age of the oldest X-ray that waits.")
    """0 when none waits."""
    drift: Mapping[str, float] = _metric(
        "P-value that counts as drift over the one found; above 1 is drift.",
        name="drift_ratio",
        label="kind",
    )
    """By kind, as `drift_ratios` gives it."""
    out_of_distribution_ratio: float | None = _metric(
        "Part of the scored X-rays that lie outside the reference."
    )
    dicom_results_archived: int | None = _metric("DICOM results that the archive confirmed.")
    dicom_results_refused: int | None = _metric("DICOM results that the archive refused.")
    plans_to_archive: int | None = _metric("Plans whose DICOM results wait for the archive.")

    def __post_init__(self) -> None:
        """Check every label and number."""
        super().__post_init__()
        ratio = self.out_of_distribution_ratio
        require(ratio is None or ratio <= 1, "out_of_distribution_ratio", ratio, "in [0, 1]")

    def _values(self, name: str) -> dict[str, float]:
        if name == "rejected" and self.rejected is not None:
            known = super()._values(name)
            return {**{reason.value: 0.0 for reason in RejectReason}, **known}
        return super()._values(name)

    def gauges(self) -> Iterator[tuple[str, str, str, dict[str, float]]]:
        """Yield name, meaning, label and values of every known metric."""
        yield from super().gauges()
        # A night with few X-rays leaves the ratios as they were; these tell since when.
        now = {"": self.timestamp_seconds}
        if self.drift:
            yield "drift_timestamp_seconds", "When drift was last measured.", "", now
        if self.out_of_distribution_ratio is not None:
            meaning = "When X-rays were last compared with the reference."
            yield "out_of_distribution_timestamp_seconds", meaning, "", now


@dataclass(frozen=True, kw_only=True)
class TrainingTelemetry(RunTelemetry):
    """Figures of a training; pushed while it runs with `success=None`, and at the end."""

    pipeline = "training"

    mean_auroc: Mapping[int, float] = _metric(
        "Validation mean AUROC.", name="mean_auroc_ratio", label="round"
    )
    """By round, in [0, 1]."""
    localization: Mapping[int, float] = _metric(
        "Boxes located at IoU 0.1.", name="localization_ratio", label="round"
    )
    """By round, in [0, 1]."""
    model_registered: bool | None = _metric("1 if the registry has the last model, 0 if not.")


def _check(name: str, label: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if label:
            known = _LABELS[label].fullmatch(key) is not None
            require(known, name, key, f"a {label} that is known")
        require(math.isfinite(value) and value >= 0, f"{name} {key}".strip(), value,
                "finite and at least 0")  # fmt: skip


def drift_ratios(p_values: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return how far each kind of comparison is over the line: `limit / p`, above 1 is drift.

    Args:
        p_values: By the names that `evaluation.drift` gives: `score:Mass`, `metadata:age`,
            `image:mean`, `embedding`, `ood`. The smallest of several of a kind counts.
        limit: P-value below which a comparison raises the alarm, above 0.
    """
    whole = {"score": "scores", "image": "exposure", "embedding": "embeddings", "ood": "outliers"}
    found: dict[str, float] = {}
    for name, p_value in p_values.items():
        family, _, rest = name.partition(":")
        kind = whole.get(family, rest)
        found[kind] = max(found.get(kind, 0.0), limit / p_value)
    return found


def registries_of(telemetry: RunTelemetry) -> "Iterator[tuple[dict[str, str], CollectorRegistry]]":
    """Yield what is pushed, the run's figures and each stage's, with its grouping key."""
    # Here, not above: training and scoring also run where no Prometheus client is installed.
    from prometheus_client import CollectorRegistry, Gauge

    prefix = f"chexradinet_{telemetry.pipeline}"
    key = {"pipeline": telemetry.pipeline}
    registry = CollectorRegistry()
    for name, meaning, label, values in telemetry.gauges():
        gauge = Gauge(f"{prefix}_{name}", meaning, [label] if label else [], registry=registry)
        for value_of_label, number in values.items():
            (gauge.labels(value_of_label) if label else gauge).set(number)
    if telemetry.model_digest is not None:
        info = Gauge(f"{prefix}_model_info", "Model of the last run.", ["digest", "round"],
                     registry=registry)  # fmt: skip
        info.labels(telemetry.model_digest, str(telemetry.model_round)).set(1)
    yield key, registry
    for stage, seconds in telemetry.stage_seconds.items():
        of_stage = CollectorRegistry()
        meaning = "Wall time of the stage when it last ended."
        Gauge(f"{prefix}_stage_duration_seconds", meaning, registry=of_stage).set(seconds)
        yield {**key, "stage": stage}, of_stage


def push(telemetry: RunTelemetry) -> bool:
    """Send a run's figures to the Pushgateway of the environment; return whether they arrived.

    Never fails the run: without an address nothing happens, and a gateway that is unreachable, slow
    or refuses is a warning in the log.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "").strip()
    if not address:
        _log_absence()
        return False
    try:
        host = _host_of(address)
        from prometheus_client import pushadd_to_gateway

        for key, registry in registries_of(telemetry):
            pushadd_to_gateway(address, JOB, registry, key, timeout=PUSH_TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError, ImportError) as error:
        _LOG.warning(
            "telemetry was not pushed (%s: %s); the run continues. Check %s, that the gateway is "
            "up, and the network policy between them",
            type(error).__name__, error, ADDRESS_VARIABLE,
        )  # fmt: skip
        return False
    _LOG.info("pushed telemetry of the %s pipeline to %s", telemetry.pipeline, host)
    return True


def _host_of(address: str) -> str:
    """Return host and port of a gateway's address."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("the address does not begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("the address holds a user name; the gateway is reached without one")
    return parts.netloc


@functools.cache
def _log_absence() -> None:
    """Log once in a process that nothing is pushed."""
    _LOG.info("%s is not set: no telemetry is pushed", ADDRESS_VARIABLE)


@contextmanager
def timed_stage(stage: str) -> Iterator[None]:
    """Push how long a stage of the training pipeline took, once it has ended well.

    Args:
        stage: One of `STAGES`.
    """
    started = time.monotonic()
    yield
    push(TrainingTelemetry(stage_seconds={stage: time.monotonic() - started}))


class ProgressReporter:
    """Progress of `fit` that also pushes, once per minute, that the training is running."""

    def __init__(self, progress: Callable[[int, int, float], None] | None) -> None:
        self._progress = progress
        self._next_s = 0.0

    def __call__(self, step: int, num_steps: int, loss: float) -> None:
        """Report a step, the number of steps and the loss."""
        if self._progress is not None:
            self._progress(step, num_steps, loss)
        if os.environ.get(ADDRESS_VARIABLE, "").strip() and time.monotonic() >= self._next_s:
            arrived = push(TrainingTelemetry())
            self._next_s = time.monotonic() + (PUSH_INTERVAL_S if arrived else BACK_OFF_S)


class ProgressLog:
    """Logs how far a stage is, every few minutes or as `PROGRESS_VARIABLE` says."""

    def __init__(self, unit: str = "") -> None:
        self._unit = unit
        self._interval_s = float(os.environ.get(PROGRESS_VARIABLE) or PROGRESS_INTERVAL_S)
        self._last_s = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether it is time for a line; if so, the time starts again."""
        now = time.monotonic()
        if now - self._last_s < self._interval_s:
            return False
        self._last_s = now
        return True

    def __call__(self, done: int, total: int) -> None:
        """Report how many are done, and of how many."""
        if self.is_due():
            _LOG.info("%d of %d %s", done, total, self._unit)


class PaceKeeper:
    """Progress of `fit` that keeps the images per second: in a file, as a child may train."""

    def __init__(self, batch_size: int, file: Path) -> None:
        self._batch_size = batch_size
        self._file = file
        self._begun: tuple[int, float] | None = None

    def __call__(self, step: int, num_steps: int, _loss: float) -> None:
        """Note a step; the first one does not count, as it also loads libraries."""
        now = time.monotonic()
        if self._begun is None or step <= self._begun[0]:  # a pretext is trained before
            self._begun = (step, now)
        elif step == num_steps:
            images = (step - self._begun[0]) * self._batch_size
            self._file.write_text(f"{images / (now - self._begun[1]):.3f}", encoding="ascii")

    def images_per_s(self) -> float | None:
        """Return the pace of a training that ended; None if none did, as it was done before."""
        return float(self._file.read_text(encoding="ascii")) if self._file.exists() else None
