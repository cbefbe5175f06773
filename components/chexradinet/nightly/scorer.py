"""The model of a plan with its network, ready for forward passes."""

from dataclasses import dataclass

import torch

from chexradinet.config.nightly import ScoreConfig
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import choose_device, folded
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.ledger import Plan
from chexradinet.nightly.model import NightModel, fetched, read_model


@dataclass(frozen=True, kw_only=True)
class Scorer(NightModel):
    """A model and all that turns its predictions into cases."""

    network: ChexRadiNet
    """Of the bundle, folded once for all batches, on the device that computes."""


def open_scorer(addresses: Addresses, plan: Plan, config: ScoreConfig) -> Scorer:
    """Return the model of a plan, verified, with its network; see `open_model`."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with fetched(addresses, plan) as path:
        model = read_model(path, plan)
        device = str(choose_device(config.device))
        network = folded(load_bundle(path, verify=False, device=device).network)
    return Scorer(
        info=model.info,
        digest=model.digest,
        reference=model.reference,
        settings=model.settings,
        network=network,
    )
