"""Scoring a shard of a plan: decode beside the network, one forward pass, one object of results.

A shard that was killed leaves nothing and is done again; a shard that is there is left alone. So
each X-ray is scored into exactly one object, however often and by however many this runs. UIDs and
bytes of DICOM results follow from the X-ray and the model: a rerun writes the same files again.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from chexradinet.config import Precision, require
from chexradinet.config.nightly import ScoreConfig
from chexradinet.dicom_results import ScoredCase, ScoringModel
from chexradinet.errors import (
    ConfigError,
    DicomResultError,
    RejectedImageError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.evaluation.calibration import NOT_CALIBRATED, PLATT, apply_calibration
from chexradinet.ingest.decoding import decode_in_order
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import (
    Predictions,
    choose_device,
    folded,
    predict_folded,
    resolved,
)
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.monitoring import ProgressLog
from chexradinet.nightly import (
    EXCLUDED,
    IMAGES,
    NOT_SCORED,
    REJECTED,
    SCORES,
    Addresses,
    Excluded,
    NightCase,
    NightFinding,
    ShardOutcome,
    ShardResult,
    XRay,
    pack,
    table_from,
    urgency,
)
from chexradinet.nightly.ledger import (
    Ledger,
    Plan,
    PlannedImage,
    dicom_folder,
    open_ledger,
    read_plan,
)
from chexradinet.nightly.merge import read_shard
from chexradinet.nightly.model import (
    Look,
    Measure,
    NightModel,
    cases_of,
    fetched,
    finite_rows,
    looks_of,
    measuring,
    num_measurers,
    read_model,
)
from chexradinet.nightly.read import Reading, planned_content, read_xray
from chexradinet.records import Geometry, RejectReason
from chexradinet.reports.pictures import overlay, png_bytes
from chexradinet.version import __version__

NOT_FINITE_DETAIL = "the model gave a score or a map that is not a finite number"
PICTURE_SIDE_PX = 224
"""Shortest side of a picture in the report."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scorer(NightModel):
    """A plan's model with its network, ready for forward passes."""

    network: ChexRadiNet
    """Folded once for all batches, on the device that computes."""
    precision: Precision = Precision.FLOAT32
    """Arithmetic of the network."""


@dataclass
class _Collected:
    """Rows of a shard so far."""

    scores: list[pa.Table] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    urgent: list[tuple[float, str, NightCase, NightFinding]] = field(default_factory=list)
    """The most urgent flagged X-rays so far, for the report's pictures."""

    def exclude(self, plan: Plan, excluded: Excluded) -> None:
        """Add an object of the plan that has no scores."""
        self.rejected.append(excluded.row(plan.number))


