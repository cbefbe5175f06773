"""Reference distributions, out-of-distribution scores and drift."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chexradinet.errors import EvaluationError, MismatchError
from chexradinet.evaluation.drift import drift, energy_test
from chexradinet.evaluation.reference import (
    Population,
    build_reference,
    categorical_distribution,
    count_in,
    numeric_distribution,
    ood_flags,
    ood_scores,
    population_stability_index,
    stability_test,
)

NUM_CHANNELS = 96
MIXING = np.random.default_rng(99).normal(size=(24, NUM_CHANNELS))


def _population(num: int, seed: int, **shift: float) -> Population:
    """Draw correlated embeddings, scores and metadata; two images a patient."""
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(num, 24)) * np.linspace(3, 0.3, 24)
    noise = 0.3 * generator.normal(size=(num, NUM_CHANNELS))
    embeddings = latent @ MIXING + noise + shift.get("embedding", 0.0)
    logits = generator.normal(size=(num, 2)) + shift.get("score", 0.0)
    return Population(
        findings=("Mass", "Edema"),
        probabilities=1 / (1 + np.exp(-logits)),
        embeddings=embeddings.astype(np.float32),
        patient_ids=[f"p{row // 2}" for row in range(num)],
        metadata={
            "view": generator.choice(["PA", "AP", ""], num, p=[0.6, 0.3, 0.1]).tolist(),
            "age": (generator.normal(55, 15, num) + shift.get("age", 0.0)).tolist(),
        },
        image_statistics={"mean": generator.normal(120 + shift.get("exposure", 0.0), 10, num)},
    )


REFERENCE = build_reference(_population(1200, 0))


def test_an_empty_night_and_a_small_one_are_said_to_be_too_few() -> None:
    empty = drift(REFERENCE, _population(0, 1))
    assert (empty["status"], empty["alarm"], empty["ood_fraction"]) == ("too_few", False, None)
    assert drift(REFERENCE, _population(30, 1))["status"] == "too_few"


@pytest.mark.parametrize("case", ["few", "constant"])
def test_a_reference_that_cannot_be_defined_says_so_and_flags_nothing(case: str) -> None:
    population = _population(20 if case == "few" else 200, 2)
    if case == "constant":
        population = replace(population, embeddings=np.ones((200, NUM_CHANNELS)))
    reference = build_reference(population)
    assert reference.document["ood"]["status"] == "not_defined"
    scores = ood_scores(reference, population.embeddings)
    assert np.isnan(scores).all()
    assert not ood_flags(reference, scores).any()
    night = drift(reference, _population(100, 3))
    assert night["status"] == "ok"
    assert "embedding" not in night["comparisons"]


def test_rows_that_do_not_belong_together_are_refused() -> None:
    population = _population(40, 0)
    with pytest.raises(EvaluationError, match=r"other length \{'age': 39\}"):
        replace(population, metadata={"age": [50.0] * 39})
    with pytest.raises(EvaluationError, match="not finite"):
        replace(population, embeddings=np.full((40, 3), np.nan))
    with pytest.raises(MismatchError, match="96 channels"):
        ood_scores(REFERENCE, np.zeros((2, 5)))
    with pytest.raises(MismatchError, match="use the reference"):
        drift(REFERENCE, replace(population, findings=("Mass", "Nodule")))


def test_the_reference_is_json_ready_and_small() -> None:
    document = json.dumps(REFERENCE.document, allow_nan=False)
    assert len(document) + sum(array.nbytes for array in REFERENCE.arrays.values()) < 1 << 20
    again = build_reference(_population(1200, 0))
    assert again.document == REFERENCE.document
    for name, array in REFERENCE.arrays.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, again.arrays[name])


def test_a_reference_of_a_large_network_stays_below_a_megabyte() -> None:
    generator = np.random.default_rng(0)
    population = replace(_population(1400, 0), embeddings=generator.normal(size=(1400, 2048)))
    reference = build_reference(population)
    assert reference.document["ood"]["num_components"] == 64
    assert sum(array.nbytes for array in reference.arrays.values()) < 1 << 20


def test_the_flag_rate_holds_on_fresh_images_of_the_same_kind() -> None:
    for size, low, high in ((1200, 0.004, 0.02), (300, 0.0005, 0.03)):
        rates = []
        for seed in range(5):
            reference = build_reference(_population(size, 100 + seed))
            fresh = _population(4000, 200 + seed)
            flags = ood_flags(reference, ood_scores(reference, fresh.embeddings))
            rates.append(flags.mean())
        assert low < np.mean(rates) < high


def test_an_image_unlike_all_others_is_flagged() -> None:
    fresh = _population(100, 5)
    outside = np.asarray(fresh.embeddings) + 5 * np.random.default_rng(0).normal(
        size=(1, NUM_CHANNELS)
    )
    assert ood_flags(REFERENCE, ood_scores(REFERENCE, outside)).mean() > 0.95
    assert ood_flags(REFERENCE, ood_scores(REFERENCE, -20 * outside)).all()


def test_unchanged_nights_raise_at_most_the_stated_alarms() -> None:
    # At a stated rate of 10%, 25 nights raise 2.5 on average, 7 or more in 1% of such series.
    alarms = sum(
        drift(REFERENCE, _population(60 + 20 * (seed % 10), 1000 + seed), 0.10)["alarm"]
        for seed in range(25)
    )
    assert alarms <= 6


@pytest.mark.parametrize(
    ("shift", "name"),
    [
        ({"embedding": 0.5}, "embedding"),
        ({"score": 1.0}, "score:Mass"),
        ({"age": -40.0}, "metadata:age"),
        ({"exposure": 15.0}, "image:mean"),
    ],
)
def test_a_planted_shift_raises_the_alarm_by_its_name(shift: dict[str, float], name: str) -> None:
    found = drift(REFERENCE, _population(200, 7, **shift))
    assert name in found["alarms"]
    json.dumps(found, allow_nan=False)


def test_another_mix_of_views_and_an_unknown_view_are_noticed() -> None:
    night = _population(200, 8)
    for views in (["AP"] * 200, ["LATERAL"] * 200, [None] * 200):
        changed: dict[str, Any] = {**night.metadata, "view": views}
        assert "metadata:view" in drift(REFERENCE, replace(night, metadata=changed))["alarms"]


def test_bins_count_every_value_once_with_the_missing_apart() -> None:
    numbers = numeric_distribution([1.0, 2, 3, 4, np.nan], bins=2)
    assert numbers == {"kind": "numeric", "edges": [2.5], "counts": [2, 2, 1]}
    assert count_in(numbers, [2.5, None, -9]).tolist() == [1, 1, 1]
    names = categorical_distribution(["PA", "PA", "AP", None, np.nan, ""])
    assert names == {"kind": "categorical", "categories": ["PA", "AP"], "counts": [2, 1, 0, 3]}
    assert count_in(names, ["LL", "AP"]).tolist() == [0, 1, 1, 0]
    assert numeric_distribution([])["counts"] == [0, 0]
    assert numeric_distribution([3.0, 3.0])["counts"] == [0, 2, 0]


def test_the_index_of_known_shares() -> None:
    # Shares .5/.5 against .9/.1, the half count being negligible: .4 ln 1.8 + .4 ln 5.
    found = population_stability_index(np.array([500000, 500000]), np.array([900000, 100000]))
    assert found == pytest.approx(0.4 * np.log(1.8) + 0.4 * np.log(5), rel=1e-4)


def test_p_values_of_unchanged_samples_are_not_too_small() -> None:
    reference = numeric_distribution(np.random.default_rng(0).normal(size=500))
    p_values = [
        stability_test(
            reference, np.random.default_rng(seed).normal(size=25), (500, 25), 999, seed
        )["p_value"]
        for seed in range(1, 201)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.10
    assert 0.35 < np.mean(p_values) < 0.65


def test_energy_distance_of_equal_and_of_shifted_samples() -> None:
    generator = np.random.default_rng(0)
    sample = generator.normal(size=(80, 3))
    same, p_same = energy_test(sample, generator.normal(size=(60, 3)), 499, 0)
    far, p_far = energy_test(sample, generator.normal(2, size=(60, 3)), 499, 0)
    assert same < 0.2 < far
    assert p_same > 0.02
    assert p_far == 1 / 500
    # Two points against two points, by hand: 2 * mean between - mean within each.
    first, second = np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]])
    assert energy_test(first, second, 1, 0)[0] == pytest.approx(2 * 3.5 - 0.5 - 1.0)
