"""The figures of a run that are worth watching, as plain records: no I/O, no Prometheus.

Labels take values of fixed lists only (stage, reason, finding, kind, round), and a model's digest
on its information metric: nothing that grows with patients or images can become a time series.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from chexradinet.config import MAX_ROUNDS_LIMIT, require
from chexradinet.findings import KNOWN_FINDINGS
from chexradinet.records import RejectReason

STAGES = (
    "ingest", "train", "heatmap", "radiomics", "retrain", "evaluate", "publish",
    "plan", "score", "collect",
)  # fmt: skip
"""Every stage of both pipelines."""

DRIFT_KINDS = (
    "scores", "embeddings", "outliers", "exposure", "view", "age", "sex", "manufacturer",
)  # fmt: skip
"""What is compared with the reference distributions of the model."""

_ALLOWED: dict[str, frozenset[str]] = {
    "stage": frozenset(STAGES),
    "reason": frozenset(reason.value for reason in RejectReason),
    "finding": frozenset(KNOWN_FINDINGS),
    "kind": frozenset(DRIFT_KINDS),
    "round": frozenset(str(number) for number in range(MAX_ROUNDS_LIMIT + 1)),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric without its prefix: a value for each combination of labels."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


def _check(name: str, values: Mapping[str, float], label: str | None = None) -> None:
    """Refuse label values outside their list, and numbers that are negative or not finite."""
    for key, value in values.items():
        if label:
            require(key in _ALLOWED[label], name, key, f"a {label} of {sorted(_ALLOWED[label])}")
        require(math.isfinite(value) and value >= 0, f"{name} {key}", value, "finite and >= 0")


def _single(name: str, meaning: str, value: float | None) -> Iterator[Figure]:
    if value is not None:
        yield Figure(name, meaning, (), {(): float(value)})


def _labelled(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Iterator[Figure]:
    if values:
        yield Figure(name, meaning, (label,), {(key,): float(v) for key, v in values.items()})


def drift_ratios(p_values: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return how far each kind of comparison is over the line: `limit / p`, above 1 is drift.

    Args:
        p_values: By the names that `evaluation.drift` gives: `score:Mass`, `metadata:age`,
            `image:mean`, `embedding`, `ood`. Of several of a kind the smallest counts.
        limit: P-value below which a comparison raises the alarm, above 0.
    """
    whole = {"score": "scores", "image": "exposure", "embedding": "embeddings", "ood": "outliers"}
    found: dict[str, float] = {}
    for name, p_value in p_values.items():
        family, _, rest = name.partition(":")
        kind = whole.get(family, rest)
        found[kind] = max(found.get(kind, 0.0), limit / p_value)
    return found


@dataclass(frozen=True, kw_only=True)
class RunTelemetry:
    """Figures of any run. What is not known is left out and keeps its last pushed value."""

    pipeline = "run"
    """Second word of each metric's name, and the grouping key at the Pushgateway."""

    success: bool | None = None
    """Whether the run ended well; None while it still runs."""
    duration_seconds: float | None = None
    """Wall time of the whole run so far."""
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
        """Check every label and number.

        Raises:
            ConfigError: a label is not of its list, or a number is negative or not finite.
        """
        _check("stage_seconds", self.stage_seconds, "stage")
        numbers = {"timestamp_seconds": self.timestamp_seconds} | self._numbers()
        _check("telemetry", {name: value for name, value in numbers.items() if value is not None})
        require((self.model_digest is None) == (self.model_round is None), "model_round",
                self.model_round, "given together with model_digest")  # fmt: skip
        if self.model_digest is not None:
            known = _SHA256.fullmatch(self.model_digest)
            require(bool(known), "model_digest", self.model_digest, "a SHA-256 in hex")
            _check("model_round", {str(self.model_round): 0.0}, "round")

    def _numbers(self) -> dict[str, float | None]:
        return {"duration_seconds": self.duration_seconds}

    def figures(self) -> Iterator[Figure]:
        """Yield every known metric."""
        now, state = self.timestamp_seconds, self.success
        yield from _single("last_update_timestamp_seconds", "When these figures were pushed.", now)
        yield from _single("running", "1 while the run goes on, 0 when it ended.", state is None)
        if state is not None:
            yield from _single("success", "1 if the last run ended well, else 0.", state)
        if state:
            yield from _single("last_success_timestamp_seconds", "When a run last ended well.", now)
        yield from _single("duration_seconds", "Wall time of the last run.", self.duration_seconds)
        if self.model_digest is not None:
            values: dict[tuple[str, ...], float] = {(self.model_digest, str(self.model_round)): 1.0}
            yield Figure("model_info", "Model of the last run.", ("digest", "round"), values)

    def stage_figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the metric of each finished stage, and the stage's name."""
        for stage, seconds in self.stage_seconds.items():
            meaning = "Wall time of the stage when it last ended."
            yield from ((stage, one) for one in _single("stage_duration_seconds", meaning, seconds))


