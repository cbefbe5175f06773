"""DICOM results: valid by an independent validator, true to the case, equal on a rerun."""

import io
import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sr._concepts_dict import concepts

from chexradinet.dicom.file import open_dicom
from chexradinet.dicom_results import (
    DicomResults,
    ScoredCase,
    ScoredFinding,
    ScoringModel,
)
from chexradinet.dicom_results.report import STANDARD_FINDINGS, private_code
from chexradinet.dicom_results.results import LONG_SIDE_PX, case_picture, write_dicom_results
from chexradinet.errors import ConfigError, DicomResultError
from chexradinet.records import Box, Geometry
from chexradinet.reports.pictures import REGION_COLOR

Tool = Callable[[str, str], str]
Change = Callable[[Dataset], None]
Complaints = Callable[[bytes], list[str]]

HEIGHT, WIDTH, SIDE = 600, 480, 64
REGION = Box(320.5, 60.0, 480.0, 180.25)
DIGEST, OTHER_DIGEST, PREPROCESSING = "ab" * 32, "ef" * 32, "cd" * 32
SOURCE_UID, SERIES_UID, STUDY_UID = "1.2.840.99.4", "1.2.840.99.3", "1.2.840.99.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def header() -> Dataset:
    """Return a good header."""
    dataset = Dataset()
    dataset.SOPClassUID = DX
    dataset.SOPInstanceUID = SOURCE_UID
    dataset.SeriesInstanceUID = SERIES_UID
    dataset.StudyInstanceUID = STUDY_UID
    dataset.Modality = "DX"
    dataset.PatientName = "Planted^Patient"
    dataset.PatientID = "4711"
    dataset.IssuerOfPatientID = "Hospital"
    dataset.PatientBirthDate = "19700131"
    dataset.PatientSex = "F"
    dataset.PatientAge = "055Y"
    dataset.StudyDate = "20260101"
    dataset.StudyTime = "101112.5"
    dataset.StudyID = "S1"
    dataset.AccessionNumber = "A1"
    dataset.ReferringPhysicianName = "Refer^Ring"
    dataset.StudyDescription = "Chest PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.Rows, dataset.Columns = HEIGHT, WIDTH
    return dataset


def scored_case() -> ScoredCase:
    """Return a case with a flagged, an unflagged and an uncalibrated finding."""
    random = np.random.default_rng(0)
    heatmap = np.zeros((8, 8), dtype=np.float32)
    heatmap[5, 1] = 2.0
    radiomics = {"firstorder_10Percentile": 12.5, "glcm_Autocorrelation": 2e-12}
    radiomics |= {"glszm_ZoneEntropy": float("nan")}
    return ScoredCase(
        pixels=random.integers(60, 120, (HEIGHT, WIDTH), dtype=np.uint8),
        geometry=Geometry(
            original_height=HEIGHT,
            original_width=WIDTH,
            row_scale=HEIGHT / SIDE,
            column_scale=WIDTH / SIDE,
        ),
        model_side_px=SIDE,
        heatmap=heatmap,
        heatmap_finding="Effusion",
        findings=(
            ScoredFinding(
                name="Effusion",
                probability=0.8312345678,
                threshold=0.31,
                flagged=True,
                calibrated=True,
                region=REGION,
                radiomics=radiomics,
            ),
            ScoredFinding(
                name="Pleural_Thickening",
                probability=0.2,
                threshold=0.5,
                flagged=False,
                calibrated=True,
                region=REGION,
            ),
            ScoredFinding(
                name="Hernia", probability=0.0, threshold=None, flagged=None, calibrated=False
            ),
        ),
        model=ScoringModel(
            bundle_digest=DIGEST,
            preprocessing_digest=PREPROCESSING,
            round=3,
            software_version="0.1.0",
        ),
        content_at=datetime(2026, 1, 2, 3, 4, 5),
        quality_notes=("view_unknown", "presentation_lut_contradicts_photometric"),
        out_of_distribution=True,
        out_of_distribution_score=12.34567,
    )


