r"""What kind of image a header describes, where vendors say it in different places.

View, in this order; the first that says anything decides:

1. View Position (0018,5101): `PA` or `AP`, also with a suffix (`AP_SUPINE`); no other is frontal.
2. View Code Sequence (0054,0220): code or meaning (PS3.16 CID 4010).
3. Series Description, Acquisition Device Processing Description, Protocol Name, Performed Procedure
   Step Description: a word such as `LAT` or `OBLIQUE`, or `PA` or `AP`. Texts that name both kinds
   describe the study and say nothing about the image.
4. Patient Orientation (0020,0020): rows that run towards `A` or `P` are a lateral.

Body part: Body Part Examined (0018,0015), else Anatomic Region Sequence (0008,2218).

Species: Patient Species (0010,2201 and 2202), Breed, an `OWNER` as responsible person, or a
veterinary word in a description or the institution's name: most animal files carry only the last.
"""

import re
from typing import NamedTuple

from pydicom.dataset import Dataset

from chexradinet.dataset.dicom_values import item_of, text
from chexradinet.records import View

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
_PA = re.compile(r"\b(PA|P-A|POSTERO.?ANTERIOR)\b")
_AP = re.compile(r"\b(AP|A-P|ANTERO.?POSTERIOR)\b")
_NOT_FRONTAL = re.compile(
    r"\b(LAT|LATERAL\w*|LL|RL|LLAT|RLAT|SEITLICH|PROFIL|OBLIQUE|DECUBITUS|LORDOTIC|LAO|RAO|LPO|RPO)\b"
)
_CHEST = re.compile(r"CHEST|THORAX|LUNG|TORAX|TORACE|BRUSTKORB|POITRINE|PULMO")
_NO_PART = {"", "UNKNOWN", "OTHER", "NONE", "DEFAULT", "N/A", "NA", "UNDEFINED"}
_HUMAN_CODES = {"", "337915000", "L-85B00"}
_HUMAN = re.compile(r"\b(HOMO SAPIENS|HUMAN)\b")
_ANIMAL = re.compile(
    r"\b(CANINE|FELINE|EQUINE|BOVINE|AVIAN|RABBIT|HORSE|DOG|VETERINAR\w*|TIERARZT\w*|TIERKLINIK)\b"
)


class ViewFound(NamedTuple):
    """What the header says about the view."""

    view: View
    """`PA`, `AP`, or unknown."""
    is_frontal: bool | None
    """None where the header does not say."""
    source: str
    """Which rule decided: `view_position`, `view_code`, `description`, `patient_orientation`."""


def view_of(dataset: Dataset) -> ViewFound:
    """Tell the view by the rules of this module."""
    position = text(dataset, "ViewPosition").upper().replace("_", " ")
    if position:
        found = _view_in(position)
        return ViewFound(found, found is not View.UNKNOWN, "view_position")
    item = item_of(dataset, "ViewCodeSequence")
    if item is not None:
        view = _VIEW_CODES.get(text(item, "CodeValue"), View.UNKNOWN)
        frontal, named = _described(text(item, "CodeMeaning").upper())
        if view is not View.UNKNOWN or frontal is not None:
            return ViewFound(view if view is not View.UNKNOWN else named, frontal, "view_code")
    words = " ".join(text(dataset, keyword) for keyword in _DESCRIPTIONS)
    frontal, named = _described(words.upper().replace("_", " "))
    if frontal is not None:
        return ViewFound(named, frontal, "description")
    if text(dataset, "PatientOrientation")[:1] in ("A", "P"):
        return ViewFound(View.UNKNOWN, False, "patient_orientation")
    return ViewFound(View.UNKNOWN, None, "")


def _view_in(words: str) -> View:
    if _PA.search(words):
        return View.PA
    return View.AP if _AP.search(words) else View.UNKNOWN


def _described(words: str) -> tuple[bool | None, View]:
    """Return whether a text says frontal, and which; None where it says neither or both."""
    view = _view_in(words)
    frontal = view is not View.UNKNOWN or "FRONTAL" in words
    if frontal == bool(_NOT_FRONTAL.search(words)):
        return None, View.UNKNOWN
    return frontal, view


def shows_chest(dataset: Dataset) -> bool | None:
    """Tell whether the header names the chest; None where it names no part."""
    part = text(dataset, "BodyPartExamined").upper()
    if part in _NO_PART:
        item = item_of(dataset, "AnatomicRegionSequence")
        part = text(item, "CodeMeaning").upper() if item is not None else ""
    return None if part in _NO_PART else bool(_CHEST.search(part))


def is_human(dataset: Dataset) -> bool:
    """Tell whether nothing in the header speaks against a human patient."""
    item = item_of(dataset, "PatientSpeciesCodeSequence")
    code = text(item, "CodeValue") if item is not None else ""
    species = text(dataset, "PatientSpeciesDescription").upper()
    if code not in _HUMAN_CODES or (species and not _HUMAN.search(species)):
        return False
    if text(dataset, "PatientBreedDescription"):
        return False
    if text(dataset, "ResponsiblePersonRole").upper() == "OWNER":
        return False
    keywords = (*_DESCRIPTIONS, "StudyDescription", "InstitutionName")
    words = " ".join(text(dataset, keyword) for keyword in keywords)
    return not _ANIMAL.search(words.upper())
