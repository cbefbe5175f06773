"""The model card: how probabilities and flags are made."""

from dataclasses import replace

import yaml

from chexradinet.config import NetworkConfig, PreprocessingConfig
from chexradinet.evaluation.calibration import Calibration, FindingCalibration
from chexradinet.model import BundleInfo
from chexradinet.model.bundle import model_card

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