@dataclass(frozen=True, kw_only=True)
class NightlyTelemetry(RunTelemetry):
    """Figures of a night's scoring."""

    pipeline = "nightly"

    images_scored: int | None = None
    """X-rays scored in this run."""
    rejected: Mapping[RejectReason, int] | None = None
    """X-rays rejected by reason; a reason that is not named counts 0."""
    flagged: Mapping[str, int] = field(default_factory=dict)
    """X-rays at or above the operating threshold, by canonical finding; name those with 0 too."""
    oldest_unscored_age_seconds: float | None = None
    """Age of the oldest X-ray in the inbox that has neither score nor reject; 0 when none waits."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """By kind, the p-value that counts as drift over the one found: `drift_ratios` gives it."""
    out_of_distribution_ratio: float | None = None
    """Part of the scored X-rays that the model was not made for, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check every label and number."""
        super().__post_init__()
        rejected = self.rejected or {}
        _check("rejected", {str(reason): count for reason, count in rejected.items()}, "reason")
        _check("flagged", self.flagged, "finding")
        _check("drift", self.drift, "kind")
        ratio = self.out_of_distribution_ratio
        require(ratio is None or ratio <= 1, "out_of_distribution_ratio", ratio, "in [0, 1]")

    def _numbers(self) -> dict[str, float | None]:
        return super()._numbers() | {
            "images_scored": self.images_scored,
            "oldest_unscored_age_seconds": self.oldest_unscored_age_seconds,
            "out_of_distribution_ratio": self.out_of_distribution_ratio,
        }

    def figures(self) -> Iterator[Figure]:
        """Yield every known metric; all reject reasons once any count is known."""
        yield from super().figures()
        yield from _single("images_scored", "X-rays scored in the last run.", self.images_scored)
        if self.rejected is not None:
            counts = {reason.value: self.rejected.get(reason, 0) for reason in RejectReason}
            yield from _labelled(
                "images_rejected", "X-rays not scored, by reason.", "reason", counts
            )
        yield from _labelled("images_flagged", "X-rays flagged.", "finding", self.flagged)
        age, meaning = self.oldest_unscored_age_seconds, "Age of the oldest X-ray that waits."
        yield from _single("oldest_unscored_age_seconds", meaning, age)
        meaning = "P-value that counts as drift over the one found; above 1 is drift."
        yield from _labelled("drift_ratio", meaning, "kind", self.drift)
        # A night with few X-rays or none leaves the ratios as they were: since when is told here.
        now, meaning = self.timestamp_seconds, "When drift was last measured."
        yield from _single("drift_timestamp_seconds", meaning, now if self.drift else None)
        meaning = "Part of the scored X-rays that lie outside the reference."
        ratio = self.out_of_distribution_ratio
        yield from _single("out_of_distribution_ratio", meaning, ratio)
        meaning = "When X-rays were last held against the reference."
        measured = None if ratio is None else now
        yield from _single("out_of_distribution_timestamp_seconds", meaning, measured)


@dataclass(frozen=True, kw_only=True)
class TrainingTelemetry(RunTelemetry):
    """Figures of a training; pushed while it goes on with `success=None`, and at the end."""

    pipeline = "training"

    mean_auroc: Mapping[int, float] = field(default_factory=dict)
    """Mean AUROC on the validation split by round, in [0, 1]."""
    localization: Mapping[int, float] = field(default_factory=dict)
    """Part of the boxes located at an IoU of 0.1 by round, in [0, 1]."""
    gpu_utilisation_ratio: float | None = None
    """Mean utilisation of the visible GPUs, in [0, 1]; None without a GPU."""

    def __post_init__(self) -> None:
        """Check every label and number."""
        super().__post_init__()
        for name in ("mean_auroc", "localization"):
            _check(name, {str(number): v for number, v in getattr(self, name).items()}, "round")

    def _numbers(self) -> dict[str, float | None]:
        return super()._numbers() | {"gpu_utilisation_ratio": self.gpu_utilisation_ratio}

    def figures(self) -> Iterator[Figure]:
        """Yield every known metric."""
        yield from super().figures()
        auroc = {str(number): value for number, value in self.mean_auroc.items()}
        yield from _labelled("mean_auroc_ratio", "Validation mean AUROC.", "round", auroc)
        located = {str(number): value for number, value in self.localization.items()}
        meaning = "Boxes located at IoU 0.1."
        yield from _labelled("localization_ratio", meaning, "round", located)
        meaning = "Mean utilisation of the visible GPUs."
        yield from _single("gpu_utilisation_ratio", meaning, self.gpu_utilisation_ratio)
