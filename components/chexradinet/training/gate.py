"""The gate before publication: a candidate against the champion on the same test patients.

The mean AUROC must rise; no finding, the localisation nor the calibration may lose more than the
settings allow. What rests on too few cases is listed and not judged (ADR 0023).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexradinet.config import PublishConfig, RegionConfig
from chexradinet.dataset.dataset import Dataset
from chexradinet.evaluation.calibration import apply_calibration, calibration_metrics
from chexradinet.evaluation.classification import auroc, mean_or_none, paired_bootstrap_difference
from chexradinet.evaluation.localization import BoxedCases, boxed_cases, localization_metrics
from chexradinet.evaluation.metrics import interval, signed
from chexradinet.records import Split
from chexradinet.regions.extract import extract_regions


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measure of both models, and whether the candidate may be published for all it says."""

    measure: str
    """Name, such as `AUROC of Effusion`."""
    candidate: float | None
    """Value of the candidate; None if it is not defined."""
    champion: float | None
    """Value of the champion."""
    cases: int
    """Positive or boxed test cases that it rests on; test patients for means."""
    passed: bool | None
    """None if it was not judged: not defined, or too few cases."""
    refusal: str = ""
    """Why it did not pass, with the numbers and the setting."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate and a champion on the same test patients."""

    checks: tuple[Check, ...]
    """Every measure, the mean AUROC first."""
    sentence: str
    """Difference of the mean AUROC, with its interval and on what it was measured."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the candidate."""
        return all(check.passed is not False for check in self.checks)

    @property
    def reason(self) -> str:
        """The sentence, and each refusal."""
        return " ".join([self.sentence, *(check.refusal for check in self.checks if check.refusal)])


@dataclass(frozen=True, kw_only=True)
class _Measured:
    logits: np.ndarray[Any, Any]
    auroc: dict[str, float | None]
    pointing: float | None
    calibration_error: float | None
    training_data_digest: str


def compare(candidate: Path, champion: Path, data: Dataset, config: PublishConfig) -> Comparison:
    """Measure both models on the test split and hold one against the other.

    Args:
        candidate: Calibrated bundle.
        champion: Bundle with the same findings and preprocessing.
        data: Data set that the candidate was trained on.
        config: What may be lost.
    """
    rows = data.rows(Split.TEST)
    labels, cases = data.labels[rows], boxed_cases(data, rows)
    ours, theirs = (_measured(path, data, cases) for path in (candidate, champion))
    patients = data.manifest["patient_id"].to_numpy()[rows]
    gain = paired_bootstrap_difference(labels, ours.logits, theirs.logits, patients)
    sentence = (
        f"Mean AUROC {signed(gain['difference'], 4)} {interval(gain['ci95'], 4)} against the "
        f"champion, over {gain['num_findings']} findings on the test split (data "
        f"{data.digest[:12]}, {gain['num_patients']} patients)."
    )
    if theirs.training_data_digest != data.digest:
        sentence += (
            " The champion was trained on other data, which may hold these patients: its figures "
            "may be too good."
        )
    found = _checks(ours, theirs, labels, cases, gain, config)
    return Comparison(checks=tuple(found), sentence=sentence)


def _measured(bundle: Path, data: Dataset, cases: BoxedCases) -> _Measured:
    # Here, since what plans, collects and publishes a first model runs without torch.
    from chexradinet.evaluation.evaluator import maps_of
    from chexradinet.model.bundle import load_bundle
    from chexradinet.model.inference import predict

    loaded, rows, findings = load_bundle(bundle), data.rows(Split.TEST), data.info.findings
    labels = data.labels[rows]
    logits = predict(loaded.network, data.images, rows, maps=False).logits
    maps = maps_of(loaded.network, data, cases.rows, cases.columns)
    regions = extract_regions(maps, data.info.preprocessing.image_side, RegionConfig())
    probabilities = apply_calibration(loaded.info.calibration or {}, findings, logits)
    return _Measured(
        logits=logits,
        auroc={name: auroc(labels[:, i], logits[:, i]) for i, name in enumerate(findings)},
        # The peak of a map, which no threshold of regions moves.
        pointing=localization_metrics(regions, cases.boxes, cases.findings)["pointing"],
        calibration_error=calibration_metrics(labels, probabilities, findings)["ece"],
        training_data_digest=loaded.info.training_data_digest,
    )


def _checks(
    ours: _Measured,
    theirs: _Measured,
    labels: np.ndarray[Any, Any],
    cases: BoxedCases,
    gain: dict[str, Any],
    config: PublishConfig,
) -> Iterator[Check]:
    yield _mean_check(ours, theirs, gain, config)
    for column, name in enumerate(ours.auroc):
        yield _loss_check(
            f"AUROC of {name}",
            (ours.auroc[name], theirs.auroc[name]),
            int((labels[:, column] == 1).sum()),
            (config.max_finding_loss, "max_finding_loss"),
            config.min_cases,
        )
    yield _loss_check(
        "share of peaks in a true box",
        (ours.pointing, theirs.pointing),
        len(cases.boxes),
        (config.max_localization_loss, "max_localization_loss"),
        config.min_cases,
    )
    yield _calibration_check(ours, theirs, gain["num_patients"], config)


def _mean_check(
    ours: _Measured, theirs: _Measured, gain: dict[str, Any], config: PublishConfig
) -> Check:
    rise = gain["difference"]
    passed = rise is not None and rise > config.min_auroc_gain
    refusal = f"It must rise by more than {config.min_auroc_gain:.4f} (min_auroc_gain)."
    if rise is None:
        refusal = "No finding has both classes in the test split: nothing to compare."
    return Check(
        measure="mean AUROC",
        candidate=mean_or_none(list(ours.auroc.values())),
        champion=mean_or_none(list(theirs.auroc.values())),
        cases=gain["num_patients"],
        passed=passed,
        refusal="" if passed else refusal,
    )


def _loss_check(
    measure: str,
    values: tuple[float | None, float | None],
    cases: int,
    bound: tuple[float, str],
    min_cases: int,
) -> Check:
    own, other = values
    passed, refusal = None, ""
    if own is not None and other is not None and cases >= min_cases:
        passed = own >= other - bound[0]
        if not passed:
            refusal = (
                f"The {measure} is {own:.4f}, {other - own:.4f} below the champion's {other:.4f}; "
                f"at most {bound[0]:.4f} is allowed ({bound[1]})."
            )
    return Check(
        measure=measure, candidate=own, champion=other, cases=cases, passed=passed, refusal=refusal
    )


def _calibration_check(
    ours: _Measured, theirs: _Measured, num_patients: int, config: PublishConfig
) -> Check:
    own, other = ours.calibration_error, theirs.calibration_error
    passed, refusal = None, ""
    if own is not None:
        bound = max(config.max_calibration_error, other or 0.0)
        passed = own <= bound
        if not passed:
            refusal = (
                f"The calibration error is {own:.4f}; at most {bound:.4f} is allowed "
                "(max_calibration_error, or the champion's)."
            )
    return Check(
        measure="calibration error",
        candidate=own,
        champion=other,
        cases=num_patients,
        passed=passed,
        refusal=refusal,
    )
