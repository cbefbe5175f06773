r"""What kind of image a header describes, where vendors say it in different places.

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
"""

import re
import unicodedata
from contextlib import suppress
from typing import NamedTuple

from pydicom.dataset import Dataset

from chexradinet.dicom.values import item_of, text
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
    r"\b(LAT|LATERAL\w*|LL|RL|LLAT|RLAT|SEITLICH|PROFIL|OBLIQU\w*|DECUB\w*|LLD|RLD|LORDOTIC|AXIAL"
    r"|LAO|RAO|LPO|RPO)\b"
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
_NOTHING = {"", "UNKNOWN", "UNK", "OTHER", "NONE", "DEFAULT", "N/A", "NA", "UNDEFINED"}
"""What a field holds where somebody had to fill it in."""
_HUMAN_CODES = {"", "337915000", "L-85B00"}
_HUMAN = re.compile(r"\b(HOMO SAPIENS|HUMAN)\b")
_VETERINARY = re.compile(r"\b(VETERINAR\w*|TIERAE?RZT\w*|TIERKLINIK|TIERSPITAL|ANIMALS?)\b")
_ANIMAL = re.compile(r"\b(CANINE|FELINE|EQUINE|BOVINE|AVIAN|RABBIT|HORSE|DOG)\b")


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
    position = _folded(text(dataset, "ViewPosition"))
    if position in _NOTHING:
        return _view_elsewhere(dataset)
    if position == "FRONTAL":
        found = _view_elsewhere(dataset)
        known = found.view is not View.UNKNOWN
        return found if known else ViewFound(View.UNKNOWN, None, "view_position")
    view = View.UNKNOWN if _NOT_FRONTAL.search(position) else _view_in(position)
    return ViewFound(view, view is not View.UNKNOWN, "view_position")


def _view_elsewhere(dataset: Dataset) -> ViewFound:
    item = item_of(dataset, "ViewCodeSequence")
    if item is not None:
        view = _VIEW_CODES.get(text(item, "CodeValue"), View.UNKNOWN)
        frontal, named = _described(_folded(text(item, "CodeMeaning")))
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
    return _folded(" ".join(text(dataset, keyword) for keyword in keywords))


def _folded(written: str) -> str:
    """Return text in upper case, without accents, with spaces for underscores.

    Code strings have no character set, so pydicom takes them for Latin-1 where they are UTF-8.
    """
    with suppress(UnicodeError):
        written = written.encode("latin-1").decode("utf-8")
    apart = unicodedata.normalize("NFKD", written.upper())
    plain = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return plain.replace("_", " ").strip()


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
    part = _folded(text(dataset, "BodyPartExamined"))
    if part in _NOTHING:
        item = item_of(dataset, "AnatomicRegionSequence")
        if item is None:
            return None
        if text(item, "CodeValue").upper() in _CHEST_CODES:
            return True
        part = _folded(text(item, "CodeMeaning"))
    return None if part in _NOTHING else bool(_CHEST.search(part))


def is_human(dataset: Dataset) -> bool:
    """Tell whether nothing in the header speaks against a human patient."""
    item = item_of(dataset, "PatientSpeciesCodeSequence")
    code = text(item, "CodeValue") if item is not None else ""
    if code not in _HUMAN_CODES or text(dataset, "ResponsiblePersonRole").upper() == "OWNER":
        return False
    for keyword in ("PatientSpeciesDescription", "PatientBreedDescription"):
        named = _folded(text(dataset, keyword))
        if named not in _NOTHING and not _HUMAN.search(named):
            return False
    described = _words(dataset, _DESCRIPTIONS)
    around = _words(dataset, ("StudyDescription", "InstitutionName"))
    return not (_ANIMAL.search(described) or _VETERINARY.search(f"{described} {around}"))
