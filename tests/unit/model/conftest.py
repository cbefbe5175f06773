"""Fixtures of the model's tests: small networks and the info that describes them."""

from collections.abc import Iterator

import pytest
import torch

from chexradinet.config import Backbone, NetworkConfig, PreprocessingConfig
from chexradinet.model import BundleInfo
from chexradinet.model.resnet import ChexRadiNet, build_network

FINDINGS = ("Mass", "Effusion", "Nodule")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one torch thread: results are the same from run to run, and cores stay free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network() -> ChexRadiNet:
    """Return a small classifier of three findings with map stride 8, in evaluation mode."""
    config = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
    made: ChexRadiNet = build_network(config, len(FINDINGS), seed=1).eval()
    return made


@pytest.fixture
def info(network: ChexRadiNet) -> BundleInfo:
    """Return the info of `network`."""
    preprocessing = PreprocessingConfig(image_side=64)
    return BundleInfo(
        network=network.config,
        findings=FINDINGS,
        preprocessing=preprocessing,
        preprocessing_digest=preprocessing.digest(),
        round=1,
        guidance="sharpen",
        training_data_digest="data-7",
        metrics={"protocol": "patient-wise split, validation", "mean_auroc": 0.875},
        settings={"train": {"epochs": 2}},
    )
