"""Choosing, calibrating and judging: what the rounds came to, and what guidance bought.

The best round is chosen on the validation split and calibrated there. Every round and both arms of
the comparison are then judged on the test split, which nothing before this stage has read.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.artifacts import writing_directory
from chexradinet.config import EvaluationConfig, RadiomicsConfig, RegionConfig
from chexradinet.dataset.format import Dataset, open_dataset
from chexradinet.errors import ArtifactError, SourceError
from chexradinet.flows.evidence import image_statistics, report_evidence
from chexradinet.flows.judge import Judged, judge
from chexradinet.flows.localize import BoxedCases, boxed_cases
from chexradinet.model.bundle import read_bundle_info, replace_info
from chexradinet.model.inference import predict
from chexradinet.records import Split
from chexradinet.results.calibration import Calibration, apply_calibration, fit_calibration
from chexradinet.results.classification import (
    bootstrap_intervals,
    classification_metrics,
    paired_bootstrap_difference,
    roc_points,
)
from chexradinet.results.comparison import localization_intervals
from chexradinet.results.metrics import metrics_document, protocol_text, write_metrics
from chexradinet.results.reference import Population, Reference, build_reference
from chexradinet.results.reliability import calibration_metrics, performance_at_threshold
from chexradinet.results.report import write_report

_log = logging.getLogger(__name__)

SELECTION_RULE = "round chosen by validation AUROC plus a tenth of region faithfulness"


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The models of a run."""

    rounds: Sequence[Path]
    """Bundles of the guided arm, round 0 first; a round that was skipped repeats the one before."""
    control: Path | None = None
    """Last round of the same epochs without guidance."""
    permuted: Path | None = None
    """Last round of the same guidance with features shuffled over the images."""


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


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """The test split and how models are judged on it."""

    data: Dataset
    rows: npt.NDArray[np.int64]
    cases: BoxedCases
    regions: RegionConfig
    config: EvaluationConfig

    def of(self, bundle: Path) -> Judged:
        return judge(bundle, self.data, self.rows, self.cases, self.regions, self.config)

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        return self.data.labels[self.rows]

    @property
    def patients(self) -> npt.NDArray[np.object_]:
        return self.data.manifest["patient_id"].to_numpy()[self.rows]


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
        config: How to judge.
        regions: How a map becomes a region.
        radiomics: Settings of the features that the report contrasts.

    Raises:
        ArtifactError: an input cannot be read.
        MismatchError: a model was trained on another data set.
        SourceError: the data set has no test image.
    """
    data = open_dataset(dataset)
    rows = data.rows(Split.TEST)
    if not len(rows):
        raise SourceError(
            "the data set has no test image, so nothing can be said about the model; ingest it "
            "with a test split or a test fraction above 0"
        )
    court = _Judge(
        data=data, rows=rows, cases=boxed_cases(data, rows), regions=regions, config=config
    )
    rounds = distinct_rounds(arms.rounds)
    judged = [court.of(path) for path in rounds]
    chosen = best_of(judged)
    calibration, reference = _calibrate(judged[chosen], data, config)
    test = _test_metrics(court, judged[chosen], calibration)
    document = metrics_document(
        rounds=[model.as_round() for model in judged],
        best_round=judged[chosen].info.round,
        test=test,
        protocol=_protocols(court),
        findings=list(data.info.findings),
        arms=_arms(court, judged, arms),
        seed=config.seed,
    )
    digest = replace_info(
        rounds[chosen],
        best,
        reference.arrays,
        calibration=calibration.as_dict(),
        thresholds=dict(calibration.thresholds),
        reference=reference.document,
        metrics={**judged[chosen].info.metrics, "test": _summary(document)},
    )
    document["bundle_digest"] = digest
    evidence = report_evidence(judged[chosen], data, rows, calibration, radiomics, regions)
    with writing_directory(target) as folder:
        write_metrics(folder / "metrics.json", document)
        write_report(folder / "report.html", document, evidence.panel, evidence.contrast)
    _log.info("best round %d of %d; bundle %s", document["best_round"], len(judged), digest[:12])
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


def best_of(judged: Sequence[Judged]) -> int:
    """Return the index of the model with the highest selection value; of equals, the earliest."""
    values = [model.info.metrics["validation"]["selection"] for model in judged]
    ranked = [(-np.inf if value is None else value) for value in values]
    return int(np.argmax(ranked))


def _calibrate(
    model: Judged, data: Dataset, config: EvaluationConfig
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
            patient_ids=data.manifest["patient_id"].to_numpy()[rows].tolist(),
            metadata={
                name: data.manifest[name].to_numpy()[rows].tolist()
                for name in ("view", "sex", "age")
            },
            image_statistics=image_statistics(data.images, rows),
        ),
        seed=config.seed,
    )
    return calibration, reference


def _test_metrics(court: _Judge, model: Judged, calibration: Calibration) -> dict[str, Any]:
    findings, labels = court.data.info.findings, court.labels
    probabilities = apply_calibration(calibration.as_dict(), findings, model.logits)
    points = {
        name: performance_at_threshold(
            labels[:, column], probabilities[:, column], calibration.thresholds[name]
        )
        for column, name in enumerate(findings)
    }
    return {
        **model.classification,
        "localization": model.localization.metrics,
        "ci95": bootstrap_intervals(
            labels,
            model.logits,
            court.patients,
            findings,
            court.config.bootstrap_samples,
            court.config.seed,
        ),
        **calibration_metrics(labels, probabilities, findings),
        "operating_points": {
            name: {"threshold": calibration.thresholds[name], **points[name]} for name in findings
        },
        "calibration": asdict(calibration),
        "by_view": _by_view(court, model),
        "roc": {
            name: roc_points(labels[:, column], probabilities[:, column])
            for column, name in enumerate(findings)
        },
        "pooled_roc": roc_points(labels.ravel(), probabilities.ravel()),
    }


def _by_view(court: _Judge, model: Judged) -> dict[str, Any]:
    views = court.data.manifest["view"].to_numpy()[court.rows]
    findings = court.data.info.findings
    return {
        view or "unknown": {
            **classification_metrics(
                court.labels[views == view], model.logits[views == view], findings
            ),
            "num_images": int((views == view).sum()),
        }
        for view in sorted(set(views))
    }


def _protocols(court: _Judge) -> dict[str, str]:
    line = protocol_text(
        dataset=Path(court.data.info.source).name,
        digest=court.data.digest,
        split=Split.TEST.value,
        num_images=len(court.rows),
        num_patients=len(set(court.patients)),
        selection=SELECTION_RULE,
    )
    boxed = (
        f"{line}; one box a map, chosen without the truth, for {len(court.cases.findings)} boxed "
        "findings; controls: a smooth random map, and the map of another patient with the finding"
    )
    fitted = f"{line}; calibration and operating thresholds fitted on the validation split"
    return {"rounds": line, "test": fitted, "localization": boxed}


def _arms(court: _Judge, judged: Sequence[Judged], arms: Arms) -> dict[str, Any]:
    """Judge the arms of the comparison against the last guided round, which had as many epochs."""
    last = judged[-1]
    found = {}
    for name, path in (("control", arms.control), ("permuted", arms.permuted)):
        if (
            path is None
            or read_bundle_info(path)[0].round != last.info.round
            or not last.info.round
        ):
            continue
        other = court.of(path)
        found[name] = {
            "rounds": [other.as_round().as_dict()],
            "guided_round": last.info.round,
            "difference": _difference(court, last, other),
        }
    return found


def _difference(court: _Judge, guided: Judged, other: Judged) -> dict[str, Any]:
    """Return the paired differences with intervals, guided minus other, measure by measure."""
    samples, seed = court.config.bootstrap_samples, court.config.seed
    ranking = paired_bootstrap_difference(
        court.labels, guided.logits, other.logits, court.patients, samples, seed
    )
    located = localization_intervals(
        guided.localization.hits,
        court.cases.findings,
        court.cases.patients,
        other.localization.hits,
        samples,
        seed,
    )
    return {"mean_auroc": ranking, **located}


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
        "localization": {
            key: value for key, value in test["localization"].items() if not isinstance(value, dict)
        },
    }
