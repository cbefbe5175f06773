"""The threshold of unlike X-rays: fresh ones pass it at the rate that it states."""

import json

import numpy as np
import pytest

from chexradinet.evaluation.reference import (
    Population,
    build_reference,
    conformal_limit,
    ood_flags,
    ood_scores,
)

NUM_CHANNELS = 32
MIXING = np.random.default_rng(99).normal(size=(8, NUM_CHANNELS))


def population(num_patients: int, seed: int, per_patient: int = 1) -> Population:
    """Draw correlated embeddings; those of a patient are nearly alike."""
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), per_patient)
    latent = generator.normal(size=(num_patients, 8))[patients] * np.linspace(3, 0.3, 8)
    latent += 0.01 * generator.normal(size=latent.shape)
    noise = 0.3 * generator.normal(size=(num_patients, NUM_CHANNELS))[patients]
    return Population(
        findings=("Mass",),
        probabilities=np.full((len(patients), 1), 0.5),
        embeddings=latent @ MIXING + noise,
        patient_ids=patients.tolist(),
    )


def test_a_single_distance_can_hold_one_half_and_no_less() -> None:
    limit = conformal_limit(np.array([3.0]), 0.99)
    assert (limit.threshold, limit.rate) == (3.0, 0.5)
    assert "1 held-out patients are too few for 1.0%" in limit.rule


@pytest.mark.parametrize(
    ("num", "quantile", "rank", "rate"),
    [
        (99, 0.99, 99, 0.01),
        (98, 0.99, 98, 1 / 99),
        (150, 0.99, 150, 1 / 151),
        (199, 0.99, 198, 0.01),
        (10, 0.99, 10, 1 / 11),
        (9, 0.9, 9, 0.1),
    ],
)
def test_the_rate_is_the_one_asked_for_or_less_where_it_can_be_held(
    num: int, quantile: float, rank: int, rate: float
) -> None:
    limit = conformal_limit(np.arange(1.0, num + 1)[::-1], quantile)
    assert limit.threshold == rank
    assert limit.rate == pytest.approx(rate)
    assert ("too few" in limit.rule) == (rate > 1 - quantile + 1e-9)
    assert f"{rate:.1%}" in limit.rule


@pytest.mark.parametrize(
    ("num_patients", "per_patient", "stated"),
    [(20, 1, 1 / 11), (20, 5, 1 / 11), (50, 2, 1 / 26), (198, 1, 0.01), (400, 2, 2 / 201)],
)
def test_fresh_x_rays_are_flagged_at_the_rate_that_the_reference_states(
    num_patients: int, per_patient: int, stated: float
) -> None:
    rates = []
    for seed in range(60):
        reference = build_reference(population(num_patients, seed, per_patient))
        rule = reference.document["ood"]
        assert rule["rate"] == pytest.approx(stated)
        assert f"{stated:.1%}" in rule["rule"]
        fresh = population(1000, 9000 + seed)
        rates.append(ood_flags(reference, ood_scores(reference, fresh.embeddings)).mean())
    # A beta distribution's spread over references, of 60: three times its standard error.
    error = 3 * np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - stated) < error + 0.001


def test_a_reference_of_too_few_patients_says_that_it_flags_nothing() -> None:
    rule = build_reference(population(19, 0)).document["ood"]
    assert (rule["status"], rule["threshold"], rule["rate"]) == ("not_defined", None, None)
    assert "No X-ray is flagged" in rule["rule"]
    json.dumps(rule, allow_nan=False)