def parsed(content: bytes) -> Dataset:
    """Read a result as strictly as pydicom can."""
    return pydicom.dcmread(io.BytesIO(content))


@pytest.fixture
def complaints(tool: Tool, tmp_path: Path) -> Complaints:
    """Return a function that tells the errors which the validator sees in a file."""
    dciodvfy = tool("dciodvfy", "install Debian's package dicom3tools")

    def find(content: bytes) -> list[str]:
        # Not by standard input: it needs to seek.
        path = tmp_path / "result.dcm"
        path.write_bytes(content)
        done = subprocess.run([dciodvfy, str(path)], capture_output=True, check=False)
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        assert any(line in ("Comprehensive3DSR", "SCImage") for line in lines), lines
        errors = [line for line in lines if line.startswith("Error")]
        assert (done.returncode != 0) == bool(errors), lines
        return errors

    return find


def without(*keywords: str) -> Change:
    """Return a change that removes attributes."""

    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def with_raw(**values: bytes) -> Change:
    """Return a change that writes bytes as they are, valid or not."""

    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            vr = pydicom.datadict.dictionary_VR(keyword)
            dataset[keyword] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(keyword), vr, len(value), value, 0, True, True
            )

    return change


def all_of(*changes: Change) -> Change:
    """Return the changes one after another."""

    def change(dataset: Dataset) -> None:
        for one in changes:
            one(dataset)

    return change


STUDY_AND_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription",
)  # fmt: skip

POOR_HEADERS: dict[str, Change] = {
    "good": without(),
    "only the image's own UID": without(
        "SOPClassUID",
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "Modality",
        "PatientOrientation",
        *STUDY_AND_PATIENT,
    ),
    "no study UID": without("StudyInstanceUID"),
    "no series UID": without("SeriesInstanceUID"),
    "study UID of letters": with_raw(StudyInstanceUID=b"no.uid"),
    "empty patient ID": with_raw(PatientID=b""),
    "patient ID of 70 characters": with_raw(PatientID=b"7" * 70),
    "patient ID with a backslash": with_raw(PatientID=b"47\\11"),
    "patient ID with control characters": with_raw(PatientID=b"47\x0011\x1b"),
    "no study date": without("StudyDate", "StudyTime"),
    "study date that is none": with_raw(StudyDate=b"20260231", StudyTime=b"991112"),
    "study date of ACR-NEMA": with_raw(StudyDate=b"2026.01.01", StudyTime=b"10:11:12"),
    "study date of words": with_raw(StudyDate=b"yesterday", PatientBirthDate=b"unknown"),
    "unknown sex and age": with_raw(PatientSex=b"unknown", PatientAge=b"old"),
    "long accession number": with_raw(AccessionNumber=b"9" * 40, StudyID=b"8" * 40),
    "Latin-1 name": with_raw(SpecificCharacterSet=b"ISO_IR 100", PatientName=b"M\xfcller^J\xf6rg"),
    "Japanese name": with_raw(
        SpecificCharacterSet=b"\\ISO 2022 IR 87",
        PatientName=b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
    ),
    "Chinese name": with_raw(
        SpecificCharacterSet=b"GB18030", PatientName="Wang^XiaoDong=王^小东".encode("gb18030")
    ),
    "name not of its character set": with_raw(PatientName=b"M\xfcller^J\xf6rg"),
    "unknown character set": with_raw(SpecificCharacterSet=b"LATIN99", PatientName=b"M\xfcller"),
    "name of seven components": with_raw(PatientName=b"a^b^c^d^e^f^g=h=i=j"),
    "name of 300 letters": with_raw(PatientName=b"N" * 300),
    "orientation of nonsense": with_raw(PatientOrientation=b"UP\\DOWN"),
    "orientation of one value": with_raw(PatientOrientation=b"L"),
    "compressed with loss": with_raw(
        LossyImageCompression=b"01", LossyImageCompressionRatio=b"12.5"
    ),
    "compressed with unknown loss": with_raw(LossyImageCompression=b"01"),
    "offset of Tokyo": with_raw(TimezoneOffsetFromUTC=b"+0900"),
    "offset of nowhere": with_raw(TimezoneOffsetFromUTC=b"-0000"),
    "offset of words": with_raw(TimezoneOffsetFromUTC=b"Tokyo"),
    "private SOP class": with_raw(SOPClassUID=b"1.2.3.999.1"),
    "computed radiography without class": all_of(without("SOPClassUID"), with_raw(Modality=b"CR")),
}


