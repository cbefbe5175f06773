"""The pages of a night: what they show, and what they must not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config.nightly import WorklistConfig
from chexradinet.evaluation.reference import numeric_distribution
from chexradinet.reports.nightly import (
    FlaggedCase,
    NightReport,
    Omissions,
    OutsideXRay,
    WaitingImage,
    worklist,
    write_night_report,
    write_worklist_page,
)
from chexradinet.reports.pictures import reference_density, score_histograms

UNTIL = datetime(2026, 2, 2, tzinfo=UTC)
EDGES = np.linspace(0, 1, 21)


def page(tmp_path: Path, **changes: object) -> str:
    """Return the report of a small night."""
    night = {
        "date": "2026-02-01",
        "plan": 7,
        "model_digest": "a" * 64,
        "num_planned": 3,
        "num_scored": 2,
        "num_studies": 2,
        "excluded": [],
        "probabilities": {"Mass": [0.1, 0.3]},
        "num_flagged": {"Mass": 0},
        "thresholds": {"Mass": 0.5},
        "drift": None,
        **changes,
    }
    write_night_report(tmp_path / "report.html", NightReport(**night))  # type: ignore[arg-type]
    return (tmp_path / "report.html").read_text("utf-8")


def list_page(tmp_path: Path, omissions: Omissions | None) -> str:
    """Return the page of a worklist of one study."""
    image = WaitingImage(
        study_uid="1.2.3",
        arrived=UNTIL - timedelta(hours=30),
        probabilities={"Mass": 0.5},
        flagged=["Mass"],
        notes=["out_of_distribution"],
    )
    config = WorklistConfig(max_wait_h=72)
    entries = worklist([image], UNTIL, config)
    write_worklist_page(tmp_path / "list.html", "2026-02-01", entries, config, omissions)
    return (tmp_path / "list.html").read_text("utf-8")


def test_a_night_without_anything_has_a_page(tmp_path: Path) -> None:
    nothing = {"num_planned": 0, "num_scored": 0, "num_studies": 0, "probabilities": {}}
    assert "No X-ray was scored." in page(tmp_path, **nothing)


def test_a_model_without_any_threshold_does_not_reassure(tmp_path: Path) -> None:
    found = page(tmp_path, thresholds={"Mass": None})
    assert "Not assessed: Mass." in found
    assert "Not assessed: the model has no operating threshold." in found
    assert "Scores are not calibrated." in found
    for reassuring in ("was flagged", "not flagged", "mean probability", "calibrated probab"):
        assert reassuring not in found


def test_a_finding_without_a_threshold_is_not_assessed_beside_one_that_is(tmp_path: Path) -> None:
    found = page(
        tmp_path,
        probabilities={"Mass": [0.1, 0.3], "Pleural_Thickening": [0.2, 0.9]},
        num_flagged={"Mass": 0, "Pleural_Thickening": 0},
        thresholds={"Mass": 0.5, "Pleural_Thickening": None},
    )
    assert "No X-ray was flagged for Mass. Not assessed: Pleural Thickening." in found
    assert '<th scope="row" class="text">Mass</th>' in found
    assert '<th scope="row" class="text">Pleural Thickening</th>' not in found


def test_beside_each_flag_stands_how_far_its_threshold_can_be_trusted(tmp_path: Path) -> None:
    case = FlaggedCase(png=b"", study_uid="1.2", finding="Mass", probability=0.8, threshold=0.5)
    points = {"Mass": {"threshold": 0.5, "sensitivity": 0.914, "specificity": 0.4}}
    found = page(tmp_path, num_flagged={"Mass": 1}, cases=[case], operating_points=points)
    assert "(threshold 0.50: sensitivity 91%, specificity 40%)" in found
    assert "<td>0.914</td><td>0.400</td>" in found
    bare = page(tmp_path, num_flagged={"Mass": 1}, cases=[case])
    assert "(threshold 0.50), study" in bare
    assert "sensitivity" not in bare


def test_objects_without_a_score_are_counted_by_reason_and_not_named(tmp_path: Path) -> None:
    rows = [
        {"object_key": "DOE^JANE.dcm", "status": "rejected", "reason": "not_chest", "detail": "x"},
        {"object_key": "ROE.dcm", "status": "rejected", "reason": "not_chest", "detail": "y"},
        {"object_key": "b", "status": "duplicate", "reason": "duplicate", "detail": "as DOE^JANE"},
    ]
    found = page(tmp_path, excluded=rows)
    assert "DOE" not in found
    assert '<td class="text">not chest</td><td>2</td>' in found
    assert "rejected-000007.csv" in found


def test_x_rays_out_of_distribution_are_listed_with_the_rule(tmp_path: Path) -> None:
    outside = [OutsideXRay(study_uid=f"1.2.{n}", distance=900.0 - n) for n in range(250)]
    found = page(
        tmp_path, num_out_of_distribution=250, outside=outside, ood_rule="Flagged beyond 5."
    )
    assert "Flagged beyond 5." in found
    assert '<th scope="row" class="text uid">1.2.3</th><td>897.00</td>' in found
    assert found.count('class="text uid"') == 200
    assert "50 more." in found
    assert "Unlike the training data" not in page(tmp_path)


def test_the_worklist_page_shows_priority_and_when_a_study_is_due(tmp_path: Path) -> None:
    found = list_page(tmp_path, None)
    cells = {
        "priority": "0.30", "X\u2011rays": "1", "arrived": "2026-01-31 18:00",
        "due": "2026-02-03 18:00",
    }  # fmt: skip
    for head, cell in cells.items():
        assert f'<td data-label="{head}">{cell}</td>' in found
    assert "out of distribution" in found
    assert "Not on this list" not in found


def test_the_worklist_page_says_how_many_files_must_be_read_without_it(tmp_path: Path) -> None:
    unscored = {("postponed", "changed"): 1, ("rejected", "not_an_image"): 1200}
    found = list_page(tmp_path, Omissions(unscored))
    assert "no score: 1,201. Read them separately." in found
    assert "<li>rejected, not an image: 1,200</li>" in found
    assert "Every X-ray of the night has a score." in list_page(tmp_path, Omissions({}))


def test_only_identifiers_may_be_broken_anywhere(tmp_path: Path) -> None:
    style = list_page(tmp_path, None)
    assert (
        style.count("text uid") == style.count('<td class="text uid" data-label="study">1.2.3') == 1
    )
    assert "th.uid, td.uid { min-width: 13em; overflow-wrap: anywhere; }" in style
    assert "white-space: normal; }" in style


@pytest.mark.parametrize("shape", [(1, 60), (2, 5), (200, 1800), (8000, 72000), (50, 1)])
def test_the_reference_line_of_an_unchanged_night_lies_on_its_histogram(
    shape: tuple[int, int],
) -> None:
    generator = np.random.default_rng(0)
    seen, fresh = generator.beta(*shape, 20000), generator.beta(*shape, 20000)
    density = reference_density(numeric_distribution(seen), EDGES)
    drawn = np.histogram(fresh, EDGES)[0] / len(fresh) * 20
    assert density.sum() / 20 == pytest.approx(1)
    # Its bins are tenths of all values, the outermost without an end: less than a tenth is astray.
    assert np.abs(density - drawn).sum() / 20 < 0.15
    assert density.max() > 0.85 * drawn.max()


def test_a_constant_reference_is_a_spike_and_an_empty_one_nothing() -> None:
    spike = reference_density(numeric_distribution([0.5] * 30), EDGES)
    assert spike.argmax() == 10
    assert spike[10] == pytest.approx(20)
    assert not reference_density(numeric_distribution([]), EDGES).any()
    for value in (0.0, 1.0):
        ends = reference_density(numeric_distribution([value] * 30), EDGES)
        assert ends.sum() / 20 == pytest.approx(1)


def test_histograms_are_equal_bytes_and_need_no_reference() -> None:
    scores = {"Mass": [0.1, 0.2], "Edema": [0.9]}
    reference = {"Mass": numeric_distribution([0.1, 0.15, 0.2, 0.3])}
    assert score_histograms(scores, reference) == score_histograms(scores, reference)
    assert score_histograms(scores, {}) != score_histograms(scores, reference)
