"""A night beside the reference that travels with the model."""

import json
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import PreprocessingConfig
from chexradinet.dataset.geometry import fit_to_model
from chexradinet.dataset.phantom import draw_phantom
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.results.calibration import apply_calibration
from chexradinet.results.reference import Population, build_reference
from tests.nightly_world import FINDINGS, SIDE_PX, World, calibration, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def test_a_model_without_reference_says_that_drift_is_not_measured(world: World) -> None:
    world.add_png(0)
    world.run()
    name = next(name for name in world.results() if name.endswith("drift-000001.json"))
    assert json.loads(world.results()[name])["status"] == "no_reference"
    page = next(data for name, data in world.results().items() if name.endswith("report.html"))
    assert b"drift cannot be measured" in page


def test_a_model_with_a_reference_measures_drift_and_distribution(world: World) -> None:
    _publish_with_reference(world)
    for number in range(24):
        world.add_dicom(number)
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.ood_fraction is not None
    assert night.ood_fraction < 0.5
    assert night.drift is not None
    assert night.drift["status"] == "ok"
    assert {"score:Mass", "image:mean", "metadata:view", "embedding"} <= set(
        night.drift["comparisons"]
    )
    rows = world.table("part-")
    assert {row["out_of_distribution"] for row in rows} <= {"true", "false"}
    assert all(float(row["out_of_distribution_score"]) > 0 for row in rows)


def test_inverted_x_rays_are_seen_as_drift_and_as_unlike_the_training_data(world: World) -> None:
    _publish_with_reference(world)
    for number in range(24):
        world.add_dicom(number, header={"PhotometricInterpretation": "MONOCHROME1"})
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.drift is not None
    assert night.drift["alarm"]
    assert {"embedding", "ood"} <= set(night.drift["alarms"])
    assert (night.ood_fraction or 0.0) > 0.5


def _publish_with_reference(world: World) -> None:
    """Publish a model whose reference was made of 200 other X-rays of the same kind."""
    digest = next((world.root / "models").glob("*/bundle.json")).parent
    network = load_bundle(digest).network
    preprocessing = PreprocessingConfig(image_side=SIDE_PX)
    pixels = np.stack(
        [
            fit_to_model(draw_phantom(n, 96, 3, 0.0).pixels, preprocessing)[0]
            for n in range(100, 300)
        ]
    ).astype(np.uint8)
    found = predict(network, lambda rows: pixels[rows], np.arange(200), device="cpu", maps=False)
    reference = build_reference(
        Population(
            findings=FINDINGS,
            probabilities=apply_calibration(calibration(), FINDINGS, found.logits),
            embeddings=found.embedding,
            patient_ids=list(range(200)),
            metadata={"view": ["PA"] * 200},
            image_statistics={"mean": pixels.mean((1, 2)), "std": pixels.std((1, 2))},
        )
    )
    world.publish(reference=reference)
