"""Content of the structured report: TID 1500 with one measurement group per finding.

    Imaging Measurement Report (TID 1500)
      observer: the model, as a device
      Imaging Measurements
        group of the image: intended use, notes of the quality gate,
          whether it is out of distribution, and how far                     (TID 1501)
        group per finding: certainty, threshold, flag, calibration           (TID 1501)
          the same with a region, if it is flagged and has one               (TID 1410)

The content is written as bytes, explicit VR little endian: as a tree of data sets it took ten times
as long as all other work on an X-ray. Tests compare it with what highdicom writes, byte for byte.

A standard code stands only if SNOMED CT or DICOM PS3.16 means just what the data sets' label
means; the others are of a private scheme. `docs/dicom-results.md` lists them.

Source: DICOM PS3.16 annex A; PS3.5 chapter 7; IHE Radiology supplement "AI Results".
"""

import math
import struct
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from chexradinet.dicom_results import DEVICE_NAME, ScoredCase, ScoredFinding, ScoringModel
from chexradinet.dicom_results.source import SourceImage, derived_uid

PRIVATE_SCHEME = "99CHEXRADINET"
"""Designator of the project's own coding scheme."""
MAX_MEANING = 64
"""Longest Code Meaning."""

STANDARD_FINDINGS = {
    "Atelectasis": ("46621007", "SCT", "Atelectasis"),
    "Cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "Consolidation": ("95436008", "SCT", "Lung consolidation"),
    "Edema": ("19242006", "SCT", "Pulmonary edema"),
    "Effusion": ("60046008", "SCT", "Pleural effusion"),
    "Emphysema": ("87433001", "SCT", "Pulmonary emphysema"),
    "Fibrosis": ("51615001", "SCT", "Fibrosis of lung"),
    "Fracture": ("125605004", "SCT", "Fracture of bone"),
    "Infiltration": ("112121", "DCM", "Infiltrate"),
    "Lung_Opacity": ("112001", "DCM", "Opacity"),
    "Mass": ("4147007", "SCT", "Mass"),
    "Nodule": ("27925004", "SCT", "Nodule"),
    "Pneumonia": ("233604007", "SCT", "Pneumonia"),
    "Pneumothorax": ("36118008", "SCT", "Pneumothorax"),
}
"""Finding to code value, scheme and meaning."""

REPORT = Code("126000", "DCM", "Imaging Measurement Report")
CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
"""Stated by a device; here the calibrated probability, in percent."""
THRESHOLD = Code("122411", "DCM", "Threshold Value")
SENSITIVITY = Code("SENSITIVITY", PRIVATE_SCHEME, "Sensitivity of the threshold, test split")
SPECIFICITY = Code("SPECIFICITY", PRIVATE_SCHEME, "Specificity of the threshold, test split")
SCORE = Code("SCORE", PRIVATE_SCHEME, "Score, not calibrated")
"""In place of the certainty of a finding that is not calibrated; in [0, 1]."""
PERCENT = Code("%", "UCUM", "Percent")
NO_UNITS = Code("1", "UCUM", "no units")
YES = Code("373066001", "SCT", "Yes")
NO = Code("373067005", "SCT", "No")
SOURCE_OF_DERIVATION = Code("121322", "DCM", "Source image for image processing operation")

FLAGGED = Code("FLAGGED", PRIVATE_SCHEME, "Reaches the operating threshold")
NOT_ASSESSED = Code("NOT_ASSESSED", PRIVATE_SCHEME, "Not assessed")
"""In place of yes or no if there is no threshold: such a finding was not excluded."""
CALIBRATED = Code("CALIBRATED", PRIVATE_SCHEME, "Probability is calibrated")
INTENDED_USE = Code("INTENDED_USE", PRIVATE_SCHEME, "Intended use")
NOT_DIAGNOSTIC = Code("NOT_DIAGNOSTIC", PRIVATE_SCHEME, "Not for diagnostic use")
QUALITY_NOTE = Code("QUALITY_NOTE", PRIVATE_SCHEME, "Note of the quality gate")
OUT_OF_DISTRIBUTION = Code("OUT_OF_DISTRIBUTION", PRIVATE_SCHEME, "Out of distribution")
"""Whether the X-ray is unlike those that the model was calibrated on."""
DISTRIBUTION_DISTANCE = Code(
    "DISTRIBUTION_DISTANCE", PRIVATE_SCHEME, "Distance from the X-rays it was calibrated on"
)

