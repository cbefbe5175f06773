"""The model bundle: what is written comes back, and nothing changed or incomplete is accepted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.model.bundle import (
    BundleInfo,
    copy_bundle,
    load_bundle,
    model_card,
    read_bundle_info,
    read_reference_arrays,
    replace_info,
    require_match,
    save_bundle,
)
from chexradinet.model.losses import build_heads
from chexradinet.model.resnet import ChexRadiNet


@pytest.fixture
def bundle(tmp_path: Path, info: BundleInfo, network: ChexRadiNet) -> Path:
    heads = build_heads(network.num_channels, seed=2)
    save_bundle(tmp_path / "bundle", info, network, heads, model_card(info))
    return tmp_path / "bundle"


def test_loaded_bundle_predicts_what_the_saved_network_did(
    bundle: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = load_bundle(bundle)
    with torch.inference_mode():
        expected, given = network(images), loaded.network(images)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.maps, expected.maps)
    assert loaded.info == info
    assert not loaded.network.training


def test_heads_travel_with_the_network(bundle: Path, network: ChexRadiNet) -> None:
    heads = load_bundle(bundle).heads
    assert heads is not None
    features = torch.ones(1, 102)
    expected = build_heads(network.num_channels, seed=2).radiomics(features)
    assert torch.equal(heads.radiomics(features), expected)


def test_bundle_without_heads_loads_without_heads(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    save_bundle(tmp_path / "plain", info, network, None, model_card(info))
    assert load_bundle(tmp_path / "plain").heads is None


def test_equal_models_have_equal_bytes_and_digests(
    bundle: Path, tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    heads = build_heads(network.num_channels, seed=2)
    digest = save_bundle(tmp_path / "again", info, network, heads, model_card(info))
    assert digest == load_bundle(bundle).digest
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_one_weight_changes_the_digest(
    bundle: Path, tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    with torch.no_grad():
        network.fc.bias[0] += 1
    heads = build_heads(network.num_channels, seed=2)
    digest = save_bundle(tmp_path / "other", info, network, heads, model_card(info))
    assert digest != load_bundle(bundle).digest


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json", "model-card.md"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_a_changed_byte_anywhere_is_refused_by_name(bundle: Path, name: str, place: float) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        load_bundle(bundle)


def test_an_added_space_that_json_does_not_see_is_refused(bundle: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text + " ")
    with pytest.raises(ArtifactError, match=r"bundle\.json was changed"):
        read_bundle_info(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json", "model-card.md"])
def test_a_missing_file_is_refused_by_name(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_bundle(bundle)


def test_another_schema_version_is_refused_naming_both(bundle: Path) -> None:
    document = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**document, "schema": 2}))
    with pytest.raises(ArtifactError, match=r"schema 2.*schema 1"):
        read_bundle_info(bundle)


def test_truncated_weights_are_refused_also_without_verification(bundle: Path) -> None:
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        load_bundle(bundle, verify=False)


def test_number_that_is_not_finite_leaves_no_bundle(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    undefined = replace(info, metrics={"auroc": float("nan")})
    with pytest.raises(ArtifactError, match="None for what is not defined"):
        save_bundle(tmp_path / "bad", undefined, network, None, "card")
    assert list(tmp_path.iterdir()) == []


def test_info_of_another_network_is_not_saved(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    with pytest.raises(MismatchError, match="2 findings"):
        save_bundle(tmp_path / "b", replace(info, findings=("A", "B")), network, None, "card")


def test_info_is_read_without_weights(bundle: Path, info: BundleInfo) -> None:
    digest = load_bundle(bundle).digest
    (bundle / "weights.safetensors").unlink()
    assert read_bundle_info(bundle) == (info, digest)


def test_copy_keeps_the_digest(bundle: Path, tmp_path: Path) -> None:
    assert copy_bundle(bundle, tmp_path / "copy") == load_bundle(bundle).digest
    assert load_bundle(tmp_path / "copy").digest == load_bundle(bundle).digest


def test_changed_bundle_is_not_copied(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model-card.md").write_text("for diagnosis")
    with pytest.raises(ArtifactError, match=r"model-card\.md"):
        copy_bundle(bundle, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_replaced_info_keeps_the_weights_and_renders_the_card_again(
    bundle: Path, tmp_path: Path
) -> None:
    calibration = {"Mass": {"slope": 1.5, "intercept": -0.25}}
    digest = replace_info(bundle, tmp_path / "calibrated", {}, calibration=calibration)
    loaded = load_bundle(tmp_path / "calibrated")
    assert loaded.digest == digest != load_bundle(bundle).digest
    assert loaded.info.calibration == calibration
    assert torch.equal(loaded.network.fc.weight, load_bundle(bundle).network.fc.weight)
    assert "| Calibrated | yes |" in (tmp_path / "calibrated" / "model-card.md").read_text()


def test_replaced_info_may_take_the_place_of_its_source(bundle: Path) -> None:
    digest = replace_info(bundle, bundle, {}, thresholds={"Mass": 0.5})
    assert load_bundle(bundle).digest == digest


def test_other_findings_or_pixels_do_not_match(info: BundleInfo) -> None:
    require_match(info, findings=info.findings, preprocessing_digest=info.preprocessing_digest)
    with pytest.raises(MismatchError, match=r"Mass, Effusion, Nodule.*Effusion, Mass, Nodule"):
        require_match(info, findings=("Effusion", "Mass", "Nodule"))
    with pytest.raises(MismatchError, match=f"{info.preprocessing_digest}.*feed"):
        require_match(info, preprocessing_digest="feed")


def test_card_says_what_it_is_not_for_and_what_was_measured(info: BundleInfo) -> None:
    card = model_card(info)
    for said in ("not for diagnosis", "not emergency triage", "data-7", "Validation split"):
        assert said in card
    assert "Not evaluated" in model_card(replace(info, metrics={}))


def test_reference_arrays_travel_with_the_weights_and_are_replaced_whole(
    bundle: Path, tmp_path: Path
) -> None:
    first = {"mean": np.arange(3, dtype=np.float32), "old": np.ones((2, 2), dtype=np.float32)}
    replace_info(bundle, tmp_path / "one", first)
    replace_info(tmp_path / "one", tmp_path / "two", {"mean": first["mean"] + 1})
    arrays = read_reference_arrays(tmp_path / "two")
    assert set(arrays) == {"mean"}
    np.testing.assert_array_equal(arrays["mean"], [1, 2, 3])
    assert read_reference_arrays(bundle) == {}


def test_the_card_shows_results_beside_their_protocol_and_controls(info: BundleInfo) -> None:
    test = {
        "protocol": "phantoms, test split",
        "mean_auroc": 0.9,
        "mean_auroc_num_findings": 2,
        "ci95_mean_auroc": [0.85, 0.95],
        "auroc": {"Mass": 0.91, "Effusion": 0.89, "Nodule": None},
        "ece": 0.05,
        "localization": {"iou_0.3": 0.6, "swapped_iou_0.3": 0.3, "random_iou_0.3": 0.01},
    }
    card = model_card(replace(info, metrics={"validation": {"mean_auroc": 0.8}, "test": test}))
    assert "mean AUROC 0.900 (95% 0.850 to 0.950) over 2 findings" in card
    assert "Protocol: phantoms, test split." in card
    assert "| Nodule | not defined |" in card
    assert "| iou_0.3 | 0.600 | 0.300 | 0.010 |" in card


def test_the_card_of_a_model_without_a_test_says_so(info: BundleInfo) -> None:
    assert "Not evaluated on a test split." in model_card(info)
    assert "Not evaluated: nothing is known" in model_card(replace(info, metrics={}))


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all"])
def test_reference_arrays_of_a_damaged_bundle_are_refused(
    bundle: Path, content: bytes | None
) -> None:
    weights = bundle / "weights.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="copy the bundle again"):
        read_reference_arrays(bundle)
