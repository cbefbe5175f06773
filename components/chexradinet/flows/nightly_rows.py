"""From predictions to what is written of an X-ray: case, rows, picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import RadiomicsConfig
from chexradinet.flows.ledger import PlannedImage
from chexradinet.flows.nightly_read import XRay
from chexradinet.flows.nightly_settings import ResultSettings
from chexradinet.flows.nightly_tables import RADIOMICS_COLUMNS
from chexradinet.model.bundle import LoadedBundle
from chexradinet.model.inference import Predictions
from chexradinet.records import Box, FeatureStatus, Geometry, Region
from chexradinet.regions.extract import extract_region
from chexradinet.regions.radiomics import features_of
from chexradinet.regions.tables import FeatureRow, rejected_row
from chexradinet.results.calibration import apply_calibration
from chexradinet.results.overlay import overlay
from chexradinet.results.page import png_bytes
from chexradinet.results.reference import Reference, ood_flags, ood_scores
from chexradinet.results.scored_case import ScoredCase, ScoredFinding

PICTURE_SIDE_PX = 288
"""Shortest side of a picture in the report."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model and all that turns its predictions into cases."""

    bundle: LoadedBundle
    reference: Reference | None
    """None where the bundle has none: then nothing is said of drift and distribution."""
    settings: ResultSettings

    @property
    def findings(self) -> tuple[str, ...]:
        """Of the model, in its order."""
        return self.bundle.info.findings


def reference_of(bundle: LoadedBundle) -> Reference | None:
    """Return the reference distributions of a bundle, None where it has none."""
    arrays = getattr(bundle, "reference_arrays", None)
    document = bundle.info.reference
    if document is None or not arrays:
        return None
    return Reference(document=dict(document), arrays=dict(arrays))


def cases_of(scorer: Scorer, xrays: Sequence[XRay], found: Predictions) -> list[ScoredCase]:
    """Return the cases of a batch, in its order."""
    calibration: Mapping[str, Any] = scorer.bundle.info.calibration or {}
    probabilities = apply_calibration(calibration, scorer.findings, found.logits)
    distances: Sequence[float | None] = [None] * len(xrays)
    outside: Sequence[bool | None] = [None] * len(xrays)
    if scorer.reference is not None:
        measured = ood_scores(scorer.reference, found.embedding)
        if np.isfinite(measured).all():
            distances = [float(value) for value in measured]
            outside = [bool(flag) for flag in ood_flags(scorer.reference, measured)]
    return [
        ScoredCase(
            image_key=xray.image_key,
            object_key=xray.object_key,
            study_uid=xray.study_uid,
            sop_uid=xray.sop_uid,
            view=xray.view,
            quality=xray.quality,
            pixels=xray.pixels,
            geometry=xray.geometry,
            findings=_findings(scorer, xray, found, row, probabilities[row]),
            ood_score=distances[row],
            out_of_distribution=outside[row],
            model_digest=scorer.bundle.digest,
            preprocessing_digest=scorer.bundle.info.preprocessing_digest,
        )
        for row, xray in enumerate(xrays)
    ]


def _findings(
    scorer: Scorer,
    xray: XRay,
    found: Predictions,
    row: int,
    probabilities: npt.NDArray[np.float64],
) -> tuple[ScoredFinding, ...]:
    calibration: Mapping[str, Any] = (scorer.bundle.info.calibration or {})["findings"]
    maps = found.maps
    scored = []
    for column, finding in enumerate(scorer.findings):
        threshold = calibration[finding]["threshold"]
        probability = float(probabilities[column])
        region = extract_region(maps[row, column], xray.pixels.shape[0], scorer.settings.regions)
        scored.append(
            ScoredFinding(
                finding=finding,
                raw_score=float(found.logits[row, column]),
                probability=probability,
                calibration=calibration[finding]["status"],
                threshold=threshold,
                flagged=threshold is not None and probability >= threshold,
                region=region,
                original_box=_original_box(region, xray.geometry),
                heatmap=maps[row, column],
            )
        )
    return tuple(scored)


def _original_box(region: Region, geometry: Geometry) -> Box | None:
    if region.box is None:
        return None
    box = geometry.to_original(region.box)
    return box.clipped(geometry.original_height, geometry.original_width)


def score_rows(case: ScoredCase, plan: int, config: RadiomicsConfig) -> list[dict[str, Any]]:
    """Return the rows of the score table of one X-ray."""
    shared = {
        "image_key": case.image_key,
        "study_uid": case.study_uid,
        "sop_uid": case.sop_uid,
        "object_key": case.object_key,
        "view": case.view,
        "quality": ";".join(case.quality),
        "out_of_distribution": case.out_of_distribution,
        "out_of_distribution_score": case.ood_score,
        "model_digest": case.model_digest,
        "preprocessing_digest": case.preprocessing_digest,
        "plan": plan,
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
            **_radiomics(case, found, config),
        }
        for found in case.findings
    ]


def _place(found: ScoredFinding, geometry: Geometry) -> dict[str, float]:
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


def _radiomics(case: ScoredCase, found: ScoredFinding, config: RadiomicsConfig) -> dict[str, Any]:
    """Return the features of a flagged finding's region; a status alone for the others."""
    if not found.flagged:
        return {"radiomics_status": "not_flagged"}
    row: FeatureRow = rejected_row(FeatureStatus.NO_REGION)
    if found.region.box is not None:
        row = features_of(case.pixels, found.region.box, config)
    values = row.values.tolist() if row.status is FeatureStatus.OK else []
    return {
        "radiomics_status": row.status.value,
        **dict(zip(RADIOMICS_COLUMNS, values, strict=False)),
    }


def image_row(
    xray: XRay, case: ScoredCase, planned: PlannedImage, embedding: npt.NDArray[np.float32]
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
        "pixel_mean": float(case.pixels.mean()),
        "pixel_std": float(case.pixels.std()),
        "probabilities": [found.probability for found in case.findings],
        "flags": [found.flagged for found in case.findings],
        "embedding": embedding.tolist(),
    }


def picture(case: ScoredCase, settings: ResultSettings) -> tuple[float, bytes] | None:
    """Return urgency and PNG of a flagged X-ray's first finding, None where none is flagged."""
    ranked = sorted(
        case.flagged,
        key=lambda found: (
            -settings.worklist.urgency_of(found.finding) * found.probability,
            found.finding,
        ),
    )
    if not ranked:
        return None
    first = ranked[0]
    drawn = overlay(case.pixels, first.heatmap, first.region.box, min_side_px=PICTURE_SIDE_PX)
    urgency = settings.worklist.urgency_of(first.finding) * first.probability
    return urgency, png_bytes(drawn)
