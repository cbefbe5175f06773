"""Models on one test split: their figures, the differences between them, and the round to choose.

A round is chosen by mean AUROC on the validation split while the loop runs (ADR 0006); the test
split is read by nothing before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import EvaluationConfig, RegionConfig
from chexradinet.dataset import Dataset
from chexradinet.errors import MismatchError, SourceError
from chexradinet.evaluation import protocol_text, round_entry
from chexradinet.evaluation.calibration import (
    Calibration,
    apply_calibration,
    calibration_metrics,
    performance_at_threshold,
)
from chexradinet.evaluation.classification import (
    bootstrap_intervals,
    classification_metrics,
    paired_bootstrap_difference,
    roc_points,
)
from chexradinet.evaluation.localization import (
    BoxedCases,
    Localization,
    boxed_cases,
    free_response,
    localization_intervals,
    localize,
)
from chexradinet.evaluation.subgroups import age_groups, decision_curve, subgroup_metrics
from chexradinet.model import BundleInfo, read_bundle_info, require_match
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.records import Split
from chexradinet.regions.extract import extract_regions

SELECTION_RULE = "round chosen by mean AUROC on the validation split"

_MAX_ROC_POINTS = 100
_MAX_ABSENT = 500


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """The test split and how models are evaluated on it."""

    data: Dataset
    """The data set that the models were trained on."""
    rows: npt.NDArray[np.int64]
    """Its test rows, shape (T,)."""
    cases: BoxedCases
    """The boxed cases among them."""
    regions: RegionConfig
    """How a map becomes a region."""
    config: EvaluationConfig
    """How to evaluate."""

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """Labels of the test images, shape (T, F)."""
        return self.data.labels[self.rows]

    @property
    def patients(self) -> list[str]:
        """Patient of each test image."""
        ids: list[str] = self.data.column("patient_id")[self.rows].tolist()
        return ids


def evaluation_context(
    data: Dataset, regions: RegionConfig, config: EvaluationConfig
) -> EvaluationContext:
    """Return the test split, ready to evaluate models on.

    Raises:
        SourceError: the data set has no test image.
    """
    rows = data.rows(Split.TEST)
    if not len(rows):
        raise SourceError(
            "the data set has no test image, so nothing can be said about the model; ingest it "
            "with a test split or a test fraction above 0"
        )
    return EvaluationContext(
        data=data, rows=rows, cases=boxed_cases(data, rows), regions=regions, config=config
    )


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """One model and what was measured of it on the test split."""

    info: BundleInfo
    """Description of the model."""
    network: ChexRadiNet
    """The model."""
    logits: npt.NDArray[np.float32]
    """Logits of the test images, shape (T, F)."""
    classification: dict[str, Any]
    """Result of `classification_metrics`."""
    localization: Localization
    """Localisation on the boxed test images."""

    def as_round(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        history = self.info.history
        return round_entry(
            self.info.round,
            self.info.guidance,
            {
                **self.classification,
                "validation": {"mean_auroc": self.info.metrics["validation"]["mean_auroc"]},
                **({"history": history} if history else {}),
            },
            self.localization.metrics,
        )


def evaluate_model(context: EvaluationContext, bundle: Path) -> EvaluatedModel:
    """Evaluate a model on the test images.

    Raises:
        MismatchError: the model was trained on another data set, whose patients may be in this
            test split.
    """
    data, loaded = context.data, load_bundle(bundle)
    findings = data.info.findings
    require_match(loaded.info, data.info)
    trained_on = loaded.info.training_data_digest
    if trained_on != data.digest:
        raise MismatchError(
            f"the model was trained on data set {trained_on[:12]}, but {data.digest[:12]} was "
            "given; evaluate it on the data set it was trained on, whose test patients it never saw"
        )
    logits = predict(loaded.network, data.images, context.rows, maps=False).logits
    return EvaluatedModel(
        info=loaded.info,
        network=loaded.network,
        logits=logits,
        classification=classification_metrics(context.labels, logits, findings),
        localization=localize(
            context.cases,
            maps_of(loaded.network, data, context.cases.rows, context.cases.columns),
            data.info.preprocessing.image_side,
            context.regions,
            context.config,
        ),
    )


def maps_of(
    network: ChexRadiNet,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return the map of one finding of each image, shape (N, h, w); a row may come repeatedly."""
    wanted, position = np.unique(rows, return_inverse=True)
    if not len(wanted):
        side = data.info.preprocessing.image_side // network.config.map_stride
        return np.zeros((0, side, side), dtype=np.float32)
    maps = predict(network, data.images, wanted, maps=True).maps
    return maps[position, columns]


def validate(network: ChexRadiNet, dataset: Dataset) -> dict[str, Any]:
    """Return the ranking metrics of a network on the validation split, ready for JSON.

    Returns:
        Result of `classification_metrics`, and `num_images`. `mean_auroc`, by which rounds are
        chosen, is None if no finding has both classes.

    Raises:
        SourceError: the data set has no validation image.
    """
    rows = dataset.rows(Split.VALIDATION)
    if not len(rows):
        raise SourceError(
            "the data set has no validation image, so rounds cannot be compared; "
            "ingest it again with a validation fraction above 0"
        )
    logits = predict(network, dataset.images, rows, maps=False).logits
    metrics = classification_metrics(dataset.labels[rows], logits, dataset.info.findings)
    return {**metrics, "num_images": len(rows)}


