r"""What a radiograph's header says, as plain values: for the quality gate, the manifest, results.

View, in this order; the first that says anything decides:

1. View Position (0018,5101): `PA` or `AP`, also with a suffix (`AP_SUPINE`) unless that names
   another projection (`AP LORDOTIC`, `PA LLD`); no other is frontal. `FRONTAL`, `UNKNOWN` and the
   like leave open which it is: the rules below may tell, but with `FRONTAL` only `PA` or `AP`.
2. View Code Sequence (0054,0220): code or meaning (PS3.16 CID 4010).
3. Series Description, Acquisition Device Processing Description, Protocol Name, Performed Procedure
   Step Description: a word such as `LAT` or `OBLIQUE`, or `PA` or `AP`. Texts that name both kinds
   describe the study and say nothing about the image.
4. Patient Orientation (0020,0020): rows that run towards `A` or `P` are a lateral.

Body part: Body Part Examined (0018,0015), else code or meaning of Anatomic Region Sequence
(0008,2218; PS3.16 CID 4). Accents do not matter.

Species: Patient Species (0010,2201 and 2202), Breed, an `OWNER` as responsible person, an animal in
the description of series, protocol or processing, or a veterinary word there, in the study's
description or in the institution's name: most animal files carry only the last. Names of animals
are not looked for in the last two: people are bitten by dogs, and hospitals stand in White Horse.

Source: DICOM PS3.3 sections C.7 (patient, study, image), C.8.11 (DX) and 10.7 (pixel spacing).
"""

import re
from datetime import date
from typing import NamedTuple

from pydicom.dataset import Dataset

from chexradinet.dataset.labels.generic import (
    MAX_AGE_YEARS,
    NOT_SAID,
    folded,
    parse_age,
    parse_sex,
    view_in,
    view_position,
)
from chexradinet.dicom.codecs import PixelLayout
from chexradinet.dicom.file import DicomFile, is_given, item_of, numbers, text
from chexradinet.records import RadiographHeader, View

_PLAUSIBLE_SPACING_MM = (0.01, 10.0)
_DAYS_PER_YEAR = 365.25
UPRIGHT = "LF"
"""Orientation of a frontal chest: rows run to the patient's left, columns to the feet."""
_FRONTAL_PLANE = [{first, second} for first in "LR" for second in "HF"]
_VIEW_CODES = {
    "272479007": View.PA,
    "R-10214": View.PA,
    "399348003": View.AP,
    "R-10206": View.AP,
}
_DESCRIPTIONS = (
    "SeriesDescription",
    "AcquisitionDeviceProcessingDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
)
_CHEST = re.compile(
    r"CHEST|THORAX|LUNG|TORAX|TORAKS|TORACE|BRUSTKORB|POITRINE|POUMON|PULMO|PULMAO|POLMON|胸"
)
_CHEST_CODES = {
    *("51185008", "816094009", "T-D3000"),  # chest
    *("39607008", "T-28000"),  # lung
    *("43799004", "T-D3200"),  # chest cavity
    *("416550000", "R-FAB55"),  # chest and abdomen
}
_HUMAN_CODES = {"", "337915000", "L-85B00"}
_HUMAN = re.compile(r"\b(HOMO SAPIENS|HUMAN)\b")
_VETERINARY = re.compile(r"\b(VETERINAR\w*|TIERAE?RZT\w*|TIERKLINIK|TIERSPITAL|ANIMALS?)\b")
_ANIMAL = re.compile(r"\b(CANINE|FELINE|EQUINE|BOVINE|AVIAN|RABBIT|HORSE|DOG)\b")


def read_radiograph_header(file: DicomFile, layout: PixelLayout) -> RadiographHeader:
    """Collect what the header says. Damaged or absent values come out empty, never as errors."""
    dataset = file.dataset
    row_mm, column_mm, source = _spacing(dataset)
    view = view_of(dataset)
    study_date = date_of(text(dataset, "StudyDate"))
    acquired = date_of(text(dataset, "AcquisitionDate"))
    return RadiographHeader(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        accession_number=text(dataset, "AccessionNumber"),
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
        orientation=_orientation(dataset) or UPRIGHT,
        transfer_syntax=str(file.transfer_syntax),
        notes=_notes(dataset, layout),
    )


