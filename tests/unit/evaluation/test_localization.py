"""Localisation accuracy, its controls and intervals."""

import numpy as np
import pytest

from chexradinet.errors import EvaluationError
from chexradinet.evaluation import LOCALIZATION_KEYS
from chexradinet.evaluation.localization import (
    free_response,
    localization_hits,
    localization_intervals,
    localization_metrics,
    random_maps,
    swapped_order,
    with_controls,
)
from chexradinet.records import Box, Region, RegionStatus

TRUE = Box(0, 0, 10, 10)


def _region(box: Box | None, peak: tuple[float, float] | None = None) -> Region:
    row, column = peak or (None, None)
    status = RegionStatus.OK if box else RegionStatus.NO_EVIDENCE
    return Region(status=status, box=box, peak_row=row, peak_column=column)


HIT, MISS = _region(TRUE, (5, 5)), _region(None)


def test_no_case_gives_no_number() -> None:
    found = localization_metrics([], [], [])
    assert [found[key] for key in LOCALIZATION_KEYS] == [None] * 4
    assert found["num_cases"] == 0
    assert localization_intervals({}, [], [])["pointing"] == {"value": None, "ci95": None}


def test_a_missing_box_is_a_miss_and_is_counted() -> None:
    found = localization_metrics([MISS, HIT], [[TRUE], [TRUE]], ["Mass", "Mass"])
    assert [found[key] for key in LOCALIZATION_KEYS] == [0.5] * 4
    assert found["num_without_box"] == 1


def test_an_overlap_must_exceed_the_threshold() -> None:
    # 10 x 1 of 10 x 10: exactly 0.1; 10 x 4: 0.4.
    predicted = [_region(Box(0, 0, 10, 1)), _region(Box(0, 0, 10, 4))]
    hits = localization_hits(predicted, [[TRUE], [TRUE]])
    assert hits["iou_0.1"].tolist() == [False, True]
    assert hits["iou_0.3"].tolist() == [False, True]
    assert hits["iou_0.5"].tolist() == [False, False]


def test_the_best_of_several_true_boxes_counts() -> None:
    boxes = [Box(50, 50, 60, 60), TRUE]
    hits = localization_hits([_region(TRUE, (9.5, 0))], [boxes])
    assert hits["iou_0.5"].all()
    assert hits["pointing"].all()


def test_the_peak_on_the_far_edge_is_outside() -> None:
    assert not localization_hits([_region(None, (10, 5))], [[TRUE]])["pointing"].any()


def test_a_frequent_finding_does_not_outweigh_a_rare_one() -> None:
    predicted = [_region(TRUE)] * 3 + [MISS]
    found = localization_metrics(predicted, [[TRUE]] * 4, ["Edema", "Edema", "Edema", "Mass"])
    assert found["iou_0.1"] == 0.5
    assert found["by_finding"]["Edema"] == {
        "iou_0.1": 1, "iou_0.3": 1, "iou_0.5": 1, "pointing": 0, "num_cases": 3,
    }  # fmt: skip
    assert found["num_findings"] == 2


def test_cases_without_truth_and_uneven_lists_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no true box"):
        localization_hits([HIT], [[]])
    with pytest.raises(EvaluationError, match="1 regions and 0 lists"):
        localization_hits([HIT], [])
    with pytest.raises(EvaluationError, match="2 findings for 1 cases"):
        localization_metrics([HIT], [[TRUE]], ["Mass", "Mass"])


def test_controls_stand_beside_the_own_numbers_under_their_prefix() -> None:
    own = localization_metrics([HIT], [[TRUE]], ["Mass"])
    none = localization_metrics([], [], [])
    miss = localization_metrics([MISS], [[TRUE]], ["Mass"])
    merged = with_controls(own, miss, none)
    assert merged["iou_0.3"] == 1
    assert merged["random_iou_0.3"] == 0
    assert merged["swapped_pointing"] is None
    assert merged["swapped_num_cases"] == 0


