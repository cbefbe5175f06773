"""Ranking metrics, their intervals and the ROC curve."""

import numpy as np
import pytest
from sklearn import metrics

from chexradinet.errors import EvaluationError
from chexradinet.evaluation.classification import (
    auprc,
    auroc,
    bootstrap_intervals,
    classification_metrics,
    interval_of,
    paired_bootstrap_difference,
    patient_weights,
    roc_points,
    weighted_ranking,
)


@pytest.mark.parametrize(
    "labels",
    [[], [1.0, 1.0], [0.0, 0.0], [np.nan, np.nan], [np.nan, 1.0]],
    ids=["empty", "all positive", "all negative", "all unknown", "one class after unknown"],
)
def test_ranking_is_not_defined_without_both_classes(labels: list[float]) -> None:
    truth, scores = np.array(labels), np.arange(len(labels), dtype=float)
    assert auroc(truth, scores) is None
    assert auprc(truth, scores) is None
    assert roc_points(truth, scores) is None
    assert np.isnan(weighted_ranking(truth, scores, np.ones((len(labels), 3)))).all()


def test_auroc_counts_the_pairs_in_order_and_half_the_ties() -> None:
    # Pairs (positive, negative): .8>.5, .8>.1, .5=.5, .5>.1: (1 + 1 + .5 + 1) / 4.
    labels, scores = np.array([1.0, 1, 0, 0, np.nan]), np.array([0.8, 0.5, 0.5, 0.1, np.nan])
    assert auroc(labels, scores) == pytest.approx(3.5 / 4)


def test_a_constant_score_ranks_nothing() -> None:
    labels = np.array([1.0, 0, 0, 0])
    assert auroc(labels, np.zeros(4)) == 0.5
    assert auprc(labels, np.zeros(4)) == 0.25


@pytest.mark.parametrize(
    ("labels", "scores", "told"),
    [
        (np.array([1.0, 0.0]), np.array([0.1]), "shape"),
        (np.array([1.0, -1.0]), np.array([0.1, 0.2]), "neither 0, 1 nor NaN"),
        (np.array([1.0, 0.0]), np.array([0.1, np.inf]), "1 of 2 scores are not finite"),
    ],
)
def test_input_that_cannot_be_judged_is_refused(
    labels: np.ndarray, scores: np.ndarray, told: str
) -> None:
    with pytest.raises(EvaluationError, match=told):
        auroc(labels, scores)


def test_a_finding_without_positives_is_named_and_left_out_of_the_mean() -> None:
    labels = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, np.nan]])
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.1, 0.2]])
    found = classification_metrics(labels, scores, ["Mass", "Hernia"])
    assert found["auroc"] == {"Mass": 1.0, "Hernia": None}
    assert found["mean_auroc"] == 1.0
    assert found["mean_auroc_num_findings"] == 1
    assert found["not_defined"] == ["Hernia"]
    assert found["positives"] == {"Mass": 1, "Hernia": 0}
    assert found["negatives"] == {"Mass": 2, "Hernia": 2}


def test_the_means_of_an_empty_table_are_not_defined() -> None:
    nothing = np.empty((0, 1))
    found = classification_metrics(nothing, nothing, ["Mass"])
    assert found["mean_auroc"] is None
    assert bootstrap_intervals(nothing, nothing, [], ["Mass"])["mean_auroc"] is None
    assert paired_bootstrap_difference(nothing, nothing, nothing, [])["difference"] is None


def test_a_table_with_another_number_of_columns_is_refused() -> None:
    with pytest.raises(EvaluationError, match="1 findings do not belong together"):
        classification_metrics(np.zeros((2, 2)), np.zeros((2, 2)), ["Mass"])


