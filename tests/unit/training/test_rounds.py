"""Train, look, measure, retrain: each stage on its own, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chexradinet.config import (
    Backbone,
    GuidanceConfig,
    GuidanceRecipe,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)
from chexradinet.dataset import open_dataset
from chexradinet.errors import ArtifactError, ConfigError, MismatchError
from chexradinet.ingest.ingest import ingest
from chexradinet.model import read_bundle_info
from chexradinet.model.bundle import load_bundle
from chexradinet.phantom import write_phantom
from chexradinet.records import Split
from chexradinet.regions import (
    read_feature_shards,
    read_features,
    read_regions,
    write_features,
)
from chexradinet.training.rounds import Shard, heatmap, radiomics, skip
from chexradinet.training.train import RoundOutcome, headline, retrain, train

NETWORK = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
TRAINING = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-3, seed=5, num_threads=1)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_dataset: Path) -> Path:
    target = tmp_path_factory.mktemp("regions") / "all"
    heatmap(tiny_model, tiny_dataset, target, RegionConfig())
    return target


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, regions: Path, tiny_dataset: Path) -> Path:
    target = tmp_path_factory.mktemp("features") / "all"
    radiomics(tiny_dataset, regions, target, RadiomicsConfig(), num_workers=1)
    return target


def _retrain(
    model: Path,
    dataset: Path,
    features: Path,
    target: Path,
    **changes: Any,  # noqa: ANN401
) -> RoundOutcome:
    settings: dict[str, Any] = {
        "round_number": 1,
        "guidance": GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE),
        "config": TRAINING,
    }
    return retrain(model, dataset, [features], target, **{**settings, **changes})


def test_training_twice_gives_the_same_model(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    again = TrainConfig(epochs=1, batch_size=16, learning_rate=2e-3, seed=5, num_threads=1)
    train(tiny_dataset, tmp_path / "again", NETWORK, again)
    assert read_bundle_info(tmp_path / "again")[1] == read_bundle_info(tiny_model)[1]


def test_a_model_says_what_it_was_trained_on_and_how_it_validates(
    tiny_model: Path, tiny_dataset: Path
) -> None:
    info, _ = read_bundle_info(tiny_model)
    data = open_dataset(tiny_dataset)
    assert info.training_data_digest == data.digest
    assert info.findings == data.info.findings
    assert info.metrics["validation"]["num_images"] == len(data.rows(Split.VALIDATION))
    assert set(headline(info)) >= {"round", "validation_mean_auroc"}


def test_initial_weights_of_another_depth_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, wrong)
    with pytest.raises((ArtifactError, ConfigError, MismatchError)):
        train(
            tiny_dataset,
            tmp_path / "model",
            NetworkConfig(backbone=Backbone.RESNET18),
            TRAINING,
            str(wrong),
        )
    assert not (tmp_path / "model").exists()


def test_regions_are_of_training_images_and_of_their_labelled_findings(
    regions: Path, tiny_dataset: Path
) -> None:
    data = open_dataset(tiny_dataset)
    table = read_regions(regions).table
    rows = data.row_of(table["image_id"])
    assert set(rows) == set(data.rows(Split.TRAIN))
    for row, finding in zip(rows, table["finding"], strict=True):
        labels = data.labels[row]
        named = labels[data.info.findings.index(finding)]
        assert named == 1 or not (labels == 1).any()


def test_shards_joined_in_any_order_equal_the_whole(
    regions: Path, features: Path, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    for index in range(3):
        shard = Shard(index, 3)
        heatmap(tiny_model, tiny_dataset, tmp_path / f"r{index}", RegionConfig(), shard)
        radiomics(
            tiny_dataset, tmp_path / f"r{index}", tmp_path / f"f{index}", RadiomicsConfig(), 1
        )
    whole = read_regions(regions)
    parts = [read_regions(tmp_path / f"r{index}") for index in range(3)]
    joined = pd.concat([part.table for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(joined, whole.table, rtol=1e-4)
    np.testing.assert_allclose(np.concatenate([part.maps for part in parts]), whole.maps, atol=1e-2)
    measured = read_feature_shards([tmp_path / f"f{index}" for index in (2, 0, 1)])
    pd.testing.assert_frame_equal(measured.table, read_features(features).table)
    assert measured.provenance == read_features(features).provenance


def test_a_missing_shard_is_refused(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    heatmap(tiny_model, tiny_dataset, tmp_path / "r0", RegionConfig(), Shard(0, 2))
    radiomics(tiny_dataset, tmp_path / "r0", tmp_path / "f0", RadiomicsConfig(), num_workers=1)
    with pytest.raises(ArtifactError, match="each shard of one run is needed exactly once"):
        _retrain(tiny_model, tiny_dataset, tmp_path / "f0", tmp_path / "r1")
    with pytest.raises(ArtifactError, match="no shard was given"):
        read_feature_shards([])


def test_more_shards_than_images_leave_some_empty() -> None:
    rows = np.arange(3, dtype=np.int64)
    parts = [Shard(index, 5).part_of(rows) for index in range(5)]
    assert np.concatenate(parts).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="shard index is 5"):
        Shard(5, 5)


def test_a_model_of_another_preprocessing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "source", 12, 64, seed=1)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=48), ingest_workers=1)
    ingest(str(tmp_path / "source"), tmp_path / "other", config)
    with pytest.raises(MismatchError, match="preprocessing"):
        heatmap(tiny_model, tmp_path / "other", tmp_path / "regions", RegionConfig())


def test_a_guided_round_goes_on_from_the_round_before(
    tiny_model: Path, tiny_dataset: Path, features: Path, tmp_path: Path
) -> None:
    outcome = _retrain(tiny_model, tiny_dataset, features, tmp_path / "r1")
    info, _ = read_bundle_info(tmp_path / "r1")
    assert (info.round, info.guidance) == (1, "sharpen+contrastive")
    assert [entry["round"] for entry in info.metrics["history"]] == [0, 1]
    assert info.history is not None
    assert set(info.history[0]["parts"]) == {"classification", "entropy", "contrastive"}
    selections = [entry["mean_auroc"] for entry in info.metrics["history"]]
    assert outcome.improved == (selections[1] > selections[0])


def test_arms_differ_only_in_what_guides_them(
    tiny_model: Path, tiny_dataset: Path, features: Path, tmp_path: Path
) -> None:
    permuted = GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE, permute_radiomics=True)
    sharpened = GuidanceConfig(guidance=GuidanceRecipe.SHARPEN)
    _retrain(tiny_model, tiny_dataset, features, tmp_path / "guided")
    _retrain(tiny_model, tiny_dataset, features, tmp_path / "permuted", guidance=permuted)
    _retrain(tiny_model, tiny_dataset, features, tmp_path / "sharpened", guidance=sharpened)
    other = load_bundle(tmp_path / "permuted").info
    assert other.guidance == "sharpen+contrastive@permuted"
    weights = [
        torch.cat([value.flatten() for value in load_bundle(tmp_path / arm).network.parameters()])
        for arm in ("guided", "permuted")
    ]
    assert not torch.equal(weights[0], weights[1])


def test_a_margin_that_nothing_reaches_means_no_improvement(
    tiny_model: Path, tiny_dataset: Path, features: Path, tmp_path: Path
) -> None:
    outcome = _retrain(tiny_model, tiny_dataset, features, tmp_path / "r1", min_improvement=10.0)
    assert not outcome.improved


def test_a_round_without_a_usable_region_trains_on_without_contrast(
    tiny_model: Path,
    tiny_dataset: Path,
    features: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = read_features(features)
    table = found.table.copy()
    table["status"] = "no_region"
    table.iloc[:, 2:] = np.nan
    write_features(tmp_path / "none", [table], found.provenance)
    _retrain(tiny_model, tiny_dataset, tmp_path / "none", tmp_path / "r1")
    info, _ = read_bundle_info(tmp_path / "r1")
    assert info.guidance == "sharpen"
    assert info.metrics["num_guiding_regions"] == 0
    assert "runs unguided" in caplog.text


def test_features_of_another_data_set_are_refused(
    tiny_model: Path, tiny_dataset: Path, features: Path, tmp_path: Path
) -> None:
    found = read_features(features)
    provenance = {**found.provenance, "dataset_digest": "0" * 64}
    write_features(tmp_path / "other", [found.table], provenance)
    with pytest.raises(MismatchError, match="data set 000000000000"):
        _retrain(tiny_model, tiny_dataset, tmp_path / "other", tmp_path / "r1")


def test_what_a_closed_round_leaves_is_not_taken_for_regions(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    skip(tmp_path / "skipped")
    with pytest.raises(ArtifactError, match="missing"):
        read_regions(tmp_path / "skipped")
    with pytest.raises(ArtifactError, match="missing"):
        _retrain(tiny_model, tiny_dataset, tmp_path / "skipped", tmp_path / "r1")


def test_seeds_of_rounds_differ_and_do_not_depend_on_the_arm(
    tiny_model: Path, tiny_dataset: Path, features: Path, tmp_path: Path
) -> None:
    control = GuidanceConfig(guidance=GuidanceRecipe.NONE)
    _retrain(tiny_model, tiny_dataset, features, tmp_path / "guided")
    _retrain(tiny_model, tiny_dataset, features, tmp_path / "control", guidance=control)
    seeds = [
        read_bundle_info(tmp_path / arm)[0].settings["train"]["seed"]
        for arm in ("guided", "control")
    ]
    assert seeds[0] == seeds[1] != TRAINING.seed


@pytest.mark.parametrize(
    ("recipe", "terms"),
    [
        (GuidanceRecipe.NONE, {"classification"}),
        (GuidanceRecipe.SHARPEN, {"classification", "entropy"}),
        (GuidanceRecipe.CONTRASTIVE, {"classification", "contrastive"}),
        (GuidanceRecipe.SHARPEN_CONTRASTIVE, {"classification", "entropy", "contrastive"}),
    ],
)
def test_each_term_of_a_recipe_decreases_on_the_phantom(
    tiny_model: Path,
    tiny_dataset: Path,
    features: Path,
    tmp_path: Path,
    recipe: GuidanceRecipe,
    terms: set[str],
) -> None:
    guidance = GuidanceConfig(guidance=recipe, sharpen_weight=0.3, contrastive_weight=0.3)
    config = TRAINING.changed(epochs=6, learning_rate=3e-3)
    outcome = _retrain(
        tiny_model, tiny_dataset, features, tmp_path / "r1", guidance=guidance, config=config
    )
    epochs = [entry["parts"] for entry in outcome.info.history or []]
    assert set(epochs[0]) - {"epoch", "loss"} == terms
    for term in terms:
        assert epochs[-1][term] < epochs[0][term], term