def open_scorer(addresses: Addresses, plan: Plan, config: ScoreConfig) -> Scorer:
    """Return the model of a plan, verified, with its network; see `open_model`."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with fetched(addresses, plan) as path:
        model = read_model(path, plan)
        device = choose_device(config.device)
        network = folded(load_bundle(path, verify=False, device=str(device)).network)
    precision = resolved(config.precision, device)
    _log.info("the network computes in %s on %s", precision.value, device)
    return Scorer(**vars(model), network=network, precision=precision)


def score(addresses: Addresses, number: int, shard: int, config: ScoreConfig) -> ShardOutcome:
    """Score a shard of a plan, unless it was done before.

    Args:
        addresses: Inbox, models and results.
        number: Number of the plan.
        shard: In [0, shards of the plan).
        config: Device and processes; results do not depend on it.

    Raises:
        ConfigError: the plan has no such shard.
        ArtifactError: the model was changed.
        MismatchError: the model is for something else than the plan.
        StoreError: the inbox cannot be read or results cannot be written.
    """
    ledger = open_ledger(addresses.results_uri)
    plan = read_plan(ledger, number)
    require(0 <= shard < plan.num_shards, "shard", shard, f"in [0, {plan.num_shards})")
    if read_shard(ledger, plan, shard) is not None:
        return ShardOutcome(status="done_before")
    return score_shard(ledger, plan, shard, open_scorer(addresses, plan, config), config)


def score_shard(
    ledger: Ledger, plan: Plan, shard: int, scorer: Scorer, config: ScoreConfig
) -> ShardOutcome:
    """Score a shard with a model that is open already; see `score`."""
    if read_shard(ledger, plan, shard) is not None:
        return ShardOutcome(status="done_before")
    started = time.perf_counter()
    collected = _Collected()
    images, progress = plan.shard(shard), ProgressLog("X-rays")
    outcomes = _read(plan, images, scorer, config)
    workers = num_measurers(config.num_measurers, next(scorer.network.parameters()).device.type)
    with measuring(scorer.settings.radiomics, workers) as measure:
        before: _Passed | None = None
        for batch in _batches(outcomes, scorer.settings.batch_size):
            for one in batch:
                if isinstance(one, Excluded):
                    collected.exclude(plan, one)
            xrays = [one for one in batch if isinstance(one, XRay)]
            passed = _pass(collected, plan, scorer, xrays, measure) if xrays else None
            if before is not None:
                _collect(collected, ledger, plan, scorer, before)
            before = passed
            progress(len(collected.images) + len(collected.rejected), len(images))
        if before is not None:
            _collect(collected, ledger, plan, scorer, before)
    result = _result(collected, plan, scorer.precision, time.perf_counter() - started)
    if not ledger.create(ledger.shard_key(plan.number, shard), pack(result)):
        _log.info("shard %d of plan %d was done meanwhile by another run", shard, plan.number)
        return ShardOutcome(status="done_before")
    outcome = ShardOutcome(
        status="scored", num_scored=len(collected.images), num_excluded=len(collected.rejected)
    )
    _log.info("shard %d of plan %d: %s", shard, plan.number, outcome)
    return outcome


def _read(
    plan: Plan, images: Sequence[PlannedImage], scorer: Scorer, config: ScoreConfig
) -> Iterator[XRay | Excluded]:
    preprocessing = scorer.info.preprocessing
    reading = Reading(
        plan.inbox_uri, preprocessing, scorer.settings, plan.salt, config.decode_timeout_s
    )
    outcomes = decode_in_order(images, partial(read_xray, reading), config.num_decoders)
    for image, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, RejectedImageError):
            yield Excluded(image.key, REJECTED, str(outcome.reason), outcome.detail)
        else:
            yield outcome


def _batches(
    outcomes: Iterator[XRay | Excluded], batch_size: int
) -> Iterator[list[XRay | Excluded]]:
    """Yield outcomes in order, with at most so many X-rays at once."""
    batch: list[XRay | Excluded] = []
    num_xrays = 0
    for outcome in outcomes:
        batch.append(outcome)
        num_xrays += isinstance(outcome, XRay)
        if num_xrays == batch_size:
            yield batch
            batch, num_xrays = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _Passed:
    """A batch that passed the network; its radiomics may still be measured."""

    xrays: Sequence[XRay]
    found: Predictions
    probabilities: npt.NDArray[np.float64]
    looks: Sequence[Sequence[Look]]
    seconds: dict[str, float]


def _pass(
    collected: _Collected, plan: Plan, scorer: Scorer, xrays: Sequence[XRay], measure: Measure
) -> _Passed:
    """Pass a batch through the network, and start to measure what it flags."""
    started = time.perf_counter()
    pixels = np.stack([xray.pixels for xray in xrays])
    rows = np.arange(len(xrays))
    found = predict_folded(scorer.network, pixels, rows, precision=scorer.precision)
    passed = time.perf_counter()
    calibration: Mapping[str, Any] = scorer.info.calibration or {}
    probabilities = apply_calibration(calibration, scorer.findings, found.logits)
    usable = finite_rows(found, probabilities)
    for xray, is_usable in zip(xrays, usable, strict=True):
        if not is_usable:
            reason = RejectReason.NOT_FINITE.value
            unusable = Excluded(xray.object_key, NOT_SCORED, reason, NOT_FINITE_DETAIL)
            collected.exclude(plan, unusable)
    found = Predictions(
        found.rows[usable], found.logits[usable], found.embedding[usable], found.maps[usable]
    )
    kept = [xray for xray, is_usable in zip(xrays, usable, strict=True) if is_usable]
    looks = looks_of(scorer, kept, found, probabilities[usable], measure)
    seconds = {"forward_s": passed - started, "regions_s": time.perf_counter() - passed}
    each = {name: value / len(xrays) for name, value in seconds.items()}
    return _Passed(kept, found, probabilities[usable], looks, each)


def _collect(
    collected: _Collected, ledger: Ledger, plan: Plan, scorer: Scorer, batch: _Passed
) -> None:
    """Add the rows of a batch, when its radiomics are there."""
    started = time.perf_counter()
    cases = cases_of(scorer, batch.xrays, batch.found, batch.probabilities, batch.looks)
    waited_s = (time.perf_counter() - started) / max(1, len(batch.xrays))
    settings = scorer.settings
    rows: list[dict[str, Any]] = []
    for case, embedding in zip(cases, batch.found.embedding, strict=True):
        xray = case.xray
        image = plan.image(xray.object_key)
        seconds = {"read_s": xray.read_s, "decode_s": xray.decode_s, **batch.seconds}
        seconds["regions_s"] += waited_s
        if settings.dicom_results:
            writing = time.perf_counter()
            write_dicom(ledger, plan, image, (case, scorer))
            seconds["dicom_s"] = time.perf_counter() - writing
        rows += _score_rows(case, scorer, {"plan": plan.number, **seconds})
        collected.images.append(_image_row(case, image, embedding))
        first = urgency(case, settings)
        if first is not None:
            collected.urgent.append((-first[0], xray.object_key, case, first[1]))
    collected.scores.append(table_from(rows, SCORES))
    collected.urgent = sorted(collected.urgent, key=itemgetter(0, 1))[: settings.report_cases]


def _result(collected: _Collected, plan: Plan, precision: Precision, wall_s: float) -> ShardResult:
    return ShardResult(
        plan_sha256=plan.digest,
        scores=pa.concat_tables([SCORES.empty_table(), *collected.scores]).combine_chunks(),
        rejected=table_from(collected.rejected, EXCLUDED),
        images=table_from(collected.images, IMAGES),
        wall_s=wall_s,
        precision=precision.value,
        pictures={
            case.xray.image_key: _picture(case, found) for _, _, case, found in collected.urgent
        },
    )


def _score_rows(
    case: NightCase, model: NightModel, shared: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the rows of the score table of one X-ray; `shared` holds its plan and timings."""
    of_image = {
        **_named(case.xray, "image_key", "study_uid", "sop_uid", "object_key", "view"),
        "quality": ";".join(case.xray.quality),
        "spacing_source": case.xray.geometry.spacing_source,
        "out_of_distribution": case.out_of_distribution,
        "out_of_distribution_score": case.ood_score,
        "model_digest": model.digest,
        "preprocessing_digest": model.info.preprocessing_digest,
        **shared,
    }
    return [
        {
            **of_image,
            **_named(found, "raw_score", "threshold", "flagged", "sensitivity", "specificity"),
            "probability": found.probability if found.calibrated else None,
            "finding": found.name,
            "calibration": PLATT if found.calibrated else NOT_CALIBRATED,
            "region_status": found.model_region.status.value,
            **_place(found, case.xray.geometry),
            "radiomics_status": found.radiomics_status,
            **{f"radiomics_{name}": value for name, value in found.radiomics.items()},
        }
        for found in case.findings
    ]


