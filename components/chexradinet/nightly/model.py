"""The model of a plan without its network, and what its predictions say of each X-ray.

Nothing here imports torch: a stage that makes no forward pass starts seconds earlier without it.
Radiomics of what is flagged are measured in this process, or in processes of their own while the
next batch passes the network: beside an accelerator they would take longer than it does.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chexradinet.config import RadiomicsConfig
from chexradinet.config.nightly import ResultSettings, settings_of
from chexradinet.errors import ArtifactError, MismatchError, StoreNotFoundError
from chexradinet.evaluation.calibration import NOT_CALIBRATED
from chexradinet.evaluation.reference import Reference, ood_flags, ood_scores
from chexradinet.model import BundleInfo, read_bundle_info, read_reference_arrays, require_match
from chexradinet.nightly import Addresses, NightCase, NightFinding, XRay
from chexradinet.nightly.ledger import Plan
from chexradinet.parallel import Job, Pool, available_processors
from chexradinet.records import Box, FeatureStatus, Geometry, Region
from chexradinet.regions import FeatureRow, rejected_row
from chexradinet.regions.extract import extract_region
from chexradinet.regions.radiomics import Crop, crop_of, features_if_installed
from chexradinet.registry import fetch_bundle

if TYPE_CHECKING:
    from chexradinet.model.inference import Predictions

_log = logging.getLogger(__name__)
Measured = Callable[[], FeatureRow]
"""Gives the features of a region, and waits for them if need be."""
Measure = Callable[[Crop], Measured]
"""Starts to measure the pixels of a region."""
_NO_FEATURES = {False: "not_flagged", None: "not_assessed"}
_SHARE_OF_PROCESSORS = 4
"""Beside an accelerator, one processor in so many measures; most of the others decode."""


@dataclass(frozen=True, kw_only=True)
class NightModel:
    """What a bundle and a plan say of how predictions become results."""

    info: BundleInfo
    digest: str
    """Digest of the bundle."""
    reference: Reference | None
    """None if the bundle has none: then nothing is said of drift and distribution."""
    settings: ResultSettings

    @property
    def operating_points(self) -> Mapping[str, Mapping[str, float | None]]:
        """Finding to `sensitivity` and `specificity` of its threshold on the test split."""
        return (self.info.metrics.get("test") or {}).get("operating_points") or {}

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Finding to its calibration: `status`, `threshold` and more."""
        fitted: Mapping[str, Any] = (self.info.calibration or {})["findings"]
        return fitted

    def code_of(self, finding: str) -> tuple[str, str, str] | None:
        """Return value, scheme and meaning that the model brings for a finding, if any."""
        code = self.info.finding_details.get(finding, {}).get("code")
        return None if code is None else tuple(code)

    @property
    def findings(self) -> tuple[str, ...]:
        """The model's findings, in its order."""
        return self.info.findings


def open_model(addresses: Addresses, plan: Plan) -> NightModel:
    """Return the model of a plan, verified, without its network.

    Raises:
        ArtifactError: the bundle was changed, or is not calibrated.
        MismatchError: it is for other findings or another preprocessing than the plan.
        StoreNotFoundError: it is not published any more.
    """
    with fetched(addresses, plan) as path:
        return read_model(path, plan)


@contextmanager
def fetched(addresses: Addresses, plan: Plan) -> Iterator[Path]:
    """Give the directory of a plan's bundle, verified, during a block; see `open_model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        try:
            fetch_bundle(addresses.models_uri, plan.bundle_digest, path)
        except StoreNotFoundError as error:
            raise StoreNotFoundError(
                f"plan {plan.number} is to be finished with model {plan.bundle_digest[:12]}, which "
                f"is not below {addresses.models_uri} any more; bring it back from its versions or "
                "a replica, as docs/operations.md says under 'Restore from a lost bucket'"
            ) from error
        yield path


def read_model(path: Path, plan: Plan) -> NightModel:
    """Return a bundle as a plan's model; see `open_model`."""
    model = model_of(path, settings_of(plan.settings))
    require_match(model.info, plan)
    return model


def model_of(path: Path, settings: ResultSettings) -> NightModel:
    """Return a bundle as a model that scores with these settings.

    Raises:
        ArtifactError: it is not calibrated.
        MismatchError: its preprocessing is of another release.
    """
    info, digest = read_bundle_info(path)
    check_model(info)
    reference = None
    if info.reference is None:
        _log.info("the model has no reference: nothing is said of drift and distribution")
    else:
        arrays = read_reference_arrays(path)
        reference = Reference(document=dict(info.reference), arrays=arrays)
    settings = with_urgencies(settings, info)
    return NightModel(info=info, digest=digest, reference=reference, settings=settings)


def with_urgencies(settings: ResultSettings, info: BundleInfo) -> ResultSettings:
    """Return settings with the urgencies that a model brings, unless they name others."""
    details = info.finding_details.items()
    own = {name: values["urgency"] for name, values in details if "urgency" in values}
    listed = settings.worklist
    urgency = {**own, **listed.urgency}
    return settings.changed(worklist=listed.model_copy(update={"urgency": urgency}))


