"""A published model whose reference was made of phantoms like those that arrive."""

from dataclasses import replace

import numpy as np

from chexradinet.config import PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.evaluation.calibration import apply_calibration
from chexradinet.evaluation.reference import Population, build_reference
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.phantom import draw_phantom
from tests.nightly_world import FINDINGS, SIDE_PX, World, calibration


def publish_reference(world: World, threshold: float | None = None, num: int = 60) -> None:
    """Publish the world's model with a reference of other phantoms.

    Args:
        world: With its first model.
        threshold: Distance beyond which X-rays are out of distribution; None leaves the fitted one.
        num: Phantoms, each of a patient of its own.
    """
    network = load_bundle(next((world.root / "models").glob("*/bundle.json")).parent).network
    preprocessing = PreprocessingConfig(image_side=SIDE_PX)
    pixels = np.stack(
        [
            fit_to_model(draw_phantom(number, 96, 3, 0.0).pixels, preprocessing)[0]
            for number in range(1000, 1000 + num)
        ]
    ).astype(np.uint8)
    found = predict(network, lambda rows: pixels[rows], np.arange(num), device="cpu", maps=False)
    reference = build_reference(
        Population(
            findings=FINDINGS,
            probabilities=apply_calibration(calibration(), FINDINGS, found.logits),
            embeddings=found.embedding,
            patient_ids=list(range(num)),
        )
    )
    if threshold is not None:
        changed = {**reference.document["ood"], "threshold": threshold}
        reference = replace(reference, document={**reference.document, "ood": changed})
    world.publish(reference=reference)
