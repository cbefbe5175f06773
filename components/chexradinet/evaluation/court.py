"""The figures of an evaluation: every model on one test split, and differences between them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import EvaluationConfig, RegionConfig
from chexradinet.dataset.dataset import Dataset
from chexradinet.errors import SourceError
from chexradinet.evaluation.calibration import Calibration, apply_calibration
from chexradinet.evaluation.classification import (
    bootstrap_intervals,
    classification_metrics,
    paired_bootstrap_difference,
    roc_points,
)
from chexradinet.evaluation.comparison import localization_intervals
from chexradinet.evaluation.evaluator import Judged, judge
from chexradinet.evaluation.localize import BoxedCases, boxed_cases
from chexradinet.evaluation.metrics import protocol_text
from chexradinet.evaluation.reliability import calibration_metrics, performance_at_threshold
from chexradinet.model.bundle import read_bundle_info
from chexradinet.records import Split

SELECTION_RULE = "round chosen by mean AUROC on the validation split"

_MAX_ROC_POINTS = 100


@dataclass(frozen=True, kw_only=True)
class Court:
    """The test split and how models are judged on it."""

    data: Dataset
    """The data set that the models were trained on."""
    rows: npt.NDArray[np.int64]
    """Its test rows, shape (T,)."""
    cases: BoxedCases
    """The boxed cases among them."""
    regions: RegionConfig
    """How a map becomes a region."""
    config: EvaluationConfig
    """How to judge."""

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """Labels of the test images, shape (T, F)."""
        return self.data.labels[self.rows]

    @property
    def patients(self) -> list[str]:
        """Patient of each test image."""
        ids: list[str] = self.data.manifest["patient_id"].to_numpy()[self.rows].tolist()
        return ids

    def judge(self, bundle: Path) -> Judged:
        """Judge one model on the test split."""
        return judge(bundle, self.data, self.rows, self.cases, self.regions, self.config)


def open_court(data: Dataset, regions: RegionConfig, config: EvaluationConfig) -> Court:
    """Return the test split, ready to judge models on.

    Raises:
        SourceError: the data set has no test image.
    """
    rows = data.rows(Split.TEST)
    if not len(rows):
        raise SourceError(
            "the data set has no test image, so nothing can be said about the model; ingest it "
            "with a test split or a test fraction above 0"
        )
    return Court(
        data=data, rows=rows, cases=boxed_cases(data, rows), regions=regions, config=config
    )


def figures(court: Court, model: Judged, calibration: Calibration) -> dict[str, Any]:
    """Return the `test` entry of metrics.json: everything about the chosen model."""
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
        "ci95": {
            **bootstrap_intervals(
                labels,
                model.logits,
                court.patients,
                findings,
                court.config.bootstrap_samples,
                court.config.seed,
            ),
            "localization": model.localization.metrics["ci95"],
        },
        **calibration_metrics(labels, probabilities, findings),
        "operating_points": {
            name: {"threshold": calibration.thresholds[name], **points[name]} for name in findings
        },
        "calibration": asdict(calibration),
        "by_view": _by_view(court, model),
        "roc": {
            name: roc_points(labels[:, column], probabilities[:, column], _MAX_ROC_POINTS)
            for column, name in enumerate(findings)
        },
        "pooled_roc": roc_points(labels.ravel(), probabilities.ravel()),
    }


def _by_view(court: Court, model: Judged) -> dict[str, Any]:
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


def protocols(court: Court) -> dict[str, str]:
    """Return the lines that stand beside the numbers: on what and how they were measured."""
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
    fitted = "calibration and operating thresholds fitted on the validation split"
    return {
        "rounds": line,
        "test": f"{line}; {fitted}",
        "localization": boxed,
        "calibration": fitted,
    }


def compared_arms(
    court: Court, judged: Sequence[Judged], arms: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Judge the arms of the comparison against the last guided round, which had as many epochs."""
    last = judged[-1]
    found = {}
    for name, path in arms.items():
        if (
            path is None
            or read_bundle_info(path)[0].round != last.info.round
            or not last.info.round
        ):
            continue
        other = court.judge(path)
        found[name] = {
            "rounds": [other.as_round().as_dict()],
            "guided_round": last.info.round,
            "difference": _difference(court, last, other),
        }
    return found


def _difference(court: Court, guided: Judged, other: Judged) -> dict[str, Any]:
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
