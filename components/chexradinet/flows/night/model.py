"""The model of a plan, verified and open, with all that turns its predictions into results."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from chexradinet.errors import StoreNotFoundError
from chexradinet.flows.night.ledger import Plan
from chexradinet.flows.night.settings import Addresses, ResultSettings, ScoreConfig, settings_of
from chexradinet.flows.plan import check_model
from chexradinet.flows.publish import fetch_bundle
from chexradinet.model.bundle import LoadedBundle, load_bundle, require_match
from chexradinet.model.inference import choose_device, folded
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.results.reference import Reference

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model and all that turns its predictions into cases."""

    bundle: LoadedBundle
    network: ChexRadiNet
    """Of the bundle, folded once for all batches, on the device that computes."""
    reference: Reference | None
    """None where the bundle has none: then nothing is said of drift and distribution."""
    settings: ResultSettings

    @property
    def findings(self) -> tuple[str, ...]:
        """Of the model, in its order."""
        return self.bundle.info.findings


def reference_of(bundle: LoadedBundle) -> Reference | None:
    """Return the reference distributions of a bundle, None where it has none."""
    document = bundle.info.reference
    if document is None:
        return None
    return Reference(document=dict(document), arrays=dict(bundle.reference_arrays))


def open_scorer(addresses: Addresses, plan: Plan, config: ScoreConfig) -> Scorer:
    """Return the model of a plan, verified.

    Raises:
        ArtifactError: the bundle was changed, or is not calibrated.
        MismatchError: it is for other findings or another preprocessing than the plan.
        StoreNotFoundError: it is not published any more.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
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
        bundle = load_bundle(path, verify=False, device=str(choose_device(config.device)))
    require_match(
        bundle.info, findings=plan.findings, preprocessing_digest=plan.preprocessing_digest
    )
    check_model(bundle.info)
    if not bundle.info.reference:
        _log.info("the model has no reference: nothing is said of drift and distribution")
    return Scorer(
        bundle=bundle,
        network=folded(bundle.network),
        reference=reference_of(bundle),
        settings=settings_of(plan.settings),
    )
