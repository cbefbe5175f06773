"""A night beside the reference that travels with the model."""

import json
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.evaluation.calibration import apply_calibration
from chexradinet.evaluation.reference import Population, Reference, build_reference
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.phantom import draw_phantom
from tests.nightly_world import FINDINGS, SIDE_PX, World, calibration, make_bundle, make_world

METADATA = {f"metadata:{name}" for name in ("age", "sex", "view", "manufacturer")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return what 200 other X-rays of the same kind are to the model that is published."""
    bundle = tmp_path_factory.mktemp("model") / "bundle"
    make_bundle(bundle)
    network = load_bundle(bundle).network
    preprocessing = PreprocessingConfig(image_side=SIDE_PX)
    pixels = np.stack(
        [
            fit_to_model(draw_phantom(n, 96, 3, 0.0).pixels, preprocessing)[0]
            for n in range(100, 300)
        ]
    ).astype(np.uint8)
    found = predict(network, lambda rows: pixels[rows], np.arange(200), device="cpu", maps=False)
    return build_reference(
        Population(
            findings=FINDINGS,
            probabilities=apply_calibration(calibration(), FINDINGS, found.logits),
            embeddings=found.embedding,
            patient_ids=list(range(200)),
            metadata={
                "view": ["PA"] * 200,
                "age": list(range(20, 70)) * 4,
                "sex": ["F", "M"] * 100,
                "manufacturer": ["phantom"] * 200,
            },
            image_statistics={"mean": pixels.mean((1, 2)), "std": pixels.std((1, 2))},
        )
    )


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


def test_a_model_with_a_reference_measures_drift_and_distribution(
    world: World, reference: Reference
) -> None:
    world.publish(reference=reference)
    for number in range(24):
        world.add_dicom(number, header=_like_the_reference(number))
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.ood_fraction is not None
    assert night.ood_fraction < 0.5
    assert night.drift is not None
    assert night.drift["status"] == "ok"
    assert {"score:Mass", "image:mean", "metadata:view", "embedding"} <= set(
        night.drift["comparisons"]
    )
    assert not set(night.drift["alarms"]) & METADATA
    rows = world.table("part-")
    assert {row["out_of_distribution"] for row in rows} <= {"true", "false"}
    assert all(float(row["out_of_distribution_score"]) > 0 for row in rows)


def test_inverted_x_rays_are_seen_as_drift_and_as_unlike_the_training_data(
    world: World, reference: Reference
) -> None:
    world.publish(reference=reference)
    for number in range(24):
        world.add_dicom(number, header={"PhotometricInterpretation": "MONOCHROME1"})
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.drift is not None
    assert night.drift["alarm"]
    assert {"embedding", "ood"} <= set(night.drift["alarms"])
    assert (night.ood_fraction or 0.0) > 0.5


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("metadata:age", {"PatientAge": "019Y"}),
        ("metadata:sex", {"PatientSex": "F"}),
        ("metadata:view", {"ViewPosition": "AP"}),
        ("metadata:manufacturer", {"Manufacturer": "another"}),
    ],
)
def test_who_is_x_rayed_and_with_what_is_seen_as_drift(
    world: World, reference: Reference, kind: str, header: dict[str, object]
) -> None:
    world.publish(reference=reference)
    for number in range(24):
        world.add_dicom(number, header=_like_the_reference(number) | header)
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.drift is not None
    assert set(night.drift["alarms"]) & METADATA == {kind}


def test_x_rays_of_one_patient_count_once_without_any_key(
    world: World, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHEXRADINET_DEIDENTIFICATION_KEY", raising=False)
    world.publish(reference=reference)
    for number in range(24):
        header = {"PatientID": f"p{number // 3}", "StudyInstanceUID": f"1.2.9.{number}"}
        world.add_dicom(number, header=_like_the_reference(number) | header)
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.drift is not None
    assert (night.drift["num_images"], night.drift["num_patients"]) == (24, 8)


def _like_the_reference(number: int) -> dict[str, object]:
    """Return a header as the X-rays of the reference would have it."""
    return {
        "ViewPosition": "PA",
        "PatientAge": f"{20 + 2 * number:03d}Y",
        "PatientSex": "FM"[number % 2],
    }
