"""The model of a plan without its network: what planned, collected and reported results rest on.

Nothing here imports torch: a stage that makes no forward pass starts seconds earlier without it.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chexradinet.config.nightly import ResultSettings, settings_of
from chexradinet.errors import ArtifactError, MismatchError, StoreNotFoundError
from chexradinet.evaluation.reference import Reference
from chexradinet.model import (
    BundleInfo,
    read_bundle_info,
    read_reference_arrays,
    require_match,
)
from chexradinet.nightly.ledger import Plan
from chexradinet.nightly.records import Addresses
from chexradinet.registry.champion import fetch_bundle

_log = logging.getLogger(__name__)


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
    """Give the directory of a plan's bundle, verified, for as long as it is needed.

    Raises:
        ArtifactError: the bundle was changed.
        StoreNotFoundError: it is not published any more.
    """
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
    """Return a bundle as a plan's model.

    Raises:
        ArtifactError: it is not calibrated.
        MismatchError: it is for other findings or another preprocessing than the plan.
    """
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
