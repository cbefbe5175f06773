"""A bundle: what is loaded, refused and copied, and what its card says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from chexradinet.artifacts import sha256_of
from chexradinet.config import NetworkConfig, PreprocessingConfig, TrainConfig, digest_of
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.evaluation.calibration import Calibration, FindingCalibration
from chexradinet.model import (
    BundleInfo,
    copy_bundle,
    read_bundle_info,
    read_reference_arrays,
    require_match,
)
from chexradinet.model.bundle import (
    load_bundle,
    model_card,
    provenance,
    read_provenance,
    replace_info,
    save_bundle,
)
from chexradinet.model.losses import build_heads
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.version import __version__
from tests.unit.model.conftest import FINDINGS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bundle(tmp_path: Path, info: BundleInfo, network: ChexRadiNet) -> Path:
    heads = build_heads(network.num_channels, seed=2)
    save_bundle(tmp_path / "bundle", info, network, heads)
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
    save_bundle(tmp_path / "plain", info, network, None)
    assert load_bundle(tmp_path / "plain").heads is None


def test_equal_models_have_equal_bytes_and_digests(
    bundle: Path, tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    heads = build_heads(network.num_channels, seed=2)
    digest = save_bundle(tmp_path / "again", info, network, heads)
    assert digest == load_bundle(bundle).digest
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_provenance_travels_with_a_bundle_and_is_not_part_of_its_digest(
    bundle: Path, tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    heads = build_heads(network.num_channels, seed=2)
    record = provenance("train", ["d" * 64], TrainConfig(seed=5, num_threads=3))
    digest = save_bundle(tmp_path / "b", info, network, heads, [record])
    assert digest == load_bundle(bundle).digest
    copy_bundle(tmp_path / "b", tmp_path / "copy")
    replace_info(tmp_path / "copy", tmp_path / "calibrated", {}, thresholds={"Mass": 0.5})
    assert read_provenance(tmp_path / "calibrated") == [record]
    assert read_provenance(bundle) == []


def test_provenance_names_code_lock_data_seed_and_machine() -> None:
    record = provenance("train", ["d" * 64], TrainConfig(seed=5, num_threads=3))
    assert record["requirements_lock_sha256"] == sha256_of(ROOT / "requirements.lock")
    assert record["code"]["version"] == __version__
    assert (record["seed"], record["threads"], record["processes"]) == (5, 3, 1)
    assert record["data_digests"] == ["d" * 64]
    assert record["software"]["torch"] == torch.__version__
    assert record["hardware"]["processor"]
    digests = (record["code"]["sha256"], record["packages_sha256"])
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in digests)


def test_one_weight_changes_the_digest(
    bundle: Path, tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    with torch.no_grad():
        network.fc.bias[0] += 1
    heads = build_heads(network.num_channels, seed=2)
    digest = save_bundle(tmp_path / "other", info, network, heads)
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


def _forged(bundle: Path, **changes: object) -> Path:
    """Change `bundle.json` and give it the digest that belongs to its new content."""
    document = {**json.loads((bundle / "bundle.json").read_text()), **changes}
    document = {key: value for key, value in document.items() if value is not ...}
    del document["digest"]
    document["digest"] = digest_of(document)
    (bundle / "bundle.json").write_text(json.dumps(document, indent=1) + "\n")
    return bundle


def _calibrated(**entry: object) -> dict[str, object]:
    plain = {"slope": 1.0, "intercept": 0.0, "threshold": 0.5}
    return {"findings": {**dict.fromkeys(FINDINGS, plain), "Nodule": {**plain, **entry}}}


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "threshold above 1": ({"thresholds": {"Mass": 1.5}}, r"threshold of Mass.*is 1\.5"),
    "negative threshold": ({"thresholds": {"Mass": -0.1}}, "threshold of Mass"),
    "threshold in words": ({"thresholds": {"Mass": "0.5"}}, "threshold of Mass"),
    "threshold of nothing": ({"thresholds": {"Hernia": 0.5}}, "'Hernia', which is not a finding"),
    "thresholds as a list": ({"thresholds": [0.5]}, "thresholds must be an object"),
    "slope of 0": ({"calibration": _calibrated(slope=0.0)}, "slope of Nodule is 0.0"),
    "negative slope": ({"calibration": _calibrated(slope=-1.0)}, "slope of Nodule"),
    "no slope": ({"calibration": _calibrated(slope=None)}, "slope of Nodule is None"),
    "no intercept": ({"calibration": _calibrated(intercept=None)}, "intercept of Nodule"),
    "bad inner threshold": ({"calibration": _calibrated(threshold=2)}, "threshold of Nodule"),
    "empty entry": ({"calibration": {"findings": {"Mass": {}}}}, "slope of Mass is None"),
    "entry in words": ({"calibration": {"findings": {"Mass": "platt"}}}, "must be an object"),
    "calibration without findings": ({"calibration": {}}, "an entry per finding"),
    "calibration in words": ({"calibration": "platt"}, "calibration must be an object"),
    "no finding": ({"findings": []}, "findings must be"),
    "finding twice": ({"findings": ["Mass", "Mass", "Edema"]}, "findings must be"),
    "finding that is a path": ({"findings": ["../../etc", "A", "B"]}, "findings must be"),
    "finding of two lines": ({"findings": ["A\nB", "C", "D"]}, "findings must be"),
    "finding that is a number": ({"findings": [1, 2, 3]}, "findings must be"),
    "findings missing": ({"findings": ...}, "does not describe a model.*findings"),
    "network of nothing": ({"network": []}, "does not describe a model"),
    "unknown backbone": ({"network": {"backbone": "vgg"}}, "does not describe a model"),
    "round in words": ({"round": "first"}, "round is 'first'"),
    "a key of another release": ({"novelty": 1}, "does not describe a model.*novelty"),
    "a file elsewhere": ({"files": {"../../secret": "0" * 64}}, "no other file"),
    "no files": ({"files": ...}, "no other file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_values_that_no_model_has_are_refused_by_name(bundle: Path, name: str) -> None:
    changes, message = FAULTS[name]
    _forged(bundle, **changes)
    for read in (read_bundle_info, load_bundle):
        with pytest.raises(ArtifactError, match=message):
            read(bundle)


def test_infinite_slope_is_not_even_json(bundle: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace('"round": 1', '"round": Infinity'))
    with pytest.raises(ArtifactError, match=r"bundle\.json"):
        read_bundle_info(bundle)


def test_the_record_of_older_releases_that_nothing_read_is_passed_over(
    bundle: Path, info: BundleInfo
) -> None:
    assert read_bundle_info(_forged(bundle, radiomics_normalisation={"median": []}))[0] == info


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet, value: float
) -> None:
    with torch.no_grad():
        network.layer1[0].conv1.weight[0, 0, 0, 0] = value
    save_bundle(tmp_path / "broken", info, network, None)
    with pytest.raises(ArtifactError, match=r"layer1\.0\.conv1\.weight holds NaN or infinity"):
        load_bundle(tmp_path / "broken")


def test_weights_of_another_type_are_refused(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    save_bundle(tmp_path / "half", info, network.half(), None)
    with pytest.raises(ArtifactError, match=r"is torch\.float16, not torch\.float32"):
        load_bundle(tmp_path / "half")


def test_model_that_overflows_is_refused_when_opened(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    with torch.no_grad():
        network.layer4[1].bn2.weight.fill_(3e38)
    save_bundle(tmp_path / "overflows", info, network, None)
    with pytest.raises(ArtifactError, match="gives NaN or infinity for a plain test image"):
        load_bundle(tmp_path / "overflows")


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
        save_bundle(tmp_path / "bad", undefined, network, None)
    assert list(tmp_path.iterdir()) == []


def test_info_of_another_network_is_not_saved(
    tmp_path: Path, info: BundleInfo, network: ChexRadiNet
) -> None:
    with pytest.raises(MismatchError, match="2 findings"):
        save_bundle(tmp_path / "b", replace(info, findings=("A", "B")), network, None)


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
    calibration = {"findings": {name: {"slope": 1.5, "intercept": -0.25} for name in FINDINGS}}
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
    require_match(info, info)
    with pytest.raises(MismatchError, match=r"Mass, Effusion, Nodule.*Effusion, Mass, Nodule"):
        require_match(info, replace(info, findings=("Effusion", "Mass", "Nodule")))
    with pytest.raises(MismatchError, match=f"{info.preprocessing_digest}.*feed"):
        require_match(info, replace(info, preprocessing_digest="feed"))


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


PREPROCESSING = PreprocessingConfig(image_side=64)
INFO = BundleInfo(
    network=NetworkConfig(),
    findings=("Mass", "Hernia"),
    preprocessing=PREPROCESSING,
    preprocessing_digest=PREPROCESSING.digest(),
)
CALIBRATION = Calibration(
    findings={
        "Mass": FindingCalibration(status="platt", positives=40, negatives=60, threshold=0.2),
        "Hernia": FindingCalibration(
            status="not_calibrated", positives=3, negatives=97,
            reason="fewer than 10 cases of a class",
        ),
    },
    split="validation",
    target_sensitivity=0.9,
    num_images=100,
).as_dict()  # fmt: skip


def test_the_card_of_an_uncalibrated_model_says_that_nothing_is_flagged() -> None:
    card = model_card(INFO)
    assert "Not calibrated: scores are not probabilities, and nothing is flagged." in card


def test_the_card_states_method_split_and_rule_of_probabilities_and_thresholds() -> None:
    card = model_card(replace(INFO, calibration=CALIBRATION))
    for said in (
        "Platt scaling a finding, smoothed targets, slope above 0",
        "fitted on 100 images of the validation split",
        "highest threshold that reaches the target sensitivity; flag at or above it",
        "the target is 0.900, on the same images",
        "Hernia is not calibrated (fewer than 10 cases of a class): a plain sigmoid, never flagged",
    ):
        assert said in card
    assert "Mass is not calibrated" not in card


def test_the_card_states_when_an_x_ray_counts_as_unlike_and_how_often_by_chance() -> None:
    reference = {"ood": {"rule": "Flagged above 5.00. Expected false-flag rate 9.1%."}}
    card = model_card(replace(INFO, calibration=CALIBRATION, reference=reference))
    assert "- Unlike the training data: Flagged above 5.00. Expected false-flag rate 9.1%." in card
    old = model_card(replace(INFO, calibration=CALIBRATION, reference={"ood": {"threshold": 5.0}}))
    assert "Unlike the training data" not in old


def test_the_front_matter_is_what_the_hub_reads_and_claims_a_result_only_if_there_is_one() -> None:
    _, matter, text = model_card(INFO).split("---\n", 2)
    known = yaml.safe_load(matter)
    assert known["pipeline_tag"] == "image-classification"
    assert "resnet50" in known["tags"]
    assert "model-index" not in known
    assert text.lstrip().startswith("# Model card: ChexRadiNet")
    test = {
        "protocol": "phantoms, test split: all",
        "mean_auroc": 0.875,
        "mean_auroc_num_findings": 2,
        "ci95_mean_auroc": [0.8, 0.9],
        "auroc": {},
        "ece": 0.1,
    }
    matter = model_card(replace(INFO, metrics={"test": test})).split("---\n", 2)[1]
    (entry,) = yaml.safe_load(matter)["model-index"]
    assert entry["results"][0]["metrics"][0]["value"] == 0.875
    assert entry["results"][0]["dataset"]["name"] == "phantoms, test split: all"
