"""The exported graph gives what the network gives, or says what is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chexradinet.errors import ConfigError
from chexradinet.model import BundleInfo
from chexradinet.model.bundle import ONNX_OUTPUTS, export_onnx, load_bundle, save_bundle
from chexradinet.model.resnet import ChexRadiNet


@pytest.fixture
def bundle(tmp_path: Path, info: BundleInfo, network: ChexRadiNet) -> Path:
    with torch.no_grad():
        network.train()(torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    save_bundle(tmp_path / "bundle", info, network, None)
    return tmp_path / "bundle"


def test_graph_gives_what_the_network_gives_for_any_number_of_images(
    bundle: Path, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    export_onnx(bundle, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == list(ONNX_OUTPUTS)
    for number in (1, 3):
        images = torch.randn(number, 1, 64, 64)
        with torch.inference_mode():
            expected = load_bundle(bundle).network(images)
        found = session.run(None, {"images": images.numpy()})
        for given, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(given, wanted.numpy(), atol=1e-4)


def test_without_the_package_the_error_names_it_and_leaves_no_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="install the package onnx"):
        export_onnx(bundle, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx*"))