def check_model(info: BundleInfo) -> None:
    """Refuse a model that this release cannot score with.

    Raises:
        ArtifactError: it is not calibrated.
        MismatchError: its calibration knows other findings, or its preprocessing is of another
            release.
    """
    if info.calibration is None:
        raise ArtifactError(
            "the model is not calibrated, so its scores are not probabilities; publish what "
            "`evaluate` wrote"
        )
    known = set(info.calibration["findings"])
    if known != set(info.findings):
        raise MismatchError(
            f"the model scores {', '.join(info.findings)}, its calibration holds "
            f"{', '.join(sorted(known))}; publish a bundle that was calibrated as a whole"
        )
    if info.preprocessing.digest() != info.preprocessing_digest:
        raise MismatchError(
            f"the model was trained on pixels of preprocessing {info.preprocessing_digest[:12]}, "
            f"this release makes {info.preprocessing.digest()[:12]}; use the release that trained "
            "it, or train again"
        )


class Look(NamedTuple):
    """What one map says about one finding."""

    region: Region
    """In model pixels."""
    flagged: bool | None
    """None for a finding without an operating threshold."""
    features: Measured | None
    """Radiomics of the region; None unless flagged."""


def num_measurers(asked: int, device: str) -> int:
    """Return how many processes measure radiomics; 1 measures in the process that scores."""
    return asked or (1 if device == "cpu" else available_processors() // _SHARE_OF_PROCESSORS or 1)


@contextmanager
def measuring(config: RadiomicsConfig, num_workers: int) -> Iterator[Measure]:
    """Give what measures regions, at once or in processes that end with the block."""
    work = partial(features_if_installed, config=config)
    if num_workers == 1:
        yield lambda crop: partial(_same, work(crop))
        return
    pool = Pool(Job(work=work, failed=_failed), num_workers)
    try:
        # A copy, so that a waiting region does not keep its X-ray in memory.
        yield lambda crop: pool.submit(crop.copy()).result
    finally:
        pool.close()


def looks_of(
    model: NightModel,
    xrays: Sequence[XRay],
    found: "Predictions",
    probabilities: npt.NDArray[np.float64],
    measure: Measure,
) -> list[list[Look]]:
    """Return where the model looked, for each X-ray and finding, in the model's order."""
    thresholds = [model.fitted[finding]["threshold"] for finding in model.findings]
    return [
        [
            _look(model, xray, found.maps[row, column], measure, flagged)
            for column, flagged in enumerate(
                None if threshold is None else bool(probability >= threshold)
                for threshold, probability in zip(thresholds, probabilities[row], strict=True)
            )
        ]
        for row, xray in enumerate(xrays)
    ]


def _look(
    model: NightModel,
    xray: XRay,
    heatmap: npt.NDArray[np.float32],
    measure: Measure,
    flagged: bool | None,
) -> Look:
    region = extract_region(heatmap, xray.pixels.shape[0], model.settings.regions)
    if not flagged:
        return Look(region, flagged, None)
    if region.box is None:
        return Look(region, flagged, partial(rejected_row, FeatureStatus.NO_REGION))
    return Look(region, flagged, measure(crop_of(xray.pixels, region.box)))


def _same(row: FeatureRow) -> FeatureRow:
    return row


def _failed(_: object) -> FeatureRow:
    return rejected_row(FeatureStatus.FAILED)


def finite_rows(
    found: "Predictions", probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Tell of each X-ray whether all that the model gave is finite."""
    finite = np.ones(len(probabilities), dtype=np.bool_)
    for values in (found.logits, found.embedding, found.maps, probabilities):
        finite &= np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return finite


def cases_of(
    model: NightModel,
    xrays: Sequence[XRay],
    found: "Predictions",
    probabilities: npt.NDArray[np.float64],
    looks: Sequence[Sequence[Look]] | None = None,
) -> list[NightCase]:
    """Return the cases of a batch, in its order; without `looks` the regions are measured here."""
    if looks is None:
        with measuring(model.settings.radiomics, 1) as measure:
            looks = looks_of(model, xrays, found, probabilities, measure)
    distances: Sequence[float | None] = [None] * len(xrays)
    outside: Sequence[bool | None] = [None] * len(xrays)
    if model.reference is not None and xrays:
        measured = ood_scores(model.reference, found.embedding)
        if np.isfinite(measured).all():
            distances = [float(value) for value in measured]
            outside = [bool(flag) for flag in ood_flags(model.reference, measured)]
    return [
        NightCase(
            xray=xray,
            findings=_findings(model, xray, found, row, probabilities[row], looks[row]),
            ood_score=distances[row],
            out_of_distribution=outside[row],
        )
        for row, xray in enumerate(xrays)
    ]


def _findings(
    model: NightModel,
    xray: XRay,
    found: "Predictions",
    row: int,
    probabilities: npt.NDArray[np.float64],
    looks: Sequence[Look],
) -> tuple[NightFinding, ...]:
    fitted, points = model.fitted, model.operating_points
    scored = []
    for column, (finding, look) in enumerate(zip(model.findings, looks, strict=True)):
        features = look.features() if look.features is not None else None
        scored.append(
            NightFinding(
                name=finding,
                raw_score=float(found.logits[row, column]),
                probability=float(probabilities[column]),
                calibrated=fitted[finding]["status"] != NOT_CALIBRATED,
                threshold=fitted[finding]["threshold"],
                flagged=look.flagged,
                sensitivity=points.get(finding, {}).get("sensitivity"),
                specificity=points.get(finding, {}).get("specificity"),
                region=_original_box(look.region, xray.geometry),
                radiomics=features.by_name() if features else {},
                radiomics_status=features.status.value if features else _NO_FEATURES[look.flagged],
                code=model.code_of(finding),
                model_region=look.region,
                heatmap=found.maps[row, column],
            )
        )
    return tuple(scored)


def _original_box(region: Region, geometry: Geometry) -> Box | None:
    if region.box is None:
        return None
    box = geometry.to_original(region.box)
    return box.clipped(geometry.original_height, geometry.original_width)