def test_random_maps_are_smooth_repeatable_and_all_different() -> None:
    maps = random_maps(5, 14, 12, seed=1)
    assert maps.shape == (5, 14, 12)
    assert np.array_equal(maps[:2], random_maps(2, 14, 12, seed=1))
    assert not np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps, random_maps(5, 14, 12, seed=2))
    large = random_maps(4, 64, 64, seed=0)
    neighbours = np.corrcoef(large[:, 1:].ravel(), large[:, :-1].ravel())[0, 1]
    assert neighbours > 0.95


def test_a_finding_of_one_patient_has_no_swap() -> None:
    assert swapped_order(["Mass", "Mass", "Edema"], ["a", "a", "b"], 0).tolist() == [-1, -1, -1]
    assert swapped_order([], [], 0).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_a_swap_keeps_the_finding_and_changes_the_patient(seed: int) -> None:
    generator = np.random.default_rng(seed)
    findings = generator.choice(["Mass", "Edema", "Nodule"], 40).tolist()
    patients = generator.integers(0, 15, 40).tolist()
    order = swapped_order(findings, patients, seed)
    assert (order >= 0).all()
    assert [findings[other] for other in order] == findings
    assert all(patients[other] != patients[own] for own, other in enumerate(order))
    assert sorted(order) == list(range(40))
    assert order.tolist() == swapped_order(findings, patients, seed).tolist()


def test_a_patient_with_most_of_the_cases_still_gets_maps_of_others() -> None:
    patients = ["a", "a", "a", "a", "b", "c"]
    order = swapped_order(["Mass"] * 6, patients, 0)
    assert all(patients[other] != patients[own] for own, other in enumerate(order))


def test_an_interval_is_about_patients_and_a_model_does_not_differ_from_itself() -> None:
    generator = np.random.default_rng(0)
    hit = generator.random(200) < 0.4
    hits = dict.fromkeys(LOCALIZATION_KEYS, hit)
    findings, patients = ["Mass"] * 100 + ["Edema"] * 100, list(range(200))
    alone = localization_intervals(hits, findings, patients, samples=300)["iou_0.3"]
    assert alone["value"] == pytest.approx(hit.mean())
    low, high = alone["ci95"]
    # A fraction of .4 over 200 cases has a standard error of .035.
    assert high - low == pytest.approx(4 * 0.035, rel=0.25)
    paired = localization_intervals(hits, findings, patients, hits, samples=300)["iou_0.3"]
    assert paired == {"difference": 0.0, "ci95": [0.0, 0.0]}
    missed = dict.fromkeys(LOCALIZATION_KEYS, ~hit)
    gain = localization_intervals(hits, findings, patients, missed, samples=300)["iou_0.3"]
    assert gain["difference"] == pytest.approx(2 * hit.mean() - 1)


def test_free_response_counts_false_marks_per_image_by_hand() -> None:
    off = Box(50, 50, 60, 60)
    # From the highest score: hit, false, hit, false, no mark; three boxes, one never found.
    regions = [_region(TRUE), _region(off), _region(TRUE), _region(off), MISS]
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    found = free_response(regions, scores, [[TRUE], [], [TRUE], [TRUE], []])
    assert found["fp_at_sensitivity"] == {"0.3": 0.0, "0.5": pytest.approx(0.2), "0.7": None}
    assert found["sensitivity_at_fp"] == {
        "0.05": pytest.approx(1 / 3), "0.1": pytest.approx(1 / 3), "0.25": pytest.approx(2 / 3),
    }  # fmt: skip
    assert (found["num_images"], found["num_boxes"]) == (5, 3)


def test_marks_of_equal_score_come_together() -> None:
    regions = [_region(TRUE), _region(Box(50, 50, 60, 60))]
    found = free_response(regions, np.zeros(2), [[TRUE], []])
    assert found["fp_at_sensitivity"]["0.5"] == 0.5
    assert found["sensitivity_at_fp"]["0.25"] == 0.0


def test_without_a_mark_or_a_box_nothing_is_reached() -> None:
    assert free_response([MISS], np.zeros(1), [[TRUE]])["fp_at_sensitivity"]["0.3"] is None
    nothing = free_response([HIT], np.zeros(1), [[]])
    assert nothing["sensitivity_at_fp"]["0.05"] is None
    assert nothing["fp_at_sensitivity"]["0.3"] is None
    assert free_response([], np.zeros(0), [])["num_images"] == 0
