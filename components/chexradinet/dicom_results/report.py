"""Content of the structured report: TID 1500 with one measurement group per finding.

    Imaging Measurement Report (TID 1500)
      observer: the model, as a device
      Imaging Measurements
        group of the image: intended use, notes of the quality gate,
          whether it is out of distribution, and how far                     (TID 1501)
        group a finding: certainty, threshold, flag, calibration             (TID 1501)
          the same with a region, where it is flagged and has one            (TID 1410)

A standard code stands only where SNOMED CT or DICOM PS3.16 means just what the data sets' label
means; the others are of a private scheme. `docs/dicom-results.md` lists them.

Source: DICOM PS3.16 annex A; IHE Radiology supplement "AI Results".
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import DigitalXRayImageStorageForPresentation

from chexradinet.dicom_results.cases import ScoredCase, ScoredFinding, ScoringModel
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

DEVICE_NAME = "ChexRadiNet"
"""Manufacturer and name of the device observer."""

Points = npt.NDArray[np.float64]


def report_content(case: ScoredCase, source: SourceImage) -> Dataset:
    """Return the root container of the report about one X-ray."""
    groups: list[Any] = [_image_group(case, source)]
    groups += [_finding_group(finding, case, source) for finding in case.findings]
    report = sr.MeasurementReport(
        observation_context=_observer(case.model),
        procedure_reported=CHEST_RADIOGRAPHY,
        imaging_measurements=groups,
    )
    root: Dataset = report[0]
    return root


def model_name(model: ScoringModel) -> str:
    """Return the name of the model as a device, with its round."""
    return f"{DEVICE_NAME} round {model.round}"


def _observer(model: ScoringModel) -> sr.ObservationContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", model.bundle_digest),
        name=DEVICE_NAME,
        manufacturer_name=DEVICE_NAME,
        model_name=model_name(model),
        serial_number=model.bundle_digest,
    )
    context = sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=device,
    )
    return sr.ObservationContext(observer_device_context=context)


def _algorithm(model: ScoringModel) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=DEVICE_NAME,
        version=model.software_version,
        parameters=[
            f"bundle sha256 {model.bundle_digest}",
            f"preprocessing sha256 {model.preprocessing_digest}",
            f"round {model.round}",
        ],
    )


def _tracking(case: ScoredCase, source: SourceImage, name: str) -> sr.TrackingIdentifier:
    identity = (source.sop_instance_uid, case.model.bundle_digest, case.model.preprocessing_digest)
    return sr.TrackingIdentifier(uid=derived_uid(*identity, "tracking", name), identifier=name)


def _image_group(case: ScoredCase, source: SourceImage) -> sr.MeasurementsAndQualitativeEvaluations:
    evaluations = [sr.QualitativeEvaluation(INTENDED_USE, NOT_DIAGNOSTIC)]
    for note in case.quality_notes:
        evaluations.append(sr.QualitativeEvaluation(QUALITY_NOTE, private_code(note)))
    if case.out_of_distribution is not None:
        answer = _yes_or_no(case.out_of_distribution)
        evaluations.append(sr.QualitativeEvaluation(OUT_OF_DISTRIBUTION, answer))
    distance, taken = case.out_of_distribution_score, []
    if distance is not None:
        value = round(float(distance), 4)
        taken.append(sr.Measurement(DISTRIBUTION_DISTANCE, value, NO_UNITS))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(case, source, "image"),
        algorithm_id=_algorithm(case.model),
        measurements=taken or None,
        qualitative_evaluations=evaluations,
        source_images=[_source_of_group(source)],
    )


def _finding_group(
    finding: ScoredFinding, case: ScoredCase, source: SourceImage
) -> sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    shared: dict[str, Any] = {
        "tracking_identifier": _tracking(case, source, finding.name),
        "finding_type": finding_code(finding.name),
        "algorithm_id": _algorithm(case.model),
        "measurements": _measurements(finding),
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(FLAGGED, _yes_or_no(finding.flagged)),
            sr.QualitativeEvaluation(CALIBRATED, _yes_or_no(finding.calibrated)),
        ],
    }
    corners = _corners(finding, case)
    if corners is None:
        return sr.MeasurementsAndQualitativeEvaluations(
            source_images=[_source_of_group(source)], **shared
        )
    region = _image_region(corners, source)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **shared)


def _image_region(corners: Points, source: SourceImage) -> sr.ImageRegion:
    # highdicom looks the class up, and private ones it does not know; a reference may name any.
    image = sr.SourceImageForRegion(DigitalXRayImageStorageForPresentation, source.sop_instance_uid)
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE, graphic_data=corners, source_image=image
    )
    region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = source.sop_class_uid
    return region


def _source_of_group(source: SourceImage) -> sr.SourceImageForMeasurementGroup:
    return sr.SourceImageForMeasurementGroup(source.sop_class_uid, source.sop_instance_uid)


def _yes_or_no(answer: bool) -> Code:
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


def _measurements(finding: ScoredFinding) -> list[sr.Measurement]:
    taken = [_percentage(CERTAINTY, finding.probability)]
    if finding.threshold is not None:
        taken.append(_percentage(THRESHOLD, finding.threshold))
    for name, value in finding.radiomics.items():
        if math.isfinite(value):
            taken.append(sr.Measurement(private_code(name), float(value), NO_UNITS))
    return taken


def _percentage(name: Code, fraction: float) -> sr.Measurement:
    return sr.Measurement(name=name, value=round(100 * float(fraction), 4), unit=PERCENT)


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
