"""The report's content as highdicom builds it: what the project's own bytes are compared with."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sr.coding import Code
from pydicom.uid import DigitalXRayImageStorageForPresentation

from chexradinet.dicom_results import (
    DEVICE_NAME,
    ScoredCase,
    ScoredFinding,
    ScoringModel,
    report,
)
from chexradinet.dicom_results.source import SourceImage, derived_uid

Points = npt.NDArray[np.float64]


def content_by_highdicom(case: ScoredCase, source: SourceImage) -> bytes:
    """Return the Content Sequence of the report as highdicom and pydicom write it."""
    groups: list[Any] = [_image_group(case, source)]
    groups += [_finding_group(finding, case, source) for finding in case.findings]
    whole = sr.MeasurementReport(
        observation_context=_observer(case.model),
        procedure_reported=report.CHEST_RADIOGRAPHY,
        imaging_measurements=groups,
    )
    kept = Dataset()
    kept.ContentSequence = whole[0].ContentSequence
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, kept)
    return bytes(stream.getvalue())


def _observer(model: ScoringModel) -> sr.ObservationContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", model.bundle_digest),
        name=DEVICE_NAME,
        manufacturer_name=DEVICE_NAME,
        model_name=model.device_name,
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
    return sr.TrackingIdentifier(
        uid=derived_uid(*identity, "tracking", name), identifier=report.in_ascii(name)
    )


def _image_group(case: ScoredCase, source: SourceImage) -> sr.MeasurementsAndQualitativeEvaluations:
    evaluations = [sr.QualitativeEvaluation(report.INTENDED_USE, report.NOT_DIAGNOSTIC)]
    for note in case.quality_notes:
        evaluations.append(sr.QualitativeEvaluation(report.QUALITY_NOTE, report.private_code(note)))
    if case.out_of_distribution is not None:
        answer = _yes_or_no(case.out_of_distribution)
        evaluations.append(sr.QualitativeEvaluation(report.OUT_OF_DISTRIBUTION, answer))
    distance, taken = case.out_of_distribution_score, []
    if distance is not None:
        value = round(float(distance), 4)
        taken.append(sr.Measurement(report.DISTRIBUTION_DISTANCE, value, report.NO_UNITS))
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
        "finding_type": report.finding_code(finding),
        "algorithm_id": _algorithm(case.model),
        "measurements": _measurements(finding),
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(report.FLAGGED, _yes_or_no(finding.flagged)),
            sr.QualitativeEvaluation(report.CALIBRATED, _yes_or_no(finding.calibrated)),
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


def _yes_or_no(answer: bool | None) -> Code:
    return report.NOT_ASSESSED if answer is None else report.YES if answer else report.NO


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
    taken = [_percentage(report.CERTAINTY, finding.probability)]
    if not finding.calibrated:
        value = round(float(finding.probability), 6)
        taken = [sr.Measurement(name=report.SCORE, value=value, unit=report.NO_UNITS)]
    for name, fraction in (
        (report.THRESHOLD, finding.threshold),
        (report.SENSITIVITY, finding.sensitivity),
        (report.SPECIFICITY, finding.specificity),
    ):
        if fraction is not None:
            taken.append(_percentage(name, fraction))
    for feature, value in finding.radiomics.items():
        if math.isfinite(value):
            code = report.private_code(feature)
            taken.append(sr.Measurement(code, float(value), report.NO_UNITS))
    return taken


def _percentage(name: Code, fraction: float) -> sr.Measurement:
    return sr.Measurement(name=name, value=round(100 * float(fraction), 4), unit=report.PERCENT)