def figures_on_test(
    context: EvaluationContext, model: EvaluatedModel, calibration: Calibration
) -> dict[str, Any]:
    """Return the `test` entry of metrics.json: everything about the chosen model."""
    findings, labels = context.data.info.findings, context.labels
    probabilities = apply_calibration(calibration.as_dict(), findings, model.logits)
    columns = {
        name: (labels[:, column], probabilities[:, column]) for column, name in enumerate(findings)
    }
    samples, seed = context.config.bootstrap_samples, context.config.seed
    groups = subgroup_metrics(
        labels, model.logits, context.patients, findings, _groups(context), samples, seed
    )
    return {
        **model.classification,
        "localization": model.localization.metrics,
        "ci95": {
            **bootstrap_intervals(labels, model.logits, context.patients, findings, samples, seed),
            "localization": model.localization.metrics["ci95"],
        },
        **calibration_metrics(labels, probabilities, findings),
        "operating_points": {
            name: {
                "threshold": calibration.thresholds[name],
                **performance_at_threshold(*column, calibration.thresholds[name]),
            }
            for name, column in columns.items()
        },
        "calibration": asdict(calibration),
        "by_view": {
            view: {key: value for key, value in found.items() if key != "num_patients"}
            for view, found in groups["by_group"]["view"].items()
        },
        **groups,
        "decision_curve": {
            name: decision_curve(*column)
            for name, column in columns.items()
            if calibration.thresholds[name] is not None
        },
        "free_response": _free_response(context, model),
        "roc": {name: roc_points(*column, _MAX_ROC_POINTS) for name, column in columns.items()},
        "pooled_roc": roc_points(labels.ravel(), probabilities.ravel()),
    }


def _groups(context: EvaluationContext) -> dict[str, list[str]]:
    """Return the view, sex and age group of each test image."""
    view, sex, age = (context.data.column(name)[context.rows] for name in ("view", "sex", "age"))
    return {
        "view": view.tolist(),
        "sex": sex.tolist(),
        "age": age_groups(age),
    }


def _free_response(context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
    """Return `free_response` by boxed finding, over boxed images and images without the finding.

    An image with the finding but without a box takes no part: its place is not known. Of images
    without the finding at most 500 are read, drawn at random.
    """
    data, cases, config = context.data, context.cases, context.config
    generator = np.random.default_rng(config.seed)
    found = {}
    for finding in sorted(set(cases.findings)):
        column = data.info.findings.index(finding)
        own = [place for place, name in enumerate(cases.findings) if name == finding]
        absent = np.flatnonzero(context.labels[:, column] == 0)
        absent = np.sort(generator.permutation(absent)[:_MAX_ABSENT])
        maps = maps_of(
            model.network,
            data,
            context.rows[absent],
            np.full(len(absent), column, dtype=np.int64),
        )
        marks = extract_regions(maps, data.info.preprocessing.image_side, context.regions)
        positions = np.searchsorted(context.rows, cases.rows[own])
        found[finding] = free_response(
            [*(model.localization.regions[place] for place in own), *marks],
            model.logits[np.r_[positions, absent].astype(np.int64), column].astype(np.float64),
            [*(cases.boxes[place] for place in own), *([()] * len(absent))],
        )
    return found


def protocols(context: EvaluationContext) -> dict[str, str]:
    """Return the lines that stand beside the numbers: on what and how they were measured."""
    line = protocol_text(
        dataset=Path(context.data.info.source).name,
        digest=context.data.digest,
        split=Split.TEST.value,
        num_images=len(context.rows),
        num_patients=len(set(context.patients)),
        selection=SELECTION_RULE,
    )
    boxed = (
        f"{line}; one box per map, chosen without the truth, for {len(context.cases.findings)} "
        "boxed findings; controls: a smooth random map, and the map of another patient with the "
        "finding"
    )
    fitted = "calibration and operating thresholds fitted on the validation split"
    return {
        "rounds": line,
        "test": f"{line}; {fitted}",
        "localization": boxed,
        "calibration": fitted,
    }


def compare_arms(
    context: EvaluationContext,
    evaluated: Sequence[EvaluatedModel],
    arms: Mapping[str, Path | None],
) -> dict[str, Any]:
    """Compare the arms with the last guided round; an arm of another number of epochs is left out.

    Args:
        context: The test split.
        evaluated: The guided rounds, in order.
        arms: Name to the bundle of its last round, None if it was not trained.
    """
    last = evaluated[-1]
    found = {}
    for name, path in arms.items():
        if path is None or not last.info.round:
            continue
        if read_bundle_info(path)[0].round != last.info.round:
            continue
        other = evaluate_model(context, path)
        found[name] = {
            "rounds": [other.as_round()],
            "guided_round": last.info.round,
            "difference": _difference(context, last, other),
        }
    return found


def _difference(
    context: EvaluationContext, guided: EvaluatedModel, other: EvaluatedModel
) -> dict[str, Any]:
    """Return the paired differences with intervals, guided minus other, measure by measure."""
    samples, seed = context.config.bootstrap_samples, context.config.seed
    ranking = paired_bootstrap_difference(
        context.labels, guided.logits, other.logits, context.patients, samples, seed
    )
    located = localization_intervals(
        guided.localization.hits,
        context.cases.findings,
        context.cases.patients,
        other.localization.hits,
        samples,
        seed,
    )
    return {"mean_auroc": ranking, **located}
