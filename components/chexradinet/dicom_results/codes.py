"""Coded concepts of the results: standard where the meaning is certain, else of a private scheme.

`docs/dicom-results.md` lists them. A standard code stands only where SNOMED CT or DICOM PS3.16
means just what the data sets' label means.
"""

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

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

CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
"""Of a device; here the probability, in percent."""
THRESHOLD = Code("122411", "DCM", "Threshold Value")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNITS = Code("1", "UCUM", "no units")
YES = Code("373066001", "SCT", "Yes")
NO = Code("373067005", "SCT", "No")
SOURCE_OF_DERIVATION = Code("121322", "DCM", "Source image for image processing operation")

FLAGGED = Code("FLAGGED", PRIVATE_SCHEME, "Reaches the operating threshold")
CALIBRATED = Code("CALIBRATED", PRIVATE_SCHEME, "Probability is calibrated")
INTENDED_USE = Code("INTENDED_USE", PRIVATE_SCHEME, "Intended use")
NOT_DIAGNOSTIC = Code("NOT_DIAGNOSTIC", PRIVATE_SCHEME, "Not for diagnostic use")
QUALITY_NOTE = Code("QUALITY_NOTE", PRIVATE_SCHEME, "Note of the quality gate")
OUT_OF_DISTRIBUTION = Code("OUT_OF_DISTRIBUTION", PRIVATE_SCHEME, "Out of distribution")
"""Whether the X-ray is unlike those that the model was calibrated on."""
DISTRIBUTION_DISTANCE = Code(
    "DISTRIBUTION_DISTANCE", PRIVATE_SCHEME, "Distance from the X-rays it was calibrated on"
)


def finding_code(name: str) -> Code:
    """Return the code of a finding: of SNOMED CT or DICOM, else private with the name as value."""
    known = STANDARD_FINDINGS.get(name)
    return Code(*known) if known else private_code(name)


def private_code(value: str) -> Code:
    """Return a code of the project's own scheme; its meaning is the value in words."""
    words = " ".join(value.replace("\\", " ").split())
    kept = words.encode("ascii", "replace").decode()
    return Code(kept, PRIVATE_SCHEME, kept.replace("_", " ")[:MAX_MEANING])


def private_scheme_item() -> Dataset:
    """Return the item of Coding Scheme Identification Sequence that introduces the scheme."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "ChexRadiNet results"
    item.CodingSchemeResponsibleOrganization = "ChexRadiNet"
    return item
