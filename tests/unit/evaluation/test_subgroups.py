"""Gaps between groups and the worth of acting, against known answers and scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics

from chexradinet.evaluation.subgroups import age_groups, decision_curve, subgroup_metrics


def _sample(num: int, weak: str, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw one finding that scores tell by two standard deviations, but not in the weak group."""
    generator = np.random.default_rng(seed)
    groups = generator.choice(["F", "M"], num)
    labels = (generator.random((num, 1)) < 0.4).astype(float)
    shift = np.where(groups == weak, 0.0, 2.0)[:, None]
    return labels, generator.normal(size=(num, 1)) + shift * labels, groups.tolist()


def test_no_image_has_no_group() -> None:
    found = subgroup_metrics(np.empty((0, 1)), np.empty((0, 1)), [], ["Mass"], {"sex": []})
    assert found["by_group"] == {"sex": {}}
    assert found["gaps"]["compared"] == []


def test_each_group_has_the_numbers_of_scikit_learn_and_its_sizes() -> None:
    labels, scores, groups = _sample(200, "none", 0)
    patients = np.arange(200) // 2
    found = subgroup_metrics(labels, scores, patients.tolist(), ["Mass"], {"sex": groups})
    for name, entry in found["by_group"]["sex"].items():
        rows = np.array(groups) == name
        expected = metrics.roc_auc_score(labels[rows, 0], scores[rows, 0])
        assert entry["auroc"]["Mass"] == pytest.approx(expected)
        assert entry["num_images"] == rows.sum()
        assert entry["num_patients"] == len(set(patients[rows]))
        assert entry["positives"]["Mass"] + entry["negatives"]["Mass"] == rows.sum()


def test_a_planted_gap_is_flagged_with_its_size() -> None:
    labels, scores, groups = _sample(600, "F", 1)
    found = subgroup_metrics(labels, scores, list(range(600)), ["Mass"], {"sex": groups})
    gap = next(one for one in found["gaps"]["compared"] if one["group"] == "F")
    assert gap["flagged"]
    # Chance against Phi(2 / sqrt 2) = .921.
    assert gap["difference"] == pytest.approx(-0.42, abs=0.08)
    low, high = gap["ci95"]
    assert low < gap["difference"] < high < 0
    json.dumps(found, allow_nan=False)


def test_equal_groups_are_seldom_flagged() -> None:
    flagged = 0
    for seed in range(20):
        labels, scores, groups = _sample(300, "none", 100 + seed)
        found = subgroup_metrics(labels, scores, list(range(300)), ["Mass"], {"sex": groups})
        flagged += any(one["flagged"] for one in found["gaps"]["compared"])
    # At 5% of runs 1 is expected; more than 4 happen in 3 of 1,000 series.
    assert flagged <= 4


def test_a_group_with_too_few_cases_is_shown_and_not_compared() -> None:
    labels, scores, groups = _sample(100, "none", 2)
    groups[:3] = ["O"] * 3
    groups[3:40] = [""] * 37
    found = subgroup_metrics(labels, scores, list(range(100)), ["Mass"], {"sex": groups})
    assert found["by_group"]["sex"]["O"]["num_images"] == 3
    assert found["by_group"]["sex"]["unknown"]["num_images"] == 37
    assert {one["group"] for one in found["gaps"]["compared"]} <= {"F", "M"}


def test_ages_fall_into_groups() -> None:
    groups = age_groups([None, np.nan, 0, 17.9, 18, 39, 40, 60, 79, 80, 100])
    assert groups == [
        "unknown", "unknown", "under 18", "under 18", "18-39", "18-39", "40-59", "60-79", "60-79",
        "80 and over", "80 and over",
    ]  # fmt: skip


def test_the_net_benefit_by_hand() -> None:
    # At t = 0.5 three are flagged, two rightly, of five: 2/5 - 1/5 * 1. Acting on all: .4 - .6.
    labels = np.array([1.0, 1, 0, 0, 0, np.nan])
    found = decision_curve(labels, np.array([0.9, 0.6, 0.5, 0.4, 0.1, 0.9]))
    assert found is not None
    place = found["target"].index(0.5)
    assert found["net_benefit"][place] == pytest.approx(0.2)
    assert found["flag_all"][place] == pytest.approx(-0.2)
    assert found["num_images"] == 5
    assert decision_curve(np.array([np.nan]), np.array([0.5])) is None


def test_a_perfect_model_gains_the_prevalence_at_every_target() -> None:
    labels = np.r_[np.ones(3), np.zeros(7)]
    found = decision_curve(labels, labels)
    assert found is not None
    assert found["net_benefit"] == pytest.approx([0.3] * len(found["target"]))