@pytest.mark.parametrize("decimals", [1, 9], ids=["many ties", "no ties"])
def test_weighted_metrics_equal_scikit_learn(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    labels = (generator.random(300) < 0.2).astype(float)
    labels[::17] = np.nan
    scores = np.round(generator.normal(size=300) + np.nan_to_num(labels), decimals)
    weights = generator.integers(0, 4, (300, 20)).astype(float)
    known = ~np.isnan(labels)
    areas, precisions = weighted_ranking(labels, scores, weights)
    for row, area, precision in zip(weights[known].T, areas, precisions, strict=True):
        kept = (labels[known], scores[known])
        assert area == pytest.approx(metrics.roc_auc_score(*kept, sample_weight=row), abs=1e-12)
        expected = metrics.average_precision_score(*kept, sample_weight=row)
        assert precision == pytest.approx(expected, abs=1e-12)


def test_a_patient_is_drawn_with_all_of_its_images() -> None:
    weights = np.concatenate(list(patient_weights(["b", "a", "b", "c"], 500, 0))).T
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(4), abs=0.15)


def _sample(num: int, seed: int, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((num, 2)) < 0.3).astype(float)
    return labels, generator.normal(size=(num, 2)) + shift * labels


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    labels, scores = _sample(100, 0)
    first, again, other = (
        bootstrap_intervals(labels, scores, np.arange(100), ["Mass", "Edema"], 200, seed)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_the_interval_holds_the_true_area_about_95_times_in_100() -> None:
    # Two normal distributions one standard deviation apart: AUROC = Phi(1 / sqrt 2).
    truth, held = 0.7602, 0
    for seed in range(100):
        labels, scores = _sample(200, seed)
        interval = bootstrap_intervals(labels, scores, np.arange(200), ["A", "B"], 200)
        low, high = interval["auroc"]["A"]
        held += low <= truth <= high
    assert 88 <= held <= 99


def test_images_of_one_patient_do_not_narrow_the_interval() -> None:
    labels, scores = _sample(60, 1)
    once = bootstrap_intervals(labels, scores, np.arange(60), ["A", "B"])["auroc"]["A"]
    copies = [np.repeat(each, 10, axis=0) for each in (labels, scores, np.arange(60))]
    many = bootstrap_intervals(copies[0], copies[1], copies[2], ["A", "B"])["auroc"]["A"]
    assert many == pytest.approx(once)


def test_a_finding_seen_in_one_patient_has_no_interval() -> None:
    labels = np.zeros((50, 1))
    labels[0] = 1
    scores = np.arange(50.0)[:, None]
    assert bootstrap_intervals(labels, scores, np.arange(50), ["Hernia"])["auroc"]["Hernia"] is None
    assert interval_of(np.array([])) is None


def test_a_model_does_not_differ_from_itself() -> None:
    labels, scores = _sample(100, 5)
    found = paired_bootstrap_difference(labels, scores, scores, np.arange(100), 200)
    assert found["difference"] == 0
    assert found["ci95"] == [0, 0]


def test_a_better_model_is_told_from_a_worse_one_with_its_sign() -> None:
    labels, scores = _sample(400, 6)
    worse = np.random.default_rng(7).normal(size=scores.shape)
    found = paired_bootstrap_difference(labels, scores, worse, np.arange(400), 200)
    expected = np.mean(
        [auroc(labels[:, i], scores[:, i]) - auroc(labels[:, i], worse[:, i]) for i in (0, 1)]  # type: ignore[operator]
    )
    assert found["difference"] == pytest.approx(expected)
    assert found["ci95"][0] > 0
    assert found["num_findings"] == 2


def test_the_curve_is_short_finite_and_keeps_its_ends_and_area() -> None:
    labels, scores = _sample(5000, 8)
    curve = roc_points(labels[:, 0], scores[:, 0], max_points=200)
    assert curve is not None
    assert len(curve["fpr"]) == len(curve["tpr"]) == len(curve["thresholds"]) <= 200
    assert (curve["fpr"][0], curve["tpr"][0]) == (0, 0)
    assert (curve["fpr"][-1], curve["tpr"][-1]) == (1, 1)
    assert np.isfinite(curve["thresholds"]).all()
    assert metrics.auc(curve["fpr"], curve["tpr"]) == pytest.approx(
        auroc(labels[:, 0], scores[:, 0]), abs=2e-3
    )