def date_of(written: str) -> date | None:
    """Read `YYYYMMDD`, and `YYYY.MM.DD` of ACR-NEMA."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", written, re.ASCII)
    if match is None:
        return None
    try:
        return date(*(int(part) for part in match.groups()))
    except ValueError:
        return None


def _age(dataset: Dataset, on: date | None) -> float | None:
    """Return the age given, else from the birth date; `000Y` is what an empty field may become."""
    given = parse_age(text(dataset, "PatientAge"))
    born = date_of(text(dataset, "PatientBirthDate"))
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


def _orientation(dataset: Dataset) -> str:
    """Return where rows and columns run, by their first letters; empty if that is not a frontal."""
    first, _, second = text(dataset, "PatientOrientation").upper().partition("\\")
    letters = first.strip()[:1] + second.strip()[:1]
    return letters if {*letters} in _FRONTAL_PLANE else ""


def _notes(dataset: Dataset, layout: PixelLayout) -> tuple[str, ...]:
    notes = []
    inverse = text(dataset, "PresentationLUTShape").upper() == "INVERSE"
    if inverse and layout.photometric == "MONOCHROME2":
        notes.append("presentation_lut_contradicts_photometric")
    if text(dataset, "LossyImageCompression") == "01":
        notes.append("lossy")
    orientation = _orientation(dataset)
    if orientation and orientation != UPRIGHT:
        notes.append("turned_upright")
    if not orientation and is_given(dataset, "PatientOrientation"):
        notes.append("patient_orientation_unclear")
    spacings = [numbers(dataset, name) for name in ("ImagerPixelSpacing", "PixelSpacing")]
    if any(spacings) and not _spacing(dataset)[2]:
        notes.append("implausible_spacing")
    return tuple(notes)


class ViewFound(NamedTuple):
    """What the header says about the view."""

    view: View
    """`PA`, `AP`, or unknown."""
    is_frontal: bool | None
    """None if the header does not say."""
    source: str
    """Which rule decided: `view_position`, `view_code`, `description`, `patient_orientation`."""


def view_of(dataset: Dataset) -> ViewFound:
    """Tell the view by the rules of this module."""
    position = text(dataset, "ViewPosition")
    view, is_frontal = view_position(position)
    if is_frontal is not None:
        return ViewFound(view, is_frontal, "view_position")
    found = _view_elsewhere(dataset)
    if folded(position) == "FRONTAL" and found.view is View.UNKNOWN:
        return ViewFound(View.UNKNOWN, None, "view_position")
    return found


def _view_elsewhere(dataset: Dataset) -> ViewFound:
    item = item_of(dataset, "ViewCodeSequence")
    if item is not None:
        view = _VIEW_CODES.get(text(item, "CodeValue"), View.UNKNOWN)
        frontal, named = _described(folded(text(item, "CodeMeaning")))
        if view is not View.UNKNOWN:
            return ViewFound(view, True, "view_code")
        if frontal is not None:
            return ViewFound(named, frontal, "view_code")
    frontal, named = _described(_words(dataset, _DESCRIPTIONS))
    if frontal is not None:
        return ViewFound(named, frontal, "description")
    if text(dataset, "PatientOrientation")[:1] in ("A", "P"):
        return ViewFound(View.UNKNOWN, False, "patient_orientation")
    return ViewFound(View.UNKNOWN, None, "")


def _words(dataset: Dataset, keywords: tuple[str, ...]) -> str:
    return folded(" ".join(text(dataset, keyword) for keyword in keywords))


def _described(words: str) -> tuple[bool | None, View]:
    """Return whether a text says frontal, and which; None if it says neither or both."""
    view, other = view_in(words)
    frontal = view is not View.UNKNOWN or "FRONTAL" in words
    if frontal == other:
        return None, View.UNKNOWN
    return frontal, view


def shows_chest(dataset: Dataset) -> bool | None:
    """Tell whether the header names the chest; None if it names no part."""
    part = folded(text(dataset, "BodyPartExamined"))
    if part in NOT_SAID:
        item = item_of(dataset, "AnatomicRegionSequence")
        if item is None:
            return None
        if text(item, "CodeValue").upper() in _CHEST_CODES:
            return True
        part = folded(text(item, "CodeMeaning"))
    return None if part in NOT_SAID else bool(_CHEST.search(part))


def is_human(dataset: Dataset) -> bool:
    """Tell whether nothing in the header speaks against a human patient."""
    item = item_of(dataset, "PatientSpeciesCodeSequence")
    code = text(item, "CodeValue") if item is not None else ""
    if code not in _HUMAN_CODES or text(dataset, "ResponsiblePersonRole").upper() == "OWNER":
        return False
    for keyword in ("PatientSpeciesDescription", "PatientBreedDescription"):
        named = folded(text(dataset, keyword))
        if named not in NOT_SAID and not _HUMAN.search(named):
            return False
    described = _words(dataset, _DESCRIPTIONS)
    around = _words(dataset, ("StudyDescription", "InstitutionName"))
    return not (_ANIMAL.search(described) or _VETERINARY.search(f"{described} {around}"))
