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
from chexradinet.config.study import StudyPlan
from chexradinet.dataset.dataset import Dataset
from chexradinet.evaluation.classification import (
    classification_metrics,
    interval_of,
    mean_of_defined,
    mean_or_none,
    patient_weights,
    weighted_ranking,
)
from chexradinet.evaluation.metrics import interval, signed
from chexradinet.records import Split
from chexradinet.reports.page import write_page
from chexradinet.training.study import READOUTS, Outcome, facts_of

SCHEMA = 1
_CHANCE = 0.025
"""Share of comparisons that look like a gain in one 95% interval if there is no difference."""


def study_document(data: Dataset, plan: StudyPlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the table, the differences and the sentences of a study, JSON-ready."""
    numbers = list(dict.fromkeys(outcome.cell.labels for outcome in outcomes))
    tested = _Tested(data, outcomes)
    rows = [
        {"readout": readout, "labels": number, "arm": arm, **tested.means(arm, number, readout)}
        for readout, number, arm in product(READOUTS, numbers, plan.arms)
    ]
    differences = [
        {
            "readout": readout,
            "labels": number,
            "arm": first,
            "against": second,
            **tested.difference(first, second, number, readout, plan),
        }
        for readout, number, (first, second) in product(READOUTS, numbers, plan.comparisons)
    ]
    return {
        "data": facts_of(data),
        "plan": plan.record(),
        "rows": rows,
        "differences": differences,
        "sentences": [sentence(one, plan.margin) for one in differences],
        "notes": _notes(plan, len(differences)),
    }


def write_study(folder: Path, document: dict[str, Any]) -> None:
    """Write `study.json` and `report.html`."""
    write_document(folder / "study.json", "study", SCHEMA, document)
    write_page(folder / "report.html", "study", **document)


def sentence(difference: dict[str, Any], margin: float) -> str:
    """Return what a difference shows, from its intervals alone."""
    seeds, patients = difference["seeds95"], difference["patients95"]
    found = (
        f"{difference['readout']}, {difference['labels']} labels: {difference['arm']} against "
        f"{difference['against']} {signed(difference['mean_auroc'])} mean AUROC, over seeds "
        f"{interval(seeds) or 'n/d'}, over patients {interval(patients) or 'n/d'}: "
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


def _notes(plan: StudyPlan, number: int) -> list[str]:
    return [
        f"{len(plan.arms)} arms, {len(plan.seeds)} seeds, {number} comparisons. If there were no "
        f"difference at all, about {_CHANCE * number:.1f} of them would look like a gain in one of "
        "the intervals; no correction is made, a sentence needs both intervals.",
        f"Variants that were tried before and are not in the plan: {plan.variants_tried}.",
        f"Data looked at before the plan was fixed: {plan.seen_before}.",
        "Within view: mean AUROC of frontal views apart, weighted by their images: the view alone "
        "tells much of a patient's state.",
        "A gain over no pretext is one of the pretext's content only if the arm beats its permuted "
        "control too.",
        "The figures are of one data set and of small networks, and nothing clinical follows.",
    ]


class _Tested:
    """Scores of all cells on the test images."""

    def __init__(self, data: Dataset, outcomes: Sequence[Outcome]) -> None:
        rows = data.rows(Split.TEST)
        self.findings = data.info.findings
        self.labels = data.labels[rows]
        test = data.manifest.iloc[rows]
        self.patients = test["patient_id"].to_numpy()
        self.views = test["view"].to_numpy()
        self.scores: dict[tuple[str, int, str], list[NDArray[np.float32]]] = {}
        for outcome in outcomes:
            for readout, scores in outcome.scores.items():
                key = (outcome.cell.arm, outcome.cell.labels, readout)
                self.scores.setdefault(key, []).append(scores)

    def means(self, arm: str, number: int, readout: str) -> dict[str, Any]:
        """Return the means over seeds of one row of the table."""
        found = [
            classification_metrics(self.labels, scores, self.findings)
            for scores in self.scores[arm, number, readout]
        ]
        within = [self._within_view(scores) for scores in self.scores[arm, number, readout]]
        return {
            "mean_auroc": mean_or_none([one["mean_auroc"] for one in found]),
            "mean_auprc": mean_or_none([one["mean_auprc"] for one in found]),
            "within_view_auroc": mean_or_none(within),
            "seeds": len(found),
        }

    def difference(
        self, first: str, second: str, number: int, readout: str, plan: StudyPlan
    ) -> dict[str, Any]:
        """Return the paired difference of two arms, first less second, with its intervals."""
        one, other = (self.scores[arm, number, readout] for arm in (first, second))
        by_seed = (
            self._mean_areas(one, np.ones((len(self.labels), 1)))[:, 0]
            - (self._mean_areas(other, np.ones((len(self.labels), 1)))[:, 0])
        )
        resampled = [
            self._mean_areas(one, weights).mean(0) - self._mean_areas(other, weights).mean(0)
            for weights in patient_weights(self.patients, plan.resamples, seed=0)
        ]
        within = [
            None if a is None or b is None else a - b
            for a, b in zip(map(self._within_view, one), map(self._within_view, other), strict=True)
        ]
        mean = float(by_seed.mean())
        return {
            "mean_auroc": mean if np.isfinite(mean) else None,
            "seeds95": seed_interval(by_seed),
            "patients95": interval_of(np.concatenate(resampled)),
            "higher_in": int((by_seed > 0).sum()),
            "seeds": len(by_seed),
            "within_view": mean_or_none(within),
        }

    def _mean_areas(
        self, scores: Sequence[NDArray[np.float32]], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the mean AUROC of each seed under each resample, (seeds, S)."""
        columns = range(len(self.findings))
        return np.stack(
            [
                mean_of_defined(
                    np.stack(
                        [
                            weighted_ranking(self.labels[:, i], each[:, i], weights)[0]
                            for i in columns
                        ],
                        axis=1,
                    )
                )
                for each in scores
            ]
        )

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