def poor(name: str) -> Dataset:
    """Return a header of the list above."""
    dataset = header()
    POOR_HEADERS[name](dataset)
    return dataset


@pytest.fixture
def results() -> DicomResults:
    """Return the results of a good header."""
    return write_dicom_results(header(), scored_case())


def test_header_without_identifier_is_refused_without_its_values() -> None:
    for change in (without("SOPInstanceUID"), with_raw(SOPInstanceUID=b"not a uid")):
        dataset = header()
        change(dataset)
        with pytest.raises(DicomResultError, match=r"no SOP Instance UID \(0008,0018\)") as raised:
            write_dicom_results(dataset, scored_case())
        assert "4711" not in str(raised.value)


def test_case_that_contradicts_itself_is_refused() -> None:
    case = scored_case()
    with pytest.raises(ConfigError, match="probability"):
        replace(case.findings[0], probability=1.5)
    with pytest.raises(ConfigError, match="findings"):
        replace(case, findings=())
    with pytest.raises(ConfigError, match=r"uint8 of shape \(600, 480\)"):
        replace(case, pixels=np.zeros((10, 10), dtype=np.uint8))
    with pytest.raises(ConfigError, match="heatmap_finding"):
        replace(case, heatmap_finding="Mass")
    with pytest.raises(ConfigError, match="out_of_distribution_score"):
        replace(case, out_of_distribution_score=float("nan"))
    with pytest.raises(ConfigError, match="bundle_digest"):
        replace(case.model, bundle_digest="abc")


@pytest.mark.parametrize("name", POOR_HEADERS)
def test_results_of_every_header_satisfy_the_validator(name: str, complaints: Complaints) -> None:
    results = write_dicom_results(poor(name), scored_case())
    assert complaints(results.structured_report) == []
    assert complaints(results.secondary_capture) == []


def test_results_of_real_headers_satisfy_the_validator(
    shared_data: Path, complaints: Complaints
) -> None:
    paths = sorted((shared_data / "radiographs" / "dicom").glob("*.dcm"))
    assert len(paths) >= 3
    for path in paths:
        results = write_dicom_results(open_dicom(path.read_bytes()).dataset, scored_case())
        assert complaints(results.structured_report) == []
        assert complaints(results.secondary_capture) == []


@pytest.mark.parametrize(
    ("kind", "keyword"),
    [
        ("structured_report", "CompletionFlag"),
        ("structured_report", "ContentDate"),
        ("structured_report", "StudyInstanceUID"),
        ("secondary_capture", "ConversionType"),
        ("secondary_capture", "SeriesInstanceUID"),
        ("secondary_capture", "PatientID"),
    ],
)
def test_validator_sees_a_planted_violation(
    kind: str, keyword: str, results: DicomResults, complaints: Complaints
) -> None:
    broken = parsed(getattr(results, kind))
    delattr(broken, keyword)
    buffer = io.BytesIO()
    broken.save_as(buffer)
    words = pydicom.datadict.dictionary_description(keyword).replace(" ", "")
    found = [error.replace(" ", "") for error in complaints(buffer.getvalue())]
    assert any(f"<{words}>" in error for error in found), found


@pytest.mark.parametrize("name", ["good", "Latin-1 name", "only the image's own UID"])
def test_rerun_gives_equal_bytes(name: str) -> None:
    first = write_dicom_results(poor(name), scored_case())
    again = write_dicom_results(poor(name), scored_case())
    assert first.structured_report == again.structured_report
    assert first.secondary_capture == again.secondary_capture