_IN_GROUP, _MODIFIES, _CONTEXT = "CONTAINS", "HAS CONCEPT MOD", "HAS OBS CONTEXT"
_LONG_VRS = frozenset({"SQ", "UC", "UT"})
_LONGEST_CODE = 16

Points = npt.NDArray[np.float64]


def report_content(case: ScoredCase, source: SourceImage) -> bytes:
    """Return the Content Sequence (0040,A730) of the report's root, its last element."""
    groups = [_image_group(case, source)]
    groups += [_finding_group(finding, case, source) for finding in case.findings]
    return _sequence(
        0x0040A730,
        [
            _code_item(
                _MODIFIES,
                Code("121049", "DCM", "Language of Content Item and Descendants"),
                Code("en-US", "RFC5646", "English (United States)"),
            ),
            *_observer(case.model),
            _code_item(_MODIFIES, Code("121058", "DCM", "Procedure reported"), CHEST_RADIOGRAPHY),
            _container(Code("126010", "DCM", "Imaging Measurements"), "", groups),
        ],
    )


def _observer(model: ScoringModel) -> list[bytes]:
    device = Code("121007", "DCM", "Device")
    uid = derived_uid("device", model.bundle_digest)
    return [
        _code_item(_CONTEXT, Code("121005", "DCM", "Observer Type"), device),
        _uid_item(Code("121012", "DCM", "Device Observer UID"), uid),
        _text_item(_CONTEXT, Code("121013", "DCM", "Device Observer Name"), DEVICE_NAME),
        _text_item(_CONTEXT, Code("121014", "DCM", "Device Observer Manufacturer"), DEVICE_NAME),
        _text_item(
            _CONTEXT, Code("121015", "DCM", "Device Observer Model Name"), model.device_name
        ),
        _text_item(
            _CONTEXT, Code("121016", "DCM", "Device Observer Serial Number"), model.bundle_digest
        ),
    ]


@lru_cache(maxsize=8)
def _algorithm(model: ScoringModel) -> tuple[bytes, ...]:
    parameters = (
        f"bundle sha256 {model.bundle_digest}",
        f"preprocessing sha256 {model.preprocessing_digest}",
        f"round {model.round}",
    )
    named = Code("111002", "DCM", "Algorithm Parameters")
    version = model.software_version
    return (
        _text_item(_MODIFIES, Code("111001", "DCM", "Algorithm Name"), DEVICE_NAME),
        _text_item(_MODIFIES, Code("111003", "DCM", "Algorithm Version"), version),
        *(_text_item(_MODIFIES, named, parameter) for parameter in parameters),
    )


def _tracking(case: ScoredCase, source: SourceImage, name: str) -> list[bytes]:
    identity = (source.sop_instance_uid, case.model.bundle_digest, case.model.preprocessing_digest)
    uid = derived_uid(*identity, "tracking", name)
    return [
        _text_item(_CONTEXT, Code("112039", "DCM", "Tracking Identifier"), name),
        _uid_item(Code("112040", "DCM", "Tracking Unique Identifier"), uid),
    ]


