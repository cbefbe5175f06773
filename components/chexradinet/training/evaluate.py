"""Choosing, calibrating and evaluating: what the rounds came to, and the effect of guidance.

The best round is chosen on the validation split and calibrated there. Every round and both arms of
the comparison are then evaluated on the test split, which nothing before this stage has read.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.artifacts import require_replaceable, writing_directory
from chexradinet.config import EvaluationConfig, RadiomicsConfig, RegionConfig
from chexradinet.dataset import Dataset, open_dataset, read_headers
from chexradinet.errors import ArtifactError, ConfigError
from chexradinet.evaluation import (
    EVALUATION_HEAD,
    METRICS_FILE,
    metrics_document,
    write_metrics,
)
from chexradinet.evaluation.calibration import Calibration, apply_calibration, fit_calibration
from chexradinet.evaluation.evaluator import (
    EvaluatedModel,
    compare_arms,
    evaluate_model,
    evaluation_context,
    figures_on_test,
    protocols,
)
from chexradinet.evaluation.reference import (
    Population,
    Reference,
    build_reference,
    image_statistics,
)
from chexradinet.model import BUNDLE_HEAD, read_bundle_info
from chexradinet.model.bundle import environment, read_provenance, replace_info
from chexradinet.model.inference import predict
from chexradinet.monitoring import TrainingTelemetry, push, timed_stage
from chexradinet.records import Split
from chexradinet.reports.evaluation import report_figures, write_report

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The models of a run."""

    rounds: Sequence[Path]
    """Bundles of the guided arm, round 0 first; a round that was skipped repeats the one before."""
    control: Path | None = None
    """Last round of the same epochs without guidance."""
    permuted: Path | None = None
    """Last round of the same guidance with features shuffled over the images."""

    @property
    def compared(self) -> dict[str, Path | None]:
        """The arms that guidance is held against, by name."""
        return {"control": self.control, "permuted": self.permuted}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the evaluation came to."""

    best_round: int
    """The round that was chosen."""
    bundle_digest: str
    """Digest of the calibrated bundle."""
    metrics: dict[str, Any]
    """The document that `metrics.json` holds."""

    def headline(self) -> dict[str, float]:
        """Return the defined figures that the Kubeflow page shows; all finite."""
        test = self.metrics["test"]
        localized = test["localization"]
        named = {
            "best_round": self.best_round,
            "test_mean_auroc": test["mean_auroc"],
            "test_ece": test["ece"],
            "iou_0.1": localized["iou_0.1"],
            "iou_0.3": localized["iou_0.3"],
            "swapped_iou_0.3": localized["swapped_iou_0.3"],
        }
        return {name: float(value) for name, value in named.items() if value is not None}

    def pooled_roc(self) -> tuple[list[float], list[float], list[float]]:
        """Return false and true positive rates and thresholds over all findings pooled."""
        curve = self.metrics["test"]["pooled_roc"]
        if curve is None:
            return [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]
        return curve["fpr"], curve["tpr"], curve["thresholds"]


@timed_stage("evaluate")
def evaluate(
    dataset: Path,
    arms: Arms,
    *,
    best: Path,
    target: Path,
    config: EvaluationConfig,
    regions: RegionConfig,
    radiomics: RadiomicsConfig,
) -> Evaluation:
    """Write the calibrated bundle of the best round, and its metrics and report.

    Args:
        dataset: Directory that `ingest` wrote; the models were trained on it.
        arms: The models.
        best: Bundle directory to make: the best round with calibration, thresholds and reference.
        target: Directory to make, with `metrics.json` and `report.html`.
        config: How to evaluate.
        regions: How a map becomes a region.
        radiomics: Settings of the features that the report contrasts.

    Raises:
        ConfigError: `best` or `target` hold something else, or are one place.
        ArtifactError: an input cannot be read.
        MismatchError: a model was trained on another data set.
        SourceError: the data set has no test image.
    """
    if best.resolve() == target.resolve():
        raise ConfigError(f"best and evaluation are both {target}; give each a directory")
    require_replaceable(best, BUNDLE_HEAD)
    require_replaceable(target, EVALUATION_HEAD)
    data = open_dataset(dataset)
    context = evaluation_context(data, regions, config)
    rounds = distinct_rounds(arms.rounds)
    evaluated = [evaluate_model(context, path) for path in rounds]
    chosen = _best_of(evaluated)
    calibration, reference = _calibrate(evaluated[chosen], data, config)
    document = metrics_document(
        rounds=[model.as_round() for model in evaluated],
        best_round=evaluated[chosen].info.round,
        test=figures_on_test(context, evaluated[chosen], calibration),
        protocol=protocols(context),
        findings=list(data.info.findings),
        arms=compare_arms(context, evaluated, arms.compared),
        seed=config.seed,
        provenance={
            "stages": read_provenance(rounds[chosen]),
            "evaluate": {"data_digests": [data.digest], "seed": config.seed, **environment()},
        },
    )
    digest = replace_info(
        rounds[chosen],
        best,
        reference.arrays,
        calibration=calibration.as_dict(),
        thresholds=dict(calibration.thresholds),
        reference=reference.document,
        metrics={**evaluated[chosen].info.metrics, "test": _summary(document)},
    )
    document["bundle_digest"] = digest
    shown = report_figures(evaluated[chosen], data, context.rows, calibration, radiomics, regions)
    with writing_directory(target, EVALUATION_HEAD) as folder:
        write_metrics(folder / METRICS_FILE, document)
        write_report(folder / "report.html", document, shown)
    push(_telemetry(evaluated))
    _log.info("best round %d of %d; bundle %s", document["best_round"], len(evaluated), digest[:12])
    return Evaluation(best_round=document["best_round"], bundle_digest=digest, metrics=document)


def distinct_rounds(bundles: Sequence[Path]) -> list[Path]:
    """Return the bundles without those of skipped rounds, which repeat the one before.

    Raises:
        ArtifactError: there is no bundle.
    """
    seen: dict[str, Path] = {}
    for path in bundles:
        seen.setdefault(read_bundle_info(path)[1], path)
    if not seen:
        raise ArtifactError("no model was given; pass at least the bundle of round 0")
    return list(seen.values())


def _best_of(evaluated: Sequence[EvaluatedModel]) -> int:
    """Return the index of the model that validates best by mean AUROC; of equals, the earliest."""
    values = [model.info.metrics["validation"]["mean_auroc"] for model in evaluated]
    ranked = [(-np.inf if value is None else value) for value in values]
    return int(np.argmax(ranked))


def _metadata(data: Dataset, rows: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """Return what a night is compared in beside its scores; a device only DICOM files name."""
    found = {name: data.column(name)[rows].tolist() for name in ("view", "sex", "age")}
    headers = read_headers(data.path)
    if headers is not None:
        found["manufacturer"] = headers["manufacturer"].to_numpy()[rows].tolist()
    return found


def _telemetry(evaluated: Sequence[EvaluatedModel]) -> TrainingTelemetry:
    """Return what the dashboard shows of each round; what is not defined is left out."""
    aurocs = {
        model.info.round: model.info.metrics["validation"]["mean_auroc"] for model in evaluated
    }
    located = {model.info.round: model.localization.metrics["iou_0.1"] for model in evaluated}
    return TrainingTelemetry(
        mean_auroc={number: value for number, value in aurocs.items() if value is not None},
        localization={number: value for number, value in located.items() if value is not None},
    )


def _calibrate(
    model: EvaluatedModel, data: Dataset, config: EvaluationConfig
) -> tuple[Calibration, Reference]:
    """Fit on the validation split what scoring needs beside the weights."""
    rows = data.rows(Split.VALIDATION)
    findings = data.info.findings
    found = predict(model.network, data.images, rows, maps=False)
    calibration = fit_calibration(data.labels[rows], found.logits, findings, config)
    reference = build_reference(
        Population(
            findings=findings,
            probabilities=apply_calibration(calibration.as_dict(), findings, found.logits),
            embeddings=found.embedding,
            patient_ids=data.column("patient_id")[rows].tolist(),
            metadata=_metadata(data, rows),
            image_statistics=image_statistics(data.images, rows),
        ),
        seed=config.seed,
    )
    return calibration, reference


def _summary(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the bundle keeps of the test: the headline and its protocol."""
    test = document["test"]
    return {
        "protocol": document["protocol"]["test"],
        "mean_auroc": test["mean_auroc"],
        "mean_auroc_num_findings": test["mean_auroc_num_findings"],
        "ci95_mean_auroc": test["ci95"]["mean_auroc"],
        "auroc": test["auroc"],
        "ece": test["ece"],
        "operating_points": test["operating_points"],
        "localization": {
            key: value for key, value in test["localization"].items() if not isinstance(value, dict)
        },
    }