def test_dates_and_identifiers_depend_on_the_case_alone(results: DicomResults) -> None:
    for content in (results.structured_report, results.secondary_capture):
        result = parsed(content)
        dates = [
            str(e.value) for e in result.iterall() if e.VR == "DA" and e.keyword != "StudyDate"
        ]
        assert set(dates) == {"20260102", "19700131"}
    # Known values: a change of them orphans what archives hold, and needs another kind of result.
    assert results.structured_report_uid == "2.25.147933418400546476180210016738680774954"
    assert results.secondary_capture_uid == "2.25.280235439328532479303564566134768055251"


def test_identifiers_are_the_files_own_and_valid(results: DicomResults) -> None:
    report, capture = parsed(results.structured_report), parsed(results.secondary_capture)
    assert report.SOPInstanceUID == results.structured_report_uid
    assert capture.SOPInstanceUID == results.secondary_capture_uid
    for result in (report, capture):
        assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
        assert result.file_meta.MediaStorageSOPClassUID == result.SOPClassUID
        assert all(e.value.is_valid for e in result.iterall() if e.VR == "UI" and e.VM == 1)
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert capture.SOPClassUID.name == "Secondary Capture Image Storage"


def test_other_model_or_preprocessing_gives_other_identifiers() -> None:
    case = scored_case()
    variants = [
        case,
        replace(case, model=replace(case.model, bundle_digest=OTHER_DIGEST)),
        replace(case, model=replace(case.model, preprocessing_digest=OTHER_DIGEST)),
    ]
    written = [write_dicom_results(header(), variant) for variant in variants]
    files = [parsed(r.structured_report) for r in written]
    files += [parsed(r.secondary_capture) for r in written]
    assert len({file.SOPInstanceUID for file in files}) == 6
    assert len({file.SeriesInstanceUID for file in files}) == 6
    assert {file.StudyInstanceUID for file in files} == {STUDY_UID}


def test_two_images_of_a_study_share_a_series_of_each_kind() -> None:
    second = header()
    second.SOPInstanceUID = SOURCE_UID + ".1"
    one, two = (write_dicom_results(h, scored_case()) for h in (header(), second))
    for kind in ("structured_report", "secondary_capture"):
        first, other = parsed(getattr(one, kind)), parsed(getattr(two, kind))
        assert first.SeriesInstanceUID == other.SeriesInstanceUID
        assert first.SOPInstanceUID != other.SOPInstanceUID
        assert first.InstanceNumber != other.InstanceNumber


