"""The report's bytes are those of highdicom, and say how far a flag can be trusted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chexradinet.dicom_results import ScoredCase, ScoredFinding
from chexradinet.dicom_results.report import report_content
from chexradinet.dicom_results.results import finding_lines, write_dicom_results
from chexradinet.dicom_results.source import read_source
from chexradinet.errors import ConfigError
from tests.unit.dicom_results.highdicom_report import content_by_highdicom
from tests.unit.dicom_results.test_results import Complaints, header, scored_case
from tests.unit.dicom_results.test_results import complaints as complaints

NUMBERS = (0.0, -0.0, 1.0, -1e-300, 1.7e308, 12345678901234567.0, 1 / 3, -2e-12, 5e-324)


def one_finding(**changes: object) -> ScoredCase:
    """Return the case with its first finding alone, changed."""
    case = scored_case()
    finding = replace(case.findings[0], **changes)  # type: ignore[arg-type]
    return replace(case, findings=(finding,), heatmap_finding=finding.name)


def unassessed() -> ScoredCase:
    """Return a case of a model that has no threshold and no calibrated finding."""
    case = scored_case()
    found = (
        replace(f, threshold=None, flagged=None, calibrated=False, radiomics={})
        for f in case.findings
    )
    return replace(case, findings=tuple(found), heatmap=None, heatmap_finding="")


CASES: dict[str, Callable[[], ScoredCase]] = {
    "whole": scored_case,
    "unassessed": unassessed,
    "out of distribution": lambda: replace(
        scored_case(), out_of_distribution=True, out_of_distribution_score=12.345678
    ),
    "like the reference": lambda: replace(
        scored_case(), out_of_distribution=False, out_of_distribution_score=0.0
    ),
    "trust": lambda: one_finding(sensitivity=0.9, specificity=1 / 3),
    "numbers": lambda: one_finding(radiomics={f"n{i}": value for i, value in enumerate(NUMBERS)}),
    "not finite": lambda: one_finding(radiomics={"a": np.nan, "b": np.inf, "c": 1.0}),
    "long names": lambda: one_finding(
        name="A_name_that_has_far_more_than_sixty_four_characters_" * 2
    ),
    "name of another alphabet": lambda: one_finding(name="Kardiomegalie_groß"),
}


@pytest.mark.parametrize("name", CASES)
def test_content_is_what_highdicom_writes_byte_for_byte(name: str) -> None:
    case, source = CASES[name](), read_source(header())
    assert report_content(case, source) == content_by_highdicom(case, source)


@pytest.mark.parametrize("seed", range(20))
def test_random_numbers_are_written_as_highdicom_writes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=100) * 10.0 ** random.integers(-20, 20, size=100)
    case = one_finding(radiomics={f"v{i}": float(value) for i, value in enumerate(values)})
    source = read_source(header())
    assert report_content(case, source) == content_by_highdicom(case, source)


@pytest.mark.parametrize("name", CASES)
def test_the_validator_finds_no_error(name: str, complaints: Complaints) -> None:
    results = write_dicom_results(header(), CASES[name]())
    assert complaints(results.structured_report) == []
    assert complaints(results.secondary_capture) == []


def test_a_finding_without_a_threshold_is_not_assessed_anywhere() -> None:
    lines = finding_lines(scored_case())
    assert "Not assessed (no threshold): Hernia" in lines
    assert finding_lines(unassessed()) == [
        "Not assessed: the model has no operating threshold for any finding"
    ]
    content = report_content(unassessed(), read_source(header()))
    assert content.count(b"NOT_ASSESSED") == len(unassessed().findings)
    assert b"Certainty of Finding" not in content
    assert b"probability" not in "\n".join(finding_lines(unassessed())).encode()


def test_a_flag_is_beside_what_its_threshold_does_on_the_test_split() -> None:
    (line,) = finding_lines(one_finding(sensitivity=0.9, specificity=0.25))
    assert "sensitivity 90%, specificity 25%)" in line


@pytest.mark.parametrize(("threshold", "flagged"), [(None, False), (None, True), (0.5, None)])
def test_a_flag_without_a_threshold_is_refused(
    threshold: float | None, flagged: bool | None
) -> None:
    with pytest.raises(ConfigError, match=r"flagged is .* None if, and only if"):
        ScoredFinding(
            name="Mass", probability=0.5, threshold=threshold, flagged=flagged, calibrated=True
        )