def _image_group(case: ScoredCase, source: SourceImage) -> bytes:
    said = [_code_item(_IN_GROUP, INTENDED_USE, NOT_DIAGNOSTIC)]
    said += [_code_item(_IN_GROUP, QUALITY_NOTE, private_code(note)) for note in case.quality_notes]
    if case.out_of_distribution is not None:
        answer = _answer(case.out_of_distribution)
        said.append(_code_item(_IN_GROUP, OUT_OF_DISTRIBUTION, answer))
    distance, taken = case.out_of_distribution_score, []
    if distance is not None:
        taken = [_number_item(DISTRIBUTION_DISTANCE, round(float(distance), 4), NO_UNITS)]
    parts = [*_tracking(case, source, "image"), *_algorithm(case.model), *taken, *said]
    return _group("1501", [*parts, _source_of_group(source)])


def _finding_group(finding: ScoredFinding, case: ScoredCase, source: SourceImage) -> bytes:
    parts = [
        *_tracking(case, source, finding.name),
        _code_item(_IN_GROUP, Code("121071", "DCM", "Finding"), finding_code(finding)),
        *_algorithm(case.model),
        *_measurements(finding),
        _code_item(_IN_GROUP, FLAGGED, _answer(finding.flagged)),
        _code_item(_IN_GROUP, CALIBRATED, _answer(finding.calibrated)),
    ]
    corners = _corners(finding, case)
    if corners is None:
        return _group("1501", [*parts, _source_of_group(source)])
    return _group("1410", [*parts, _image_region(corners, source)])


def _answer(answer: bool | None) -> Code:
    if answer is None:
        return NOT_ASSESSED
    return YES if answer else NO


def _corners(finding: ScoredFinding, case: ScoredCase) -> Points | None:
    """Return a flagged region as five (column, row) points, the first one again at the end.

    Spatial coordinates of DICOM have their origin at the top left corner of the top left pixel, as
    ours (PS3.3 C.18.6.1.2); they must not leave the image.
    """
    geometry = case.geometry
    if not finding.flagged or finding.region is None:
        return None
    box = finding.region.clipped(geometry.original_height, geometry.original_width)
    if box is None:
        return None
    top, left, bottom, right = box.top, box.left, box.bottom, box.right
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])


def _measurements(finding: ScoredFinding) -> list[bytes]:
    if finding.calibrated:
        taken = [_percentage(CERTAINTY, finding.probability)]
    else:
        taken = [_number_item(SCORE, round(float(finding.probability), 6), NO_UNITS)]
    for name, fraction in (
        (THRESHOLD, finding.threshold),
        (SENSITIVITY, finding.sensitivity),
        (SPECIFICITY, finding.specificity),
    ):
        if fraction is not None:
            taken.append(_percentage(name, fraction))
    taken += [
        _number_item(private_code(name), float(value), NO_UNITS)
        for name, value in finding.radiomics.items()
        if math.isfinite(value)
    ]
    return taken


def _percentage(name: Code, fraction: float) -> bytes:
    return _number_item(name, round(100 * float(fraction), 4), PERCENT)


def _image_region(corners: Points, source: SourceImage) -> bytes:
    image = _image_item("SELECTED FROM", Code("260753009", "SCT", "Source"), source)
    return _item(
        _head(_IN_GROUP, "SCOORD", Code("111030", "DCM", "Image Region")),
        _sequence(0x0040A730, [image]),
        _element(0x00700022, "FL", corners.astype("<f4").tobytes()),
        _element(0x00700023, "CS", b"POLYLINE"),
    )


def _source_of_group(source: SourceImage) -> bytes:
    return _image_item(_IN_GROUP, Code("121112", "DCM", "Source of Measurement"), source)


def _image_item(relation: str, name: Code, source: SourceImage) -> bytes:
    reference = _item(
        _element(0x00081150, "UI", source.sop_class_uid.encode("ascii")),
        _element(0x00081155, "UI", source.sop_instance_uid.encode("ascii")),
    )
    return _item(_sequence(0x00081199, [reference]), _head(relation, "IMAGE", name))


def _group(template: str, children: list[bytes]) -> bytes:
    return _container(Code("125007", "DCM", "Measurement Group"), template, children)