def test_patient_and_study_are_the_originals(results: DicomResults) -> None:
    for content in (results.structured_report, results.secondary_capture):
        result = parsed(content)
        for keyword in STUDY_AND_PATIENT:
            assert result[keyword].value == header()[keyword].value
        assert result.StudyInstanceUID == STUDY_UID
        assert "SpecificCharacterSet" not in result


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Latin-1 name", "Müller^Jörg"),
        ("Japanese name", "Yamada^Tarou=山田^太郎"),
        ("Chinese name", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_of_any_alphabet_come_out_as_unicode(name: str, expected: str) -> None:
    results = write_dicom_results(poor(name), scored_case())
    for content in (results.structured_report, results.secondary_capture):
        result = parsed(content)
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert str(result.PatientName) == expected


def test_values_that_cannot_stand_are_emptied_and_long_ones_cut() -> None:
    def read(name: str) -> Dataset:
        return parsed(write_dicom_results(poor(name), scored_case()).structured_report)

    assert read("study date that is none").StudyDate == ""
    assert read("study date that is none").StudyTime == ""
    assert read("study date of ACR-NEMA").StudyDate == "20260101"
    assert read("study date of ACR-NEMA").StudyTime == "101112"
    assert read("unknown sex and age").PatientSex == ""
    assert read("patient ID of 70 characters").PatientID == "7" * 64
    assert read("only the image's own UID").PatientName == ""


def test_missing_study_gets_one_that_both_results_share() -> None:
    results = write_dicom_results(poor("no study UID"), scored_case())
    report, capture = parsed(results.structured_report), parsed(results.secondary_capture)
    assert report.StudyInstanceUID == capture.StudyInstanceUID
    assert report.StudyInstanceUID.startswith("2.25.")


def test_header_is_left_as_it_was() -> None:
    dataset = poor("Latin-1 name")
    write_dicom_results(dataset, scored_case())
    assert dataset.SpecificCharacterSet == "ISO_IR 100"
    assert sorted(dataset.keys()) == sorted(poor("Latin-1 name").keys())


def test_header_in_implicit_encoding_as_a_parser_gives_it_is_read() -> None:
    buffer = io.BytesIO()
    header().save_as(buffer, implicit_vr=True, little_endian=True)
    buffer.seek(0)
    dataset = read_dataset(buffer, is_implicit_VR=True, is_little_endian=True)
    expected = write_dicom_results(header(), scored_case())
    assert write_dicom_results(dataset, scored_case()).structured_report == (
        expected.structured_report
    )


def test_nothing_of_the_patient_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for name in POOR_HEADERS:
            write_dicom_results(poor(name), scored_case())
    assert not [r for r in caplog.records if "ller" in r.getMessage() or "4711" in r.getMessage()]


def groups(report: Dataset) -> dict[str, Dataset]:
    """Return the measurement groups of a report by tracking identifier."""
    (measurements,) = named(report, "Imaging Measurements")
    found = named(measurements, "Measurement Group")
    return {named(group, "Tracking Identifier")[0].TextValue: group for group in found}


def named(container: Dataset, meaning: str) -> list[Dataset]:
    """Return the content items of a container that have a concept's name."""
    items = container.ContentSequence
    return [item for item in items if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def number(item: Dataset) -> float:
    """Return the value of a NUM item."""
    return float(item.MeasuredValueSequence[0].NumericValue)


def answer(group: Dataset, meaning: str) -> str:
    """Return the meaning of a CODE item's value."""
    return str(named(group, meaning)[0].ConceptCodeSequence[0].CodeMeaning)


def test_report_tells_probabilities_thresholds_and_flags(results: DicomResults) -> None:
    found = groups(parsed(results.structured_report))
    assert list(found) == ["image", "Effusion", "Pleural_Thickening", "Hernia"]
    for finding in scored_case().findings:
        group = found[finding.name]
        if finding.calibrated:
            (certainty,) = named(group, "Certainty of Finding")
            assert named(group, "Score, not calibrated") == []
            assert number(certainty) == pytest.approx(100 * finding.probability, abs=5e-5)
            unit = certainty.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
            assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("%", "UCUM")
        else:
            assert named(group, "Certainty of Finding") == []
            (score,) = named(group, "Score, not calibrated")
            assert number(score) == pytest.approx(finding.probability)
        thresholds = [number(item) for item in named(group, "Threshold Value")]
        expected = [] if finding.threshold is None else [100 * finding.threshold]
        assert thresholds == pytest.approx(expected)
        flag = answer(group, "Reaches the operating threshold")
        assert flag == {True: "Yes", False: "No", None: "Not assessed"}[finding.flagged]
        assert answer(group, "Probability is calibrated") == ("Yes" if finding.calibrated else "No")
    assert answer(found["Effusion"], "Finding") == "Pleural effusion"
    code = named(found["Effusion"], "Finding")[0].ConceptCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("60046008", "SCT")
    code = named(found["Pleural_Thickening"], "Finding")[0].ConceptCodeSequence[0]
    assert (code.LongCodeValue, code.CodingSchemeDesignator) == (
        "Pleural_Thickening",
        "99CHEXRADINET",
    )


def test_report_holds_the_flagged_region_as_closed_rectangle(results: DicomResults) -> None:
    found = groups(parsed(results.structured_report))
    (region,) = named(found["Effusion"], "Image Region")
    assert region.GraphicType == "POLYLINE"
    points = np.array(region.GraphicData).reshape(-1, 2).tolist()
    top, left, bottom, right = REGION.top, REGION.left, REGION.bottom, REGION.right
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    assert points == [*corners, corners[0]]
    (image,) = region.ContentSequence
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == SOURCE_UID
    assert named(found["Pleural_Thickening"], "Image Region") == []


def test_region_over_the_edge_is_cut_and_one_outside_is_left_out() -> None:
    case = scored_case()

    def regions_of(box: Box) -> list[Dataset]:
        finding = replace(case.findings[0], region=box)
        results = write_dicom_results(header(), replace(case, findings=(finding,)))
        group = groups(parsed(results.structured_report))["Effusion"]
        return named(group, "Image Region")

    (cut,) = regions_of(Box(-20, 400, 100, 900))
    assert cut.GraphicData == [400, 0, WIDTH, 0, WIDTH, 100, 400, 100, 400, 0]
    assert regions_of(Box(700, 0, 800, 100)) == []


def test_report_names_model_source_quality_and_use(results: DicomResults) -> None:
    report = parsed(results.structured_report)
    assert named(report, "Device Observer Model Name")[0].TextValue == "ChexRadiNet round 3"
    assert named(report, "Device Observer Serial Number")[0].TextValue == DIGEST
    assert report.DeviceSerialNumber == DIGEST
    assert report.SoftwareVersions == "0.1.0"
    image = groups(report)["image"]
    assert answer(image, "Intended use") == "Not for diagnostic use"
    notes = [item.ConceptCodeSequence[0] for item in named(image, "Note of the quality gate")]
    assert [note.CodeMeaning for note in notes] == [
        "view unknown",
        "presentation lut contradicts photometric",
    ]
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (STUDY_UID, SERIES_UID)
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == SOURCE_UID
    assert series.ReferencedSOPSequence[0].ReferencedSOPClassUID == DX
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_report_holds_finite_radiomics_of_the_region(results: DicomResults) -> None:
    group = groups(parsed(results.structured_report))["Effusion"]
    assert number(named(group, "firstorder 10Percentile")[0]) == 12.5
    assert number(named(group, "glcm Autocorrelation")[0]) == 2e-12
    assert named(group, "glszm ZoneEntropy") == []


def test_capture_is_marked_as_derived_picture_with_burned_in_text(results: DicomResults) -> None:
    capture = parsed(results.secondary_capture)
    assert capture.BurnedInAnnotation == "YES"
    assert capture.ImageType == ["DERIVED", "SECONDARY"]
    assert capture.Modality == "OT"
    assert DIGEST in capture.DerivationDescription
    assert "heatmap of Effusion" in capture.DerivationDescription
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == SOURCE_UID
    assert capture.PatientOrientation == ["L", "F"]
    assert np.array_equal(capture.pixel_array, case_picture(scored_case()))


def test_source_compressed_with_loss_is_said_to_be() -> None:
    results = write_dicom_results(poor("compressed with loss"), scored_case())
    capture = parsed(results.secondary_capture)
    assert capture.LossyImageCompression == "01"
    assert capture.LossyImageCompressionRatio == 12.5


def test_picture_shows_banner_heatmap_and_region_where_they_belong() -> None:
    case = scored_case()
    factor = LONG_SIDE_PX / HEIGHT
    picture = case_picture(case).astype(int)
    bare = case_picture(replace(case, heatmap=None, findings=case.findings[1:])).astype(int)
    banner = next(row for row in range(len(picture)) if tuple(picture[row, 0]) != (176, 0, 32))
    assert (picture[:banner] == 255).all(axis=2).sum() > 1000
    view = picture[banner : banner + LONG_SIDE_PX]
    assert view.shape[1] == round(WIDTH * factor)
    left = round(REGION.left * factor)
    middle = round((REGION.top + REGION.bottom) / 2 * factor)
    assert tuple(view[middle, left]) == REGION_COLOR
    # The map's only cell, (5, 1) of 8 x 8, is coloured most; nothing at the opposite corner is.
    changed = np.abs(view - bare[banner : banner + LONG_SIDE_PX]).sum(axis=2)
    inside = changed[round(5.5 / 8 * LONG_SIDE_PX), round(1.5 / 8 * view.shape[1])]
    assert inside > 100
    assert changed[: LONG_SIDE_PX // 2, view.shape[1] // 2 :].max() == 0


def test_model_pixels_and_original_pixels_give_the_same_layout() -> None:
    """A padded square: bars must go, and what was at a place must stay there."""
    height, width, side = 200, 100, 50
    geometry = Geometry(
        original_height=height,
        original_width=width,
        row_scale=height / side,
        column_scale=height / side,
        column_offset=-(height - width) / 2,
    )
    original = np.full((height, width), 40, dtype=np.uint8)
    original[80:120, 20:40] = 220
    model = np.zeros((side, side), dtype=np.uint8)
    model[:, 13:38] = 40
    model[20:30, 18:22] = 220
    case = replace(
        scored_case(),
        geometry=geometry,
        model_side_px=side,
        pixels=original,
        heatmap=None,
        heatmap_finding="",
        findings=scored_case().findings[2:],
    )
    shown = case_picture(case)
    from_model = case_picture(replace(case, pixels=model))
    assert shown.shape == from_model.shape
    edge = np.abs(shown.astype(int) - from_model.astype(int)).max(axis=2) > 60
    assert edge.mean() < 0.02


def test_pixels_that_are_not_square_are_shown_square() -> None:
    case = scored_case()
    geometry = replace(case.geometry, row_spacing_mm=0.2, column_spacing_mm=0.1)
    picture = case_picture(replace(case, geometry=geometry))
    assert picture.shape[1] == round(LONG_SIDE_PX * WIDTH / (2 * HEIGHT)) or (
        picture.shape[1] == 480
    )


def test_tiny_and_unflagged_cases_are_drawn() -> None:
    geometry = Geometry(original_height=40, original_width=8, row_scale=1, column_scale=1)
    case = replace(
        scored_case(),
        pixels=np.zeros((40, 8), dtype=np.uint8),
        geometry=geometry,
        heatmap=np.full((8, 8), np.nan, dtype=np.float32),
        findings=tuple(replace(f, flagged=f.flagged and False) for f in scored_case().findings),
    )
    assert case_picture(case).shape[1] >= 480


def test_dcmtk_reads_both_results(results: DicomResults, tool: Tool, tmp_path: Path) -> None:
    dsrdump = tool("dsrdump", "install Debian's package dcmtk")
    dcmdump = tool("dcmdump", "install Debian's package dcmtk")

    def run(command: list[str], content: bytes) -> str:
        path = tmp_path / "result.dcm"
        path.write_bytes(content)
        done = subprocess.run([*command, str(path)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"E:" not in done.stderr
        return done.stdout.decode()

    text = run([dsrdump, "+Pl"], results.structured_report)
    assert "Comprehensive 3D SR Document" in text
    assert '"Certainty of Finding")="83.1235" (%,UCUM,"Percent")' in text
    assert "POLYLINE" in text
    assert "BurnedInAnnotation" in run([dcmdump], results.secondary_capture)


def test_standard_codes_have_the_meanings_of_the_standard() -> None:
    """The tables that come with pydicom are made from PS3.16 and hold half of the codes."""
    tables: dict[str, Any] = concepts
    compared = {}
    for finding, (value, scheme, meaning) in STANDARD_FINDINGS.items():
        entries = [entry[value][0] for entry in tables[scheme].values() if value in entry]
        if entries:
            compared[finding] = meaning in entries
    assert compared == dict.fromkeys(
        ("Edema", "Effusion", "Infiltration", "Lung_Opacity", "Mass", "Nodule", "Pneumothorax"),
        True,
    )


def test_unknown_finding_gets_a_private_ascii_code() -> None:
    code = private_code("Schädel\\bruch")
    assert (code.value, code.scheme_designator) == ("Sch?del bruch", "99CHEXRADINET")
    assert len(private_code("x" * 200).meaning) == 64
