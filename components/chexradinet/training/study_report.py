"""What a study shows: one table, paired differences with two intervals each, and sentences.

The interval over seeds (Student's t) says what another training would give, the interval over
patients (bootstrap) what other patients would. A difference is called shown only if both leave out
0. Each sentence follows from the intervals.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from chexradinet.artifacts import write_document
from chexradinet.config.training import StudyPlan
from chexradinet.dataset import Dataset
from chexradinet.evaluation import LOCALIZATION_KEYS, MEASURES, interval, signed
from chexradinet.evaluation.calibration import calibration_metrics
from chexradinet.evaluation.classification import (
    classification_metrics,
    interval_of,
    mean_area,
    mean_or_none,
    patient_weights,
)
from chexradinet.evaluation.localization import (
    boxed_cases,
    cases_by_finding,
    localization_intervals,
)
from chexradinet.model.bundle import environment
from chexradinet.records import Split
from chexradinet.reports import write_page
from chexradinet.reports.pictures import study_plot
from chexradinet.training.study import READOUTS, Outcome

SCHEMA = 3
_CHANCE = 0.025
"""Share of comparisons that look like a gain in one 95% interval if there is no difference."""
_LOCATED = "iou_0.3"
"""Measure of localisation that arms are compared in."""


def study_document(data: Dataset, plan: StudyPlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the table, the differences and the sentences of a study, JSON-ready.

    A study that is not done yet gives what it has: seeds that all arms of a row have.
    """
    tested = _Tested(data, outcomes)
    numbers = sorted({outcome.cell.labels for outcome in outcomes})
    encoders = _encoders(plan)
    frozen = [(encoders[one], encoders[other]) for one, other in plan.comparisons]
    arms = dict(zip(READOUTS, ([*dict.fromkeys(encoders.values())], [*plan.arms]), strict=True))
    pairs = dict(zip(READOUTS, ([*dict.fromkeys(frozen)], plan.comparisons), strict=True))
    rows = [
        {"readout": readout, "labels": number, "arm": arm, **tested.means(arm, number, readout)}
        for readout, number in product(READOUTS, numbers)
        for arm in arms[readout]
        if tested.of(arm, number)
    ]
    differences = [
        {"readout": readout, "labels": number, "arm": one, "against": other, **found}
        for readout, number in product(READOUTS, numbers)
        for one, other in pairs[readout]
        if one != other
        for found in tested.differences(one, other, number, readout, plan)
    ]
    return {
        "data": _facts_of(data),
        "plan": plan.record(),
        "rows": rows,
        "differences": differences,
        "sentences": [sentence(one, plan.margin) for one in differences],
        "notes": _notes(plan, len(differences)),
        "provenance": _provenance(data, plan, outcomes),
    }


