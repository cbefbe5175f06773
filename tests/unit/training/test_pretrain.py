"""Pre-training: no held-out patient, no label, the same bytes again, and a start for training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chexradinet.artifacts import read_table, sha256_of
from chexradinet.config import Backbone, Freeze, NetworkConfig, Pretext, PretrainConfig, TrainConfig
from chexradinet.dataset import DOCUMENT, MANIFEST, document_digest, open_dataset
from chexradinet.errors import ArtifactError, ConfigError, MismatchError, TrainingError
from chexradinet.model import read_bundle_info
from chexradinet.model.bundle import load_bundle, read_provenance
from chexradinet.model.encoder import load_encoder, read_encoder, shift_cells
from chexradinet.model.resnet import build_network
from chexradinet.records import Split
from chexradinet.regions.local_radiomics import LOCAL_FEATURES, local_radiomics
from chexradinet.training.pretrain import (
    allowed,
    held_out,
    identities,
    prepare_targets,
    pretrain,
)
from chexradinet.training.train import train

NETWORK = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
PRETRAIN = PretrainConfig(
    pretext=Pretext.RADIOMICS, pretext_epochs=1, batch_size=16, num_threads=1, seed=3
)
TRAINING = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-3, seed=5, num_threads=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, cache: Path) -> Path:
    target = tmp_path_factory.mktemp("encoder") / "radiomics"
    pretrain(tiny_dataset, target, NETWORK, PRETRAIN, cache=cache, num_workers=1)
    return target


def test_patients_and_pixels_of_the_held_out_splits_are_refused_with_a_count() -> None:
    manifest = pd.DataFrame({"patient_id": ["a", "b", "c", "c"], "sha256": ["1", "2", "3", "4"]})
    rows, refused = allowed(manifest, np.arange(4), {"a"}, {"1", "3"})
    assert rows.tolist() == [1, 3]
    assert refused == {"patient": 1, "content": 1}


@pytest.mark.trains
def test_a_data_set_given_as_unlabelled_brings_none_of_its_held_out_patients(
    tiny_dataset: Path, cache: Path, tmp_path: Path
) -> None:
    record = pretrain(
        tiny_dataset,
        tmp_path / "encoder",
        NETWORK,
        PRETRAIN.changed(pretext=Pretext.PIXELS),
        unlabelled=tiny_dataset,
        cache=cache,
        num_workers=1,
    )
    data = open_dataset(tiny_dataset)
    held = len(data.rows(Split.VALIDATION)) + len(data.rows(Split.TEST))
    main, other = record["sources"]
    assert main["images"] == len(data.rows(Split.TRAIN))
    assert other == {
        "dataset_digest": data.digest,
        "images": 0,
        "refused": {"patient": held, "content": 0},
    }


def test_training_images_that_equal_a_test_image_are_refused(
    tiny_dataset: Path,
) -> None:
    data = open_dataset(tiny_dataset)
    patients, contents = held_out(data)
    frame = identities(data)
    train_rows = data.rows(Split.TRAIN)
    frame.loc[train_rows[:2], "sha256"] = next(iter(contents))
    rows, refused = allowed(frame, train_rows, patients, contents)
    assert (len(rows), refused) == (len(train_rows) - 2, {"patient": 0, "content": 2})


@pytest.mark.trains
def test_targets_are_the_features_of_each_image_and_made_once(
    tiny_dataset: Path, cache: Path, encoder: Path
) -> None:
    data = open_dataset(tiny_dataset)
    (folder,) = [one for one in cache.iterdir() if one.name.startswith("radiomics")]
    written = sha256_of(folder / "targets-00000.npy"), (folder / "targets.json").stat().st_mtime_ns
    found = prepare_targets(data, Pretext.PERMUTED, 8, cache, num_workers=1)
    rows = np.array([5, 0])
    wanted = [local_radiomics(image, 8) for image in data.images(rows)]
    np.testing.assert_array_equal(found.of(rows), np.stack(wanted))
    assert written == (
        sha256_of(folder / "targets-00000.npy"),
        (folder / "targets.json").stat().st_mtime_ns,
    )


def test_changed_targets_are_not_used(tiny_dataset: Path, tmp_path: Path) -> None:
    data = open_dataset(tiny_dataset)
    prepare_targets(data, Pretext.HOG, 8, tmp_path, num_workers=1)
    (shard,) = tmp_path.glob("*/targets-00000.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed"):
        prepare_targets(data, Pretext.HOG, 8, tmp_path, num_workers=1)


def test_shifted_targets_are_those_of_the_shifted_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64)).astype(np.uint8)
    shift = np.array([[1, -1]])
    moved, _ = shift_cells(image, shift, 8)
    targets, counted = shift_cells(local_radiomics(image[0, 0], 8)[None], shift, 1)
    again = local_radiomics(moved[0, 0], 8)
    assert counted[0, 0].sum() == 7 * 7
    inner = np.s_[:, 2:-1, 1:-2]
    np.testing.assert_array_equal(targets[0][inner], again[inner])


@pytest.mark.trains
@pytest.mark.parametrize("pretext", [Pretext.RADIOMICS, Pretext.PIXELS])
def test_pretraining_twice_gives_the_same_bytes(
    pretext: Pretext, tiny_dataset: Path, cache: Path, tmp_path: Path
) -> None:
    config = PRETRAIN.changed(pretext=pretext)
    for name in ("one", "two"):
        pretrain(tiny_dataset, tmp_path / name, NETWORK, config, cache=cache, num_workers=1)
    assert read_encoder(tmp_path / "one") == read_encoder(tmp_path / "two")


@pytest.mark.trains
def test_the_controls_differ_from_radiomics_in_their_weights(
    tiny_dataset: Path, cache: Path, encoder: Path, tmp_path: Path
) -> None:
    weights = {read_encoder(encoder)["files"]["weights.safetensors"]}
    for pretext in (Pretext.NONE, Pretext.PERMUTED, Pretext.HOG):
        target, config = tmp_path / pretext.value, PRETRAIN.changed(pretext=pretext)
        record = pretrain(tiny_dataset, target, NETWORK, config, cache=cache, num_workers=1)
        weights.add(record["files"]["weights.safetensors"])
    assert len(weights) == 4


@pytest.mark.trains
def test_radiomics_are_learnt(tiny_dataset: Path, cache: Path, tmp_path: Path) -> None:
    config = PRETRAIN.changed(pretext_epochs=6)
    record = pretrain(tiny_dataset, tmp_path / "e", NETWORK, config, cache=cache, num_workers=1)
    assert record["history"][-1]["loss"] < 0.8 * record["history"][0]["loss"]
    assert record["features"] == list(LOCAL_FEATURES)


@pytest.mark.trains
def test_training_starts_from_the_encoder_and_keeps_what_is_frozen(
    encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = TRAINING.changed(freeze=Freeze.LAYER2, head_learning_rate=1e-2)
    train(tiny_dataset, tmp_path / "model", NETWORK, config, initial_weights=str(encoder))
    start = build_network(NETWORK, 1)
    data = open_dataset(tiny_dataset)
    load_encoder(start, encoder, data.info.preprocessing_digest)
    loaded = load_bundle(tmp_path / "model")
    before, after = start.state_dict(), loaded.network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = ("conv1", "bn1", "layer1", "layer2")
    assert {name for name in before if name.startswith(frozen)} <= same
    assert not {name for name in same if name.startswith(("layer4", "fc"))}
    assert loaded.info.settings["encoder"]["pretext"] == "radiomics"
    stages = read_provenance(tmp_path / "model")
    assert [(one["stage"], one["seed"]) for one in stages] == [("pretrain", 3), ("train", 5)]
    assert all(one["data_digests"] == [data.digest] for one in stages)


@pytest.mark.trains
def test_the_switch_of_training_pretrains_and_starts_from_it(
    encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    train(tiny_dataset, tmp_path / "one", NETWORK, TRAINING, pretext=PRETRAIN)
    train(tiny_dataset, tmp_path / "two", NETWORK, TRAINING, initial_weights=str(encoder))
    assert read_bundle_info(tmp_path / "one")[1] == read_bundle_info(tmp_path / "two")[1]


@pytest.mark.trains
def test_two_starts_at_once_are_refused(encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="initial_weights"):
        train(tiny_dataset, tmp_path / "m", NETWORK, TRAINING, str(encoder), pretext=PRETRAIN)


@pytest.mark.trains
def test_a_higher_rate_of_the_last_layer_changes_the_model(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = TRAINING.changed(learning_rate=2e-3, head_learning_rate=1e-2)
    train(tiny_dataset, tmp_path / "model", NETWORK, config)
    assert read_bundle_info(tmp_path / "model")[1] != read_bundle_info(tiny_model)[1]


@pytest.mark.trains
def test_an_encoder_of_another_network_is_refused(
    encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    coarse = NETWORK.changed(map_stride=16)
    with pytest.raises(MismatchError, match="map_stride"):
        train(tiny_dataset, tmp_path / "m", coarse, TRAINING, initial_weights=str(encoder))


@pytest.mark.trains
def test_a_changed_encoder_is_refused(encoder: Path, tmp_path: Path) -> None:
    document = json.loads((encoder / "encoder.json").read_text())
    document["pretext"] = "hog"
    (tmp_path / "encoder.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="was changed"):
        read_encoder(tmp_path)


def test_a_data_set_without_training_images_needs_unlabelled_ones(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    folder = _with_column(tiny_dataset, tmp_path / "dataset", "split", Split.TEST.value)
    with pytest.raises(TrainingError, match="no image is left"):
        pretrain(folder, tmp_path / "encoder", NETWORK, PRETRAIN, num_workers=1)


def test_a_finding_that_no_training_image_knows_is_named_before_anything_is_trained(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _with_column(tiny_dataset, tmp_path / "dataset", "Effusion", np.nan)
    monkeypatch.setattr("chexradinet.training.train.pretrain", None)
    with pytest.raises(TrainingError, match="no training image has a known label of Effusion"):
        train(folder, tmp_path / "model", NETWORK, TRAINING, pretext=PRETRAIN)


def _with_column(source: Path, target: Path, name: str, value: str | float) -> Path:
    from chexradinet.artifacts import write_table

    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    frame, _ = read_table(target / MANIFEST, "dataset-manifest", 1)
    frame[name] = value
    write_table(target / MANIFEST, frame, "dataset-manifest", 1)
    document: dict[str, Any] = json.loads((target / DOCUMENT).read_text())
    document["files"][MANIFEST] = sha256_of(target / MANIFEST)
    del document["digest"]
    content = {k: v for k, v in document.items() if k not in ("schema", "kind")}
    document["digest"] = document_digest({"schema": 1, "kind": "dataset", **content})
    (target / DOCUMENT).write_text(json.dumps(document))
    return target
