"""Probabilities, thresholds and how well they hold."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from chexradinet.config import EvaluationConfig, ThresholdRule
from chexradinet.errors import ConfigError, EvaluationError, MismatchError
from chexradinet.evaluation.calibration import (
    NOT_CALIBRATED,
    PLATT,
    Calibration,
    PlattScaling,
    apply_calibration,
    calibration_line,
    calibration_metrics,
    expected_calibration_error,
    fit_calibration,
    fit_platt,
    operating_threshold,
    performance_at_threshold,
    reliability_curve,
    sigmoid,
)


def _logistic(num: int, slope: float, intercept: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=num) * 2
    return (generator.random(num) < sigmoid(slope * logits + intercept)).astype(float), logits


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([], []),
        ([np.nan] * 30, [0.0] * 30),
        ([1.0] * 30, list(range(30))),
        ([1.0] * 9 + [0.0] * 30, list(range(39))),
        ([1.0] * 20 + [0.0] * 20, [0.5] * 40),
    ],
    ids=["empty", "all unknown", "one class", "too few positives", "constant logits"],
)
def test_a_finding_that_cannot_be_calibrated_is_not(
    labels: list[float], logits: list[float]
) -> None:
    assert fit_platt(np.array(labels), np.array(logits, dtype=float)) is None


def test_platt_finds_the_slope_and_intercept_that_made_the_labels() -> None:
    labels, logits = _logistic(20000, 0.5, -1.5, 0)
    fitted = fit_platt(labels, logits)
    assert fitted is not None
    assert fitted.slope == pytest.approx(0.5, abs=0.03)
    assert fitted.intercept == pytest.approx(-1.5, abs=0.05)


def test_platt_equals_logistic_regression_on_the_smoothed_targets() -> None:
    labels, logits = _logistic(60, 1.0, 0.0, 1)
    fitted = fit_platt(labels, logits)
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    reference = LogisticRegression(C=1e12, tol=1e-12, max_iter=10000).fit(
        np.r_[logits, logits][:, None],
        np.r_[np.ones(60), np.zeros(60)],
        sample_weight=np.r_[targets, 1 - targets],
    )
    assert fitted is not None
    assert fitted.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert fitted.intercept == pytest.approx(reference.intercept_[0], abs=1e-4)


def test_separable_scores_give_a_finite_calibration() -> None:
    labels = np.r_[np.zeros(20), np.ones(20)]
    fitted = fit_platt(labels, np.where(labels == 1, 1e4, -1e4))
    assert fitted is not None
    assert np.isfinite([fitted.slope, fitted.intercept]).all()
    assert fitted.apply(np.array([1e4]))[0] == pytest.approx(21 / 22, abs=1e-6)


def test_scores_that_rank_backwards_keep_their_order() -> None:
    labels, logits = _logistic(500, -1.0, -1.0, 2)
    fitted = fit_platt(labels, logits)
    assert fitted is not None
    assert fitted.slope > 0
    # Flattened to the prevalence, the best that an honest order allows.
    assert fitted.apply(logits).mean() == pytest.approx(labels.mean(), abs=0.01)
    assert np.ptp(fitted.apply(logits)) < 0.05


def test_sigmoid_of_large_logits_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_error_of_known_bins() -> None:
    # Bin 1: promised .2, observed .5; bin 2: promised .8, observed 1: (.3 + .2) / 2.
    labels, probabilities = np.array([1.0, 0, 1, 1]), np.array([0.1, 0.3, 0.7, 0.9])
    assert expected_calibration_error(labels, probabilities, bins=2) == pytest.approx(0.25)
    curve = reliability_curve(labels, probabilities, bins=2)
    assert curve["predicted"] == pytest.approx([0.2, 0.8])
    assert curve["observed"] == pytest.approx([0.5, 1.0])
    assert curve["count"] == [2, 2]


def test_equal_probabilities_share_a_bin_whatever_their_order() -> None:
    labels = np.r_[np.ones(30), np.zeros(70)]
    assert expected_calibration_error(labels, np.full(100, 0.3)) == pytest.approx(0)
    generator = np.random.default_rng(0)
    probabilities = np.round(generator.random(200), 1)
    truth = (generator.random(200) < 0.5).astype(float)
    order = generator.permutation(200)
    assert expected_calibration_error(truth, probabilities) == pytest.approx(
        expected_calibration_error(truth[order], probabilities[order])
    )


def test_calibration_error_without_a_known_label_is_not_defined() -> None:
    nothing = np.array([np.nan])
    assert expected_calibration_error(nothing, np.array([0.5])) is None
    assert reliability_curve(nothing, np.array([0.5]))["count"] == []


def test_platt_lowers_the_calibration_error_on_cases_it_has_not_seen() -> None:
    labels, logits = _logistic(4000, 0.3, -2.0, 3)
    fitted = fit_platt(labels[:2000], logits[:2000])
    assert fitted is not None
    before = expected_calibration_error(labels[2000:], sigmoid(logits[2000:]))
    after = expected_calibration_error(labels[2000:], fitted.apply(logits[2000:]))
    assert before is not None
    assert after is not None
    assert after < 0.03 < 0.2 < before


def test_the_mean_error_leaves_out_findings_without_cases() -> None:
    labels = np.array([[1.0, np.nan], [0.0, np.nan]])
    found = calibration_metrics(labels, np.full((2, 2), 0.25), ["Mass", "Hernia"])
    assert found["ece"] == pytest.approx(0.25)
    assert found["ece_by_finding"]["Hernia"] is None


def test_the_threshold_is_the_highest_that_reaches_the_sensitivity() -> None:
    labels = np.r_[np.ones(10), np.zeros(4)]
    probabilities = np.r_[np.arange(1, 11) / 10, [0.05, 0.15, 0.25, 0.95]]
    found = operating_threshold(labels, probabilities, 0.9)
    assert found == {"threshold": 0.2, "sensitivity": 0.9, "specificity": 0.5}


def test_a_threshold_needs_both_classes() -> None:
    assert operating_threshold(np.ones(5), np.ones(5), 0.9) is None
    assert operating_threshold(np.array([]), np.array([]), 0.9) is None
    assert performance_at_threshold(np.ones(5), np.ones(5), 0.5) == {
        "sensitivity": 1.0,
        "specificity": None,
    }
    assert performance_at_threshold(np.ones(5), np.ones(5), None)["sensitivity"] is None


def _fitted() -> tuple[Calibration, np.ndarray, np.ndarray]:
    first, logits = _logistic(400, 0.5, -1.0, 4)
    rare = np.zeros(400)
    rare[:3] = 1
    table = np.stack([first, rare], axis=1)
    both = np.stack([logits, logits], axis=1)
    return fit_calibration(table, both, ["Mass", "Hernia"], EvaluationConfig()), table, both


def test_a_rare_finding_says_that_it_is_not_calibrated_and_is_never_flagged() -> None:
    calibration, _, logits = _fitted()
    rare = calibration.findings["Hernia"]
    assert rare.status == NOT_CALIBRATED
    assert rare.threshold is None
    assert "fewer than 10" in rare.reason
    probabilities = apply_calibration(calibration.as_dict(), ["Hernia"], logits[:, 1:])
    assert np.array_equal(probabilities, sigmoid(logits[:, 1:]))


def test_a_calibration_survives_json_and_keeps_its_thresholds_exactly() -> None:
    calibration, labels, logits = _fitted()
    record = json.loads(json.dumps(calibration.as_dict(), allow_nan=False))
    assert record == calibration.as_dict()
    mass = calibration.findings["Mass"]
    assert mass.status == PLATT
    probabilities = apply_calibration(record, ["Hernia", "Mass"], logits[:, ::-1])[:, 1]
    assert np.array_equal(
        probabilities, PlattScaling(mass.slope, mass.intercept).apply(logits[:, 0])
    )
    again = performance_at_threshold(
        labels[:, 0], probabilities, record["findings"]["Mass"]["threshold"]
    )
    assert again == {"sensitivity": mass.sensitivity, "specificity": mass.specificity}
    assert mass.sensitivity is not None
    assert mass.sensitivity >= 0.9


def test_a_calibration_of_other_findings_is_refused() -> None:
    calibration, _, logits = _fitted()
    with pytest.raises(MismatchError, match="not Edema"):
        apply_calibration(calibration.as_dict(), ["Mass", "Edema"], logits)
    with pytest.raises(EvaluationError, match="belong together"):
        fit_calibration(logits, logits, ["Mass"])


@pytest.mark.parametrize(
    ("rule", "target", "threshold"),
    [
        (ThresholdRule.SENSITIVITY, 0.75, 0.4),
        (ThresholdRule.SPECIFICITY, 0.75, 0.6),
        (ThresholdRule.SPECIFICITY, 0.5, 0.4),
        (ThresholdRule.FLAG_RATE, 0.5, 0.5),
        (ThresholdRule.FLAG_RATE, 0.49, 0.6),
    ],
)
def test_a_threshold_is_the_one_that_holds_its_rule(
    rule: ThresholdRule, target: float, threshold: float
) -> None:
    # Negatives at .1, .3, .5, .7; positives at .2, .4, .6, .8.
    found = operating_threshold(np.arange(8) % 2, np.arange(1, 9) / 10, target, rule)
    assert found is not None
    assert found["threshold"] == pytest.approx(threshold)


def test_ties_that_leave_no_threshold_flag_nothing() -> None:
    labels, same = np.array([1.0, 0.0, 0.0]), np.full(3, 0.5)
    for rule in (ThresholdRule.SPECIFICITY, ThresholdRule.FLAG_RATE):
        target = 0.9 if rule == ThresholdRule.SPECIFICITY else 0.1
        found = operating_threshold(labels, same, target, rule)
        assert found is not None
        assert found["threshold"] is not None
        assert not (same >= found["threshold"]).any()


def test_a_flag_rate_counts_x_rays_of_unknown_label() -> None:
    labels, probabilities = np.array([1.0, 0, np.nan, np.nan]), np.array([0.1, 0.2, 0.3, 0.4])
    found = operating_threshold(labels, probabilities, 0.5, ThresholdRule.FLAG_RATE)
    assert found is not None
    assert found["threshold"] == 0.3


def test_each_finding_has_the_target_it_was_given_and_says_so() -> None:
    first, logits = _logistic(400, 0.5, -1.0, 4)
    table, both = np.stack([first, first], axis=1), np.stack([logits, logits], axis=1)
    config = EvaluationConfig(target_sensitivity="0.9,Nodule=specificity:0.8")
    found = fit_calibration(table, both, ["Mass", "Nodule"], config)
    mass, nodule = found.findings["Mass"], found.findings["Nodule"]
    assert (mass.rule, nodule.rule) == ("sensitivity:0.9", "specificity:0.8")
    assert mass.sensitivity is not None
    assert mass.sensitivity >= 0.9
    assert nodule.specificity is not None
    assert 0.8 <= nodule.specificity < 0.81
    assert "0.9,Nodule=specificity:0.8" in found.rule
    with pytest.raises(ConfigError, match="names Nodle"):
        fit_calibration(
            table, both, ["Mass", "Nodule"], EvaluationConfig(target_sensitivity="0.9,Nodle=0.8")
        )


@pytest.mark.parametrize(
    "text", ["", "1", "0", "nan", "Mass=0.8", "0.9,Mass=2", "0.9,0.8", "0.9,Mass=speed:0.1", "x"]
)
def test_targets_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="target_sensitivity is"):
        EvaluationConfig(target_sensitivity=text)


def test_the_calibration_line_is_that_of_logistic_regression() -> None:
    labels, logits = _logistic(500, 0.5, -1.0, 6)
    found = calibration_line(labels, sigmoid(logits))
    witness = LogisticRegression(C=1e12, tol=1e-12, max_iter=10000).fit(logits[:, None], labels)
    assert found is not None
    assert found["slope"] == pytest.approx(witness.coef_[0, 0], rel=1e-4)
    assert found["intercept"] == pytest.approx(witness.intercept_[0], abs=1e-4)
    assert found["positives"] + found["negatives"] == 500
    # With slope 1 the mean of the predictions meets that of the labels.
    shifted = sigmoid(logits + found["in_the_large"])
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_true_probabilities_have_slope_one_and_intercept_zero() -> None:
    labels, logits = _logistic(20000, 1.0, 0.0, 7)
    found = calibration_line(labels, sigmoid(logits))
    assert found is not None
    assert found["slope"] == pytest.approx(1, abs=0.05)
    assert found["intercept"] == pytest.approx(0, abs=0.05)


def test_too_few_cases_and_separated_classes_have_no_calibration_line() -> None:
    labels = np.r_[np.ones(9), np.zeros(50)]
    assert calibration_line(labels, np.linspace(0.1, 0.9, 59)) is None
    separated = np.r_[np.zeros(20), np.ones(20)]
    assert calibration_line(separated, np.linspace(0.1, 0.9, 40)) is None
    assert calibration_line(separated, np.linspace(0.9, 0.1, 40)) is None
    assert calibration_line(separated, np.full(40, 0.5)) is None