def _provenance(
    data: Dataset, plan: StudyPlan, outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """Return what trained the cells, a record for each code and machine, and what reports them."""
    trained = [one.environment for one in outcomes if one.environment]
    distinct = [one for number, one in enumerate(trained) if one not in trained[:number]]
    shared = {"data_digests": [data.digest], "seed": plan.seeds}
    return [
        *({"stage": f"{trained.count(one)} cells", **shared, **one} for one in distinct),
        {"stage": "study report", **shared, **environment()},
    ]


def write_study(folder: Path, document: dict[str, Any]) -> None:
    """Write `study.json` and `report.html`."""
    write_document(folder / "study.json", "study", SCHEMA, document)
    picture = study_plot(document["rows"])
    write_page(folder / "report.html", "study", measures=MEASURES, picture=picture, **document)


def sentence(difference: dict[str, Any], margin: float) -> str:
    """Return what a difference shows, from its intervals alone."""
    seeds, patients = difference["seeds95"], difference["patients95"]
    found = (
        f"{difference['readout']}, {difference['labels']} labels: {difference['arm']} against "
        f"{difference['against']} {signed(difference['value'])} {MEASURES[difference['measure']]}, "
        f"over seeds {interval(seeds) or 'n/d'}, over patients {interval(patients) or 'n/d'}: "
    )
    if seeds is None or patients is None:
        return found + "no statement, an interval is not defined."
    low, high = min(seeds[0], patients[0]), max(seeds[1], patients[1])
    if low > 0:
        return found + "higher, shown."
    if high < 0:
        return found + "lower, shown."
    if -margin < low and high < margin:
        return found + f"no difference of {margin} or more, shown."
    return found + "no difference shown."


def seed_interval(differences: NDArray[np.float64]) -> list[float] | None:
    """Return the 95% interval of a mean over seeds; None for fewer than two."""
    number = len(differences)
    if number < 2 or not np.isfinite(differences).all():
        return None
    half = stats.t.ppf(0.975, number - 1) * differences.std(ddof=1) / np.sqrt(number)
    mean = differences.mean()
    return [float(mean - half), float(mean + half)]


def _facts_of(data: Dataset) -> dict[str, Any]:
    """Return what a report says of the data."""
    rows = data.rows(Split.TEST)
    return {
        "dataset_digest": data.digest,
        "training_images": len(data.rows(Split.TRAIN)),
        "test_images": len(rows),
        "test_patients": len(set(data.column("patient_id")[rows])),
        "findings": list(data.info.findings),
    }


def _encoders(plan: StudyPlan) -> dict[str, str]:
    """Return, by arm, the first arm with the same encoder: frozen, both are one."""
    first: dict[tuple[str, str], str] = {}
    return {
        name: first.setdefault((arm.pretext, arm.initial_weights), name)
        for name, arm in plan.arms.items()
    }


def _paired(
    measure: str, by_seed: NDArray[np.float64], patients: list[float] | None
) -> dict[str, Any]:
    mean = float(by_seed.mean())
    return {
        "measure": measure,
        "value": mean if np.isfinite(mean) else None,
        "seeds95": seed_interval(by_seed),
        "patients95": patients,
        "higher_in": int((by_seed > 0).sum()),
        "seeds": len(by_seed),
    }


def _notes(plan: StudyPlan, number: int) -> list[str]:
    imagenet = [name for name, arm in plan.arms.items() if arm.initial_weights]
    return [
        f"{len(plan.arms)} arms, {len(plan.seeds)} seeds, {number} comparisons. If there were no "
        f"difference at all, about {_CHANCE * number:.1f} of them would look like a gain in one of "
        "the intervals; no correction is made, a sentence needs both intervals.",
        f"Variants that were tried before and are not in the plan: {plan.variants_tried}.",
        f"Data looked at before the plan was fixed: {plan.seen_before}.",
        "Frozen: arms that start from the same encoder are one row, that of the first.",
        "Within view: mean AUROC of frontal views apart, weighted by their images: the view alone "
        "tells much of a patient's state.",
        "Calibration: Platt scaling on the validation split; its error and its slope (1 is right, "
        "below 1 is too extreme) are means over the findings with enough cases.",
        "Rounds: those that ran after fine-tuning. A next one needs a change of the validation "
        f"mean AUROC above {plan.retrain.min_improvement}, and the best is taken; arms with "
        "`stops` off run all and take the last.",
        f"Start from a state dict such as ImageNet's: {', '.join(imagenet)}."
        if imagenet
        else "ImageNet as a start was off: no arm gives a file as `initial_weights`.",
        "A gain over no pretext is one of the pretext's content only if the arm beats its permuted "
        "control too.",
        "The figures are of one data set and one network, and nothing clinical follows.",
    ]


class _Tested:
    """Outcomes of all cells on the test images."""

    def __init__(self, data: Dataset, outcomes: Sequence[Outcome]) -> None:
        rows = data.rows(Split.TEST)
        self.findings = data.info.findings
        self.labels = data.labels[rows]
        self.patients = data.column("patient_id")[rows]
        self.views = data.column("view")[rows]
        self.cases = boxed_cases(data, rows)
        self.outcomes: dict[tuple[str, int], dict[int, Outcome]] = {}
        for one in outcomes:
            self.outcomes.setdefault((one.cell.arm, one.cell.labels), {})[one.cell.seed] = one

    def of(self, arm: str, number: int) -> dict[int, Outcome]:
        """Return the outcomes of an arm with a number of labels, by seed."""
        return self.outcomes.get((arm, number), {})

    def means(self, arm: str, number: int, readout: str) -> dict[str, Any]:
        """Return the means over seeds of one row of the table."""
        outcomes = list(self.of(arm, number).values())
        scores = [one.scores[readout] for one in outcomes]
        found = [classification_metrics(self.labels, each, self.findings) for each in scores]
        calibrated = [self._calibration(one.probabilities[readout]) for one in outcomes]
        tuned = readout != READOUTS[0]
        boxed = tuned and len(self.cases.rows)
        located = [self._located(one.hits) for one in outcomes] if boxed else []
        by_seed = {
            f"{one.cell.seed}": each["mean_auroc"]
            for one, each in zip(outcomes, found, strict=True)
        }
        return {
            "auroc_by_seed": by_seed,
            "mean_auroc": mean_or_none([one["mean_auroc"] for one in found]),
            "mean_auprc": mean_or_none([one["mean_auprc"] for one in found]),
            "within_view_auroc": mean_or_none([self._within_view(each) for each in scores]),
            **{key: mean_or_none([one[key] for one in located]) for key in LOCALIZATION_KEYS},
            "ece": mean_or_none([error for error, _ in calibrated]),
            "calibration_slope": mean_or_none([slope for _, slope in calibrated]),
            "rounds": mean_or_none([len(one.rounds) - 1.0 for one in outcomes if tuned]),
            "seeds": len(found),
        }

    def differences(
        self, first: str, second: str, number: int, readout: str, plan: StudyPlan
    ) -> list[dict[str, Any]]:
        """Return the paired differences of two arms, first less second, with their intervals."""
        seeds = sorted(self.of(first, number).keys() & self.of(second, number).keys())
        if not seeds:
            return []
        one, other = ([self.of(arm, number)[seed] for seed in seeds] for arm in (first, second))
        found = [self._ranking(one, other, readout, plan)]
        if readout != READOUTS[0] and len(self.cases.rows):
            found.append(self._localization(one, other, plan))
        return found

    def _ranking(
        self, one: list[Outcome], other: list[Outcome], readout: str, plan: StudyPlan
    ) -> dict[str, Any]:
        mine, theirs = ([each.scores[readout] for each in part] for part in (one, other))
        once = np.ones((len(self.labels), 1))
        by_seed = (self._mean_areas(mine, once) - self._mean_areas(theirs, once))[:, 0]
        resampled = [
            self._mean_areas(mine, weights).mean(0) - self._mean_areas(theirs, weights).mean(0)
            for weights in patient_weights(self.patients, plan.resamples, seed=0)
        ]
        within = [
            None if a is None or b is None else a - b
            for a, b in zip(
                map(self._within_view, mine), map(self._within_view, theirs), strict=True
            )
        ]
        return {
            **_paired("mean_auroc", by_seed, interval_of(np.concatenate(resampled))),
            "within_view": mean_or_none(within),
        }

    def _localization(
        self, one: list[Outcome], other: list[Outcome], plan: StudyPlan
    ) -> dict[str, Any]:
        by_seed = [
            self._located(mine.hits)[_LOCATED] - self._located(theirs.hits)[_LOCATED]
            for mine, theirs in zip(one, other, strict=True)
        ]
        mine, theirs = (np.mean([each.hits for each in part], axis=0) for part in (one, other))
        found = localization_intervals(
            dict(zip(LOCALIZATION_KEYS, mine.T, strict=True)),
            self.cases.findings,
            self.cases.patients,
            dict(zip(LOCALIZATION_KEYS, theirs.T, strict=True)),
            plan.resamples,
        )
        return {
            **_paired(_LOCATED, np.array(by_seed), found[_LOCATED]["ci95"]),
            "within_view": None,
        }

    def _located(self, hits: NDArray[np.bool_]) -> dict[str, float]:
        """Return the mean over findings of the rate of hits, by measure."""
        members = cases_by_finding(self.cases.findings, len(hits)).values()
        means = np.mean([hits[rows].mean(0) for rows in members], axis=0)
        return dict(zip(LOCALIZATION_KEYS, means.tolist(), strict=True))

    def _calibration(self, probabilities: NDArray[np.float32]) -> tuple[float | None, float | None]:
        """Return error and slope, means over the calibrated findings."""
        known = np.flatnonzero(np.isfinite(probabilities).all(0))
        names = [self.findings[column] for column in known]
        found = calibration_metrics(self.labels[:, known], probabilities[:, known], names)
        lines = [line["slope"] for line in found["calibration_line"].values() if line]
        return found["ece"], mean_or_none(lines)

    def _mean_areas(
        self, scores: Sequence[NDArray[np.float32]], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the mean AUROC of each seed under each resample, (seeds, S)."""
        return np.stack([mean_area(self.labels, each, weights) for each in scores])

    def _within_view(self, scores: NDArray[np.float32]) -> float | None:
        """Return the mean AUROC of each view apart, weighted by its images."""
        areas, sizes = [], []
        for view in np.unique(self.views):
            chosen = self.views == view
            found = classification_metrics(self.labels[chosen], scores[chosen], self.findings)
            if found["mean_auroc"] is not None:
                areas.append(found["mean_auroc"])
                sizes.append(int(chosen.sum()))
        return float(np.average(areas, weights=sizes)) if areas else None
