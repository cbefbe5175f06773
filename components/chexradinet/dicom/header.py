"""What a radiograph's header says, as plain values: for the quality gate, the manifest, results.

Source: DICOM PS3.3 sections C.7 (patient, study, image), C.8.11 (DX) and 10.7 (pixel spacing).
"""

import re
from datetime import date

from pydicom.dataset import Dataset

from chexradinet.dataset.labels.table import MAX_AGE_YEARS, parse_age, parse_sex
from chexradinet.dicom.file import DicomFile
from chexradinet.dicom.pixels import PixelLayout
from chexradinet.dicom.rules import is_human, shows_chest, view_of
from chexradinet.dicom.values import numbers, text
from chexradinet.records import RadiographHeader

_PLAUSIBLE_SPACING_MM = (0.01, 10.0)
_DAYS_PER_YEAR = 365.25


def read_radiograph_header(file: DicomFile, layout: PixelLayout) -> RadiographHeader:
    """Collect what the header says. Damaged or absent values come out empty, never as errors."""
    dataset = file.dataset
    row_mm, column_mm, source = _spacing(dataset)
    view = view_of(dataset)
    study_date = _date(text(dataset, "StudyDate"))
    acquired = _date(text(dataset, "AcquisitionDate"))
    return RadiographHeader(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        study_date=study_date,
        acquisition_date=acquired,
        sop_class_uid=text(dataset, "SOPClassUID"),
        modality=text(dataset, "Modality").upper(),
        view=view.view,
        is_frontal=view.is_frontal,
        view_source=view.source,
        body_part=text(dataset, "BodyPartExamined").upper(),
        shows_chest=shows_chest(dataset),
        is_human=is_human(dataset),
        age_years=_age(dataset, acquired or study_date),
        sex=parse_sex(text(dataset, "PatientSex")),
        manufacturer=text(dataset, "Manufacturer"),
        model=text(dataset, "ManufacturerModelName"),
        presentation_intent=text(dataset, "PresentationIntentType").upper(),
        burned_in_annotation=text(dataset, "BurnedInAnnotation").upper(),
        photometric_interpretation=layout.photometric,
        rows=layout.rows,
        columns=layout.columns,
        row_spacing_mm=row_mm,
        column_spacing_mm=column_mm,
        spacing_source=source,
        pixel_aspect_ratio=_aspect(dataset, row_mm, column_mm),
        transfer_syntax=str(file.transfer_syntax),
        notes=_notes(dataset, layout),
    )


def _date(written: str) -> date | None:
    """Read `YYYYMMDD`, and `YYYY.MM.DD` of ACR-NEMA."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", written)
    if match is None:
        return None
    try:
        return date(*(int(part) for part in match.groups()))
    except ValueError:
        return None


def _age(dataset: Dataset, on: date | None) -> float | None:
    """Return the age given, else from the birth date; `000Y` is what an empty field may become."""
    given = parse_age(text(dataset, "PatientAge"))
    born = _date(text(dataset, "PatientBirthDate"))
    if given or born is None or on is None:
        return given
    years = (on - born).days / _DAYS_PER_YEAR
    return years if 0 <= years <= MAX_AGE_YEARS else given


def _spacing(dataset: Dataset) -> tuple[float | None, float | None, str]:
    """Prefer the spacing at the detector: Pixel Spacing may be corrected for magnification."""
    low, high = _PLAUSIBLE_SPACING_MM
    for keyword, source in (
        ("ImagerPixelSpacing", "imager_pixel_spacing"),
        ("PixelSpacing", "pixel_spacing"),
    ):
        found = numbers(dataset, keyword)
        if len(found) == 2 and all(low <= distance <= high for distance in found):
            return found[0], found[1], source
    return None, None, ""


def _aspect(dataset: Dataset, row_mm: float | None, column_mm: float | None) -> float:
    """Return height over width of a pixel: from Pixel Aspect Ratio, else from the spacing."""
    ratio = numbers(dataset, "PixelAspectRatio")
    if len(ratio) == 2 and min(ratio) > 0:
        aspect = ratio[0] / ratio[1]
    elif row_mm and column_mm:
        aspect = row_mm / column_mm
    else:
        return 1.0
    return aspect if 0.1 <= aspect <= 10.0 else 1.0


def _notes(dataset: Dataset, layout: PixelLayout) -> tuple[str, ...]:
    notes = []
    inverse = text(dataset, "PresentationLUTShape").upper() == "INVERSE"
    if inverse and layout.photometric == "MONOCHROME2":
        notes.append("presentation_lut_contradicts_photometric")
    if text(dataset, "LossyImageCompression") == "01":
        notes.append("lossy")
    spacings = [numbers(dataset, name) for name in ("ImagerPixelSpacing", "PixelSpacing")]
    if any(spacings) and not _spacing(dataset)[2]:
        notes.append("implausible_spacing")
    return tuple(notes)