def _container(name: Code, template: str, children: Iterable[bytes]) -> bytes:
    followed = [_element(0x0040A050, "CS", b"CONTINUOUS")]
    if template:
        which = _item(
            _element(0x00080105, "CS", b"DCMR"), _element(0x0040DB00, "CS", template.encode())
        )
        followed.append(_sequence(0x0040A504, [which]))
    followed.append(_sequence(0x0040A730, children))
    return _item(_head(_IN_GROUP, "CONTAINER", name), *followed)


def _code_item(relation: str, name: Code, value: Code) -> bytes:
    return _item(_head(relation, "CODE", name), _coded(0x0040A168, value))


def _text_item(relation: str, name: Code, text: str) -> bytes:
    written = _element(0x0040A160, "UT", in_ascii(text).encode("ascii"))
    return _item(_head(relation, "TEXT", name), written)


def _uid_item(name: Code, uid: str) -> bytes:
    return _item(_head(_CONTEXT, "UIDREF", name), _element(0x0040A124, "UI", uid.encode("ascii")))


def _number_item(name: Code, value: float, unit: Code) -> bytes:
    measured = _item(
        _coded(0x004008EA, unit),
        _element(0x0040A161, "FD", struct.pack("<d", value)),
        _element(0x0040A30A, "DS", str(DSfloat(value, auto_format=True)).encode("ascii")),
    )
    return _item(_head(_IN_GROUP, "NUM", name), _sequence(0x0040A300, [measured]))


@lru_cache(maxsize=1024)
def _head(relation: str, value_type: str, name: Code) -> bytes:
    """Return relationship, value type and concept name of a content item."""
    return (
        _element(0x0040A010, "CS", relation.encode("ascii"))
        + _element(0x0040A040, "CS", value_type.encode("ascii"))
        + _coded(0x0040A043, name)
    )


@lru_cache(maxsize=1024)
def _coded(tag: int, code: Code) -> bytes:
    """Return a code sequence of one item; a value over 16 characters has its own element."""
    value, is_long = code.value.encode("ascii"), len(code.value) > _LONGEST_CODE
    return _sequence(
        tag,
        [
            _item(
                b"" if is_long else _element(0x00080100, "SH", value),
                _element(0x00080102, "SH", code.scheme_designator.encode("ascii")),
                _element(0x00080104, "LO", code.meaning.encode("ascii")),
                _element(0x00080119, "UC", value) if is_long else b"",
            )
        ],
    )


def _item(*elements: bytes) -> bytes:
    """Return an item of a sequence, with explicit length; its elements are in order of tags."""
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _sequence(tag: int, items: Iterable[bytes]) -> bytes:
    return _element(tag, "SQ", b"".join(items))


def _element(tag: int, vr: str, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("ascii"))
    length = struct.pack("<HI", 0, len(value)) if vr in _LONG_VRS else struct.pack("<H", len(value))
    return start + length + value


def finding_code(finding: ScoredFinding) -> Code:
    """Return a finding's code: its own, of SNOMED CT or DICOM, else private with its name."""
    known = finding.code or STANDARD_FINDINGS.get(finding.name)
    return Code(*known) if known else private_code(finding.name)


def in_ascii(text: str) -> str:
    """Return text that every character set holds: a name given by the user may be in any."""
    return text.encode("ascii", "replace").decode()


def private_code(value: str) -> Code:
    """Return a code of the project's own scheme; its meaning is the value in words."""
    words = " ".join(value.replace("\\", " ").split())
    kept = in_ascii(words)
    return Code(kept, PRIVATE_SCHEME, kept.replace("_", " ")[:MAX_MEANING])


def private_scheme_item() -> Dataset:
    """Return the item of Coding Scheme Identification Sequence that introduces the scheme."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "ChexRadiNet results"
    item.CodingSchemeResponsibleOrganization = "ChexRadiNet"
    return item
