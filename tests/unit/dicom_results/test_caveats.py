"""What DICOM results say of how far they go: no finding, out of distribution, by which clock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from chexradinet.dicom_results import ScoredCase
from chexradinet.dicom_results.results import case_picture, write_dicom_results
from tests.unit.dicom_results.test_results import (
    answer,
    groups,
    header,
    named,
    number,
    parsed,
    poor,
    scored_case,
    with_raw,
)


def unflagged(case: ScoredCase) -> ScoredCase:
    """Return the case with every finding below its threshold."""
    return replace(
        case, findings=tuple(replace(f, flagged=f.flagged and False) for f in case.findings)
    )


def test_without_a_flagged_finding_neither_heatmap_nor_region_is_drawn() -> None:
    case = unflagged(scored_case())
    bare = replace(
        case, heatmap=None, findings=tuple(replace(f, region=None) for f in case.findings)
    )
    assert np.array_equal(case_picture(case), case_picture(bare))
    capture = parsed(write_dicom_results(header(), case).secondary_capture)
    assert "no heatmap" in capture.DerivationDescription


def test_a_flagged_finding_beside_the_drawn_one_keeps_its_thin_frame() -> None:
    case = scored_case()
    first, *others = case.findings
    named_other = replace(case, heatmap_finding="Pleural_Thickening")
    assert named_other.drawn is None
    without = replace(named_other, findings=(replace(first, region=None), *others))
    assert not np.array_equal(case_picture(named_other), case_picture(without))


@pytest.mark.parametrize(("outside", "said"), [(True, "Yes"), (False, "No")])
def test_report_says_whether_the_x_ray_is_out_of_distribution_and_how_far(
    outside: bool, said: str
) -> None:
    case = replace(scored_case(), out_of_distribution=outside)
    image = groups(parsed(write_dicom_results(header(), case).structured_report))["image"]
    assert answer(image, "Out of distribution") == said
    (distance,) = named(image, "Distance from the X-rays it was calibrated on")
    assert number(distance) == 12.3457
    code = distance.ConceptNameCodeSequence[0]
    assert code.CodingSchemeDesignator == "99CHEXRADINET"


def test_report_of_a_model_that_cannot_tell_says_nothing_of_distribution() -> None:
    case = replace(scored_case(), out_of_distribution=None, out_of_distribution_score=None)
    image = groups(parsed(write_dicom_results(header(), case).structured_report))["image"]
    assert named(image, "Out of distribution") == []
    assert named(image, "Distance from the X-rays it was calibrated on") == []


def test_picture_warns_of_an_x_ray_out_of_distribution_in_a_line_of_its_own() -> None:
    case = scored_case()
    like = case_picture(replace(case, out_of_distribution=False))
    unlike = case_picture(replace(case, out_of_distribution=True))
    unknown = case_picture(replace(case, out_of_distribution=None, out_of_distribution_score=None))
    assert np.array_equal(like, unknown)
    assert unlike.shape[0] > like.shape[0]
    line = unlike[like.shape[0] - unlike.shape[0] :]
    assert line.any()


@pytest.mark.parametrize(
    ("offset", "day", "time"),
    [
        (b"+0900", "20261121", "081100"),
        (b"-0330", "20261120", "194100"),
        (b"+0000", "20261120", "231100"),
        (b"-0000", "20261120", "231100"),
        (b"+1430", "20261120", "231100"),
        (b"Tokyo", "20261120", "231100"),
    ],
)
def test_results_are_dated_by_the_clock_of_their_study(offset: bytes, day: str, time: str) -> None:
    source = header()
    with_raw(TimezoneOffsetFromUTC=offset)(source)
    case = replace(scored_case(), content_at=datetime(2026, 11, 20, 23, 11, tzinfo=UTC))
    results = write_dicom_results(source, case)
    for content in (results.structured_report, results.secondary_capture):
        result = parsed(content)
        assert (result.ContentDate, result.ContentTime) == (day, time)
        assert (result.InstanceCreationDate, result.InstanceCreationTime) == (day, time)
        valid = offset in (b"+0900", b"-0330", b"+0000")
        assert result.get("TimezoneOffsetFromUTC", "") == (offset.decode() if valid else "")
    capture = parsed(results.secondary_capture)
    assert (capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture) == (day, time)


def test_the_same_moment_in_another_zone_gives_the_same_bytes() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5)))
    plain = moment.replace(tzinfo=None)  # counts as UTC
    written = {
        write_dicom_results(
            poor("offset of Tokyo"), replace(scored_case(), content_at=at)
        ).structured_report
        for at in (moment, elsewhere, plain)
    }
    assert len(written) == 1