def _named(record: object, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _place(found: NightFinding, geometry: Geometry) -> dict[str, float]:
    """Return region and peak in original pixels, and the region in millimetres if known."""
    values: dict[str, float] = {}
    box, region = found.region, found.model_region
    if box is not None:
        for unit, sides in {"px": box, "mm": geometry.in_mm(box)}.items():
            if sides is not None:
                values |= {f"region_{side}_{unit}": at for side, at in asdict(sides).items()}
    if region.peak_row is not None and region.peak_column is not None:
        peak = geometry.point_to_original(region.peak_row, region.peak_column)
        values["peak_row_px"], values["peak_column_px"] = peak
    return values


def _image_row(
    case: NightCase, planned: PlannedImage, embedding: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Return the row of the table of images."""
    xray = case.xray
    return {
        **_named(xray, "image_key", "object_key", "study_uid", "patient_key", "view"),
        **_named(xray, "age_years", "sex", "manufacturer"),
        **_named(xray, "accession", "patient_id", "study_date"),
        "etag": planned.etag,
        "arrived": planned.arrived.isoformat(),
        "quality": ";".join(xray.quality),
        "out_of_distribution": case.out_of_distribution,
        "out_of_distribution_score": case.ood_score,
        "pixel_mean": float(xray.pixels.mean()),
        "pixel_std": float(xray.pixels.std()),
        "probabilities": [found.probability for found in case.findings],
        "flags": [found.flagged is True for found in case.findings],
        "embedding": embedding.tolist(),
    }


def _picture(case: NightCase, found: NightFinding) -> bytes:
    """Return a PNG of an X-ray with the heatmap and region of one finding."""
    box = found.model_region.box
    drawn = overlay(case.xray.pixels, found.heatmap, box, min_side_px=PICTURE_SIDE_PX)
    return png_bytes(drawn, compression=3)


def write_dicom(
    ledger: Ledger, plan: Plan, image: PlannedImage, scored: tuple[NightCase, NightModel]
) -> int:
    """Write the DICOM results of an X-ray that came as DICOM; return how many files.

    An X-ray that changed since it was scored, or that names no instance, has none.

    Raises:
        ConfigError: what writes them is not installed.
        StoreError: results cannot be written.
    """
    case, model = scored
    if not case.xray.sop_uid:
        return 0
    try:
        content = planned_content(plan.inbox_uri, image)
        files = _files(content, image, case, model)
    except (StoreConflictError, StoreNotFoundError, RejectedImageError, DicomResultError) as error:
        _log.warning(
            "no DICOM results of X-ray %s: %s", case.xray.image_key[:12], type(error).__name__
        )
        return 0
    folder = dicom_folder(ledger, plan, case.xray.object_key)
    for name, data in sorted(files.items()):
        ledger.store.put(folder + name, data)
    return len(files)


def _files(
    content: bytes, image: PlannedImage, case: NightCase, model: NightModel
) -> dict[str, bytes]:
    try:
        # Here, not above: scoring must also run where these are not installed.
        from chexradinet.dicom.file import open_dicom
        from chexradinet.dicom.reader import read_radiograph
        from chexradinet.dicom_results.results import write_dicom_results
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dicom_results is set, and {error.name} is not installed; install it, or switch "
            "dicom_results off"
        ) from error
    found = urgency(case, model.settings)
    first = None if found is None else found[1]
    written = write_dicom_results(
        open_dicom(content).dataset,
        ScoredCase(
            pixels=read_radiograph(content, model.info.preprocessing.dicom).pixels,
            geometry=case.xray.geometry,
            model_side_px=case.xray.pixels.shape[0],
            heatmap=None if first is None else first.heatmap,
            heatmap_finding="" if first is None else first.name,
            findings=case.findings,
            model=ScoringModel(
                bundle_digest=model.digest,
                preprocessing_digest=model.info.preprocessing_digest,
                round=model.info.round,
                software_version=__version__,
            ),
            content_at=image.arrived,
            quality_notes=case.xray.quality,
            out_of_distribution=case.out_of_distribution,
            out_of_distribution_score=case.ood_score,
        ),
    )
    return {
        f"{written.structured_report_uid}.dcm": written.structured_report,
        f"{written.secondary_capture_uid}.dcm": written.secondary_capture,
    }
