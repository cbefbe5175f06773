"""From predictions to what is written of an X-ray: case, rows, picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.evaluation.calibration import apply_calibration
from chexradinet.evaluation.reference import ood_flags, ood_scores
from chexradinet.model.inference import Predictions
from chexradinet.nightly.ledger import PlannedImage
from chexradinet.nightly.model import NightModel
from chexradinet.nightly.read import XRay
from chexradinet.nightly.records import NightCase, NightFinding
from chexradinet.nightly.tables import RADIOMICS_COLUMNS
from chexradinet.records import Box, FeatureStatus, Geometry, Region
from chexradinet.regions.extract import extract_region
from chexradinet.regions.radiomics import features_of
from chexradinet.regions.tables import FeatureRow, rejected_row
from chexradinet.reports.overlay import overlay

PICTURE_SIDE_PX = 224
"""Shortest side of a picture in the report."""


def cases_of(model: NightModel, xrays: Sequence[XRay], found: Predictions) -> list[NightCase]:
    """Return the cases of a batch, in its order."""
    calibration: Mapping[str, Any] = model.info.calibration or {}
    probabilities = apply_calibration(calibration, model.findings, found.logits)
    distances: Sequence[float | None] = [None] * len(xrays)
    outside: Sequence[bool | None] = [None] * len(xrays)
    if model.reference is not None:
        measured = ood_scores(model.reference, found.embedding)
        if np.isfinite(measured).all():
            distances = [float(value) for value in measured]
            outside = [bool(flag) for flag in ood_flags(model.reference, measured)]
    return [
        NightCase(
            image_key=xray.image_key,
            object_key=xray.object_key,
            study_uid=xray.study_uid,
            sop_uid=xray.sop_uid,
            view=xray.view,
            quality=xray.quality,
            pixels=xray.pixels,
            geometry=xray.geometry,
            findings=_findings(model, xray, found, row, probabilities[row]),
            ood_score=distances[row],
            out_of_distribution=outside[row],
            model_digest=model.digest,
            preprocessing_digest=model.info.preprocessing_digest,
        )
        for row, xray in enumerate(xrays)
    ]


def _findings(
    model: NightModel,
    xray: XRay,
    found: Predictions,
    row: int,
    probabilities: npt.NDArray[np.float64],
) -> tuple[NightFinding, ...]:
    calibration: Mapping[str, Any] = (model.info.calibration or {})["findings"]
    maps = found.maps
    scored = []
    for column, finding in enumerate(model.findings):
        threshold = calibration[finding]["threshold"]
        probability = float(probabilities[column])
        flagged = threshold is not None and probability >= threshold
        region = extract_region(maps[row, column], xray.pixels.shape[0], model.settings.regions)
        scored.append(
            NightFinding(
                finding=finding,
                raw_score=float(found.logits[row, column]),
                probability=probability,
                calibration=calibration[finding]["status"],
                threshold=threshold,
                flagged=flagged,
                region=region,
                original_box=_original_box(region, xray.geometry),
                heatmap=maps[row, column],
                features=_features(xray, region, model) if flagged else None,
            )
        )
    return tuple(scored)


def _features(xray: XRay, region: Region, model: NightModel) -> FeatureRow:
    if region.box is None:
        return rejected_row(FeatureStatus.NO_REGION)
    return features_of(xray.pixels, region.box, model.settings.radiomics)


def _original_box(region: Region, geometry: Geometry) -> Box | None:
    if region.box is None:
        return None
    box = geometry.to_original(region.box)
    return box.clipped(geometry.original_height, geometry.original_width)


def score_rows(case: NightCase, plan: int, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the rows of the score table of one X-ray.

    Args:
        case: What was found.
        plan: Its number.
        seconds: By column of `tables.TIMINGS`; what was not done may be absent.
    """
    shared = {
        "image_key": case.image_key,
        "study_uid": case.study_uid,
        "sop_uid": case.sop_uid,
        "object_key": case.object_key,
        "view": case.view,
        "quality": ";".join(case.quality),
        "spacing_source": case.geometry.spacing_source,
        "out_of_distribution": case.out_of_distribution,
        "out_of_distribution_score": case.ood_score,
        "model_digest": case.model_digest,
        "preprocessing_digest": case.preprocessing_digest,
        "plan": plan,
        **seconds,
    }
    return [
        {
            **shared,
            "finding": found.finding,
            "raw_score": found.raw_score,
            "probability": found.probability,
            "calibration": found.calibration,
            "threshold": found.threshold,
            "flagged": found.flagged,
            "region_status": found.region.status.value,
            **_place(found, case.geometry),
            **_radiomics(found.features),
        }
        for found in case.findings
    ]


def _place(found: NightFinding, geometry: Geometry) -> dict[str, float]:
    """Return region and peak in original pixels, and the region in millimetres where known."""
    values: dict[str, float] = {}
    box, region = found.original_box, found.region
    if box is not None:
        sides = {"top": box.top, "left": box.left, "bottom": box.bottom, "right": box.right}
        values |= {f"region_{side}_px": place for side, place in sides.items()}
        rows_mm, columns_mm = geometry.row_spacing_mm, geometry.column_spacing_mm
        if rows_mm is not None and columns_mm is not None:
            scale = {"top": rows_mm, "bottom": rows_mm, "left": columns_mm, "right": columns_mm}
            values |= {f"region_{side}_mm": place * scale[side] for side, place in sides.items()}
    if region.peak_row is not None and region.peak_column is not None:
        values["peak_row_px"] = region.peak_row * geometry.row_scale + geometry.row_offset
        values["peak_column_px"] = (
            region.peak_column * geometry.column_scale + geometry.column_offset
        )
    return values


def _radiomics(features: FeatureRow | None) -> dict[str, Any]:
    """Return the features of a flagged finding's region; a status alone for the others."""
    if features is None:
        return {"radiomics_status": "not_flagged"}
    found: dict[str, Any] = {"radiomics_status": features.status.value}
    if features.status is FeatureStatus.OK:
        found |= dict(zip(RADIOMICS_COLUMNS, features.values.tolist(), strict=True))
    return found


def image_row(
    xray: XRay, case: NightCase, planned: PlannedImage, embedding: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Return the row of the table of images."""
    return {
        "image_key": case.image_key,
        "object_key": case.object_key,
        "etag": planned.etag,
        "arrived": planned.arrived.isoformat(),
        "study_uid": case.study_uid,
        "patient_key": xray.patient_key,
        "view": case.view,
        "age_years": xray.age_years,
        "sex": xray.sex,
        "manufacturer": xray.manufacturer,
        "quality": ";".join(case.quality),
        "out_of_distribution": case.out_of_distribution,
        "out_of_distribution_score": case.ood_score,
        "pixel_mean": float(case.pixels.mean()),
        "pixel_std": float(case.pixels.std()),
        "probabilities": [found.probability for found in case.findings],
        "flags": [found.flagged for found in case.findings],
        "embedding": embedding.tolist(),
    }


def picture(case: NightCase, found: NightFinding) -> bytes:
    """Return a PNG of an X-ray with the heatmap and region of one finding."""
    drawn = overlay(case.pixels, found.heatmap, found.region.box, min_side_px=PICTURE_SIDE_PX)
    bgr = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return bytes(encoded.tobytes())
