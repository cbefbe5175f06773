"""What the model has seen: distributions of the validation split, kept in the bundle.

Two uses: is one X-ray unlike all of them (out of distribution), and is a night unlike them (drift).

Half of the patients fit the embedding space (principal components, shrunk covariance); the other
half, which the fit has not seen, sets the threshold. So X-rays of new patients like those of the
validation split are flagged at the rate that the reference states, which is the one asked for or
less, or 1 in n + 1 if the n patients of that half are too few for it.

Distributions are counts in bins, small enough for a bundle. Their distance is the population
stability index. Its size under no change depends on how many images were seen, so every comparison
carries a p-value from a simulated null with the same counts, instead of the customary fixed limits
of 0.1 and 0.25, which small samples exceed by chance.

Source: Lee et al. 2018, arXiv:1807.03888 (Mahalanobis distance of features); Ledoit and Wolf 2004
(shrunk covariance); Lei et al. 2018, JASA 113 (split conformal threshold); Yurdakul and Naranjo
2020, Journal of Risk Model Validation 14(4) (null of the index).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.errors import EvaluationError, MismatchError
from chexradinet.evaluation.classification import Array, BoolArray, FloatArray

SCHEMA = 1
"""Version of the document and its arrays."""
NOT_DEFINED = "not_defined"
"""Status if too few patients or constant embeddings leave no embedding space."""
NUMERIC_METADATA = ("age",)
"""Metadata that are numbers; the others are names."""
MISSING = "(missing)"
"""Category of a value that is not there."""
OTHER = "(other)"
"""Category of a value that the reference has not seen."""
QUANTILE = 0.99
"""X-rays like the reference shall be flagged at a rate of at most one minus this; `rate` of the
document's `ood` is the one that holds."""
_MAX_CATEGORIES = 20
_SMOOTHING = 0.5
_MAX_COMPONENTS = 64
_CASES_PER_COMPONENT = 5
_MIN_PATIENTS = 20
_MAX_KEPT = 512
_STATISTICS_BATCH = 1024

Values = Sequence[Any] | FloatArray
"""One value per image, None, NaN or empty if missing."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """What is known of a set of scored X-rays."""

    findings: Sequence[str]
    """Names of the F columns."""
    probabilities: Array
    """Calibrated, shape (N, F)."""
    embeddings: Array
    """Output of the network before its last layer, shape (N, C), finite."""
    patient_ids: Sequence[Any]
    """The patient of each image, N of them."""
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Name (`view`, `sex`, `age`, `manufacturer`) to N values."""
    image_statistics: Mapping[str, Values] = field(default_factory=dict)
    """Name (`mean`, `std` of the model pixels) to N values."""

    def __post_init__(self) -> None:
        """Refuse columns that do not belong together."""
        num = len(self.patient_ids)
        columns: dict[str, Values] = {**self.metadata, **self.image_statistics}
        columns |= {"probabilities": self.probabilities, "embeddings": self.embeddings}
        wrong = {name: len(values) for name, values in columns.items() if len(values) != num}
        if wrong or self.probabilities.shape != (num, len(self.findings)):
            raise EvaluationError(
                f"{num} patient ids, {len(self.findings)} findings, probabilities "
                f"{self.probabilities.shape} and columns of other length {wrong}; "
                "give one row per image everywhere"
            )
        if not np.isfinite(self.embeddings).all():
            raise EvaluationError("an embedding is not finite; the model that gave it is broken")

    @property
    def num_patients(self) -> int:
        """Distinct patients."""
        return len(set(self.patient_ids))

    @property
    def columns(self) -> dict[str, tuple[str, Values]]:
        """Every distribution's name to its kind and values."""
        found: dict[str, tuple[str, Values]] = {
            f"score:{name}": ("numeric", np.asarray(self.probabilities[:, i], dtype=np.float64))
            for i, name in enumerate(self.findings)
        }
        for name, values in self.metadata.items():
            kind = "numeric" if name in NUMERIC_METADATA else "categorical"
            found[f"metadata:{name}"] = (kind, values)
        for name, numbers in self.image_statistics.items():
            found[f"image:{name}"] = ("numeric", numbers)
        return found


def image_statistics(
    fetch: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]], rows: npt.NDArray[np.int64]
) -> Mapping[str, FloatArray]:
    """Return mean and standard deviation of the model pixels of each row, on the 8-bit range."""
    means, deviations = [], []
    for start in range(0, len(rows), _STATISTICS_BATCH):
        images = fetch(rows[start : start + _STATISTICS_BATCH])
        means.append(images.mean(axis=(1, 2), dtype=np.float64))
        deviations.append(images.std(axis=(1, 2), dtype=np.float64))
    return {"mean": np.concatenate(means), "std": np.concatenate(deviations)}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reference distributions: a JSON-ready document, and arrays for safetensors (float32)."""

    document: dict[str, Any]
    """Schema, counts, distributions by name, and the out-of-distribution rule."""
    arrays: dict[str, npt.NDArray[np.float32]]
    """The embedding space and a sample of coordinates in it; empty if not defined."""


def build_reference(population: Population, seed: int = 0) -> Reference:
    """Return the reference distributions of a validation split.

    What is known of no X-ray has none: a night would differ from it by being known.

    Args:
        population: The split, scored by the model that the bundle holds.
        seed: Random seed of the halves and of the sample.
    """
    distributions = {
        name: numeric_distribution(values)
        if kind == "numeric"
        else categorical_distribution(values)
        for name, (kind, values) in population.columns.items()
    }
    rule, arrays = _embedding_space(population, seed)
    document = {
        "schema": SCHEMA,
        "findings": list(population.findings),
        "num_images": len(population.patient_ids),
        "num_patients": population.num_patients,
        "distributions": {
            name: found for name, found in distributions.items() if sum(found["counts"][:-1])
        },
        "ood": rule,
    }
    return Reference(document=document, arrays=arrays)


def embedding_coordinates(reference: Reference, embeddings: Array) -> FloatArray:
    """Return embeddings in the reference's whitened space, shape (N, K).

    Raises:
        MismatchError: the embeddings have another width than the reference's.
    """
    arrays = reference.arrays
    width = arrays["mean"].shape[0]
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise MismatchError(
            f"embeddings have shape {embeddings.shape}, the reference knows {width} channels; "
            "use the reference of the model that gave the embeddings"
        )
    centered = np.asarray(embeddings, dtype=np.float64) - arrays["mean"]
    projected = centered @ arrays["components"].T
    whitened = projected @ arrays["whitening"]
    center, spread = arrays["residual"]
    if spread == 0:
        return np.asarray(whitened, dtype=np.float64)
    residual = (_log_residual(centered, projected) - center) / spread
    return np.column_stack([whitened, residual])


def ood_scores(reference: Reference, embeddings: Array) -> FloatArray:
    """Return the Mahalanobis distance of each image from the reference, shape (N,), at least 0.

    The last coordinate is what the principal components leave over. NaN if the reference could not
    be defined.
    """
    if reference.document["ood"]["status"] == NOT_DEFINED:
        return np.full(len(embeddings), np.nan)
    return np.asarray(np.linalg.norm(embedding_coordinates(reference, embeddings), axis=1))


def ood_flags(reference: Reference, scores: FloatArray) -> BoolArray:
    """Tell which images are unlike all of the reference; none if it is not defined."""
    threshold = reference.document["ood"]["threshold"]
    return scores > (np.inf if threshold is None else threshold)


def one_row_per_patient(patient_ids: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return the row of each patient's first image, in the order of the rows."""
    _, first = np.unique(np.asarray(patient_ids), return_index=True)
    return np.sort(first).astype(np.int64)


def _embedding_space(
    population: Population, seed: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    undefined = {"status": NOT_DEFINED, "quantile": QUANTILE, "threshold": None, "rate": None}
    undefined |= {"rule": "No X-ray is flagged: the validation split has too few patients."}
    embeddings = np.asarray(population.embeddings, dtype=np.float64)
    if population.num_patients < _MIN_PATIENTS or not np.ptp(embeddings, axis=0).any():
        return {**undefined, "reason": "too few patients, or constant embeddings"}, {}
    generator = np.random.default_rng(seed)
    ids = np.asarray(population.patient_ids)
    patients = np.unique(ids)
    fitting = np.isin(ids, generator.permutation(patients)[: len(patients) // 2])
    space = _fit_space(embeddings[fitting], seed)
    kept = Reference(document={"ood": {"status": "ok"}}, arrays=space)
    held_out = np.flatnonzero(~fitting)
    coordinates = embedding_coordinates(kept, embeddings[held_out])
    # X-rays of one patient are alike, so they count once: the rate is that over new patients.
    rows = one_row_per_patient([population.patient_ids[int(row)] for row in held_out])
    limit = conformal_limit(np.linalg.norm(coordinates[rows], axis=1), QUANTILE)
    sample = generator.permutation(rows)[:_MAX_KEPT]
    rule = {
        "status": "ok",
        "quantile": QUANTILE,
        **asdict(limit),
        "num_fitted": int(fitting.sum()),
        "num_held_out": len(held_out),
        "num_held_out_patients": len(rows),
        "num_components": int(space["components"].shape[0]),
        "method": "Mahalanobis distance, threshold at the quantile of patients not fitted on",
    }
    return rule, {**space, "sample": coordinates[sample].astype(np.float32)}


def _fit_space(embeddings: FloatArray, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    num = max(1, min(_MAX_COMPONENTS, embeddings.shape[1], len(embeddings) // _CASES_PER_COMPONENT))
    reduction = PCA(n_components=num, svd_solver="randomized", random_state=seed).fit(embeddings)
    centered = embeddings - reduction.mean_
    projected = centered @ reduction.components_.T
    variances, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(projected).covariance_)
    floor = 1e-9 * float(variances.max()) + np.finfo(np.float32).tiny
    whitening = axes / np.sqrt(np.maximum(variances, floor))
    center, spread = 0.0, 0.0
    if num < embeddings.shape[1]:
        residual = _log_residual(centered, projected)
        center, spread = float(residual.mean()), float(residual.std())
    return {
        "mean": reduction.mean_.astype(np.float32),
        "components": reduction.components_.astype(np.float32),
        "whitening": whitening.astype(np.float32),
        "residual": np.array([center, spread], dtype=np.float32),
    }


def _log_residual(centered: FloatArray, projected: FloatArray) -> FloatArray:
    # The components are orthonormal, so what they leave over follows from Pythagoras.
    left = (centered**2).sum(axis=1) - (projected**2).sum(axis=1)
    floor = 1e-9 * (centered**2).sum(axis=1) + np.finfo(np.float32).tiny
    residual: FloatArray = 0.5 * np.log(np.maximum(left, floor))
    return residual


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The distance above which an X-ray counts as unlike the reference, and how often by chance."""

    threshold: float
    """Flagged above it."""
    rate: float
    """Part of new patients like those it was set on that are flagged, in (0, 1)."""
    rule: str
    """Both as a sentence for readers."""


def conformal_limit(distances: FloatArray, quantile: float) -> Limit:
    """Return the limit that a new case of the same kind exceeds at a known rate.

    Args:
        distances: One per patient, none of them used in making the distance; at least one.
        quantile: The rate shall be at most one minus this, in (0, 1). Fewer than about
            1 / (1 - quantile) patients cannot hold it: their highest distance is the threshold,
            and 1 / (patients + 1) is the rate.
    """
    num = len(distances)
    # Less a trifle: 100 * 0.99 must be 99, however it is rounded.
    rank = min(int(np.ceil((num + 1) * quantile - 1e-9)), num)
    threshold, rate = float(np.sort(distances)[rank - 1]), (num + 1 - rank) / (num + 1)
    rule = f"Flagged above {threshold:.2f}. Expected false-flag rate {rate:.1%}"
    if rate > 1 - quantile + 1e-9:
        rule += f"; {num} held-out patients are too few for {1 - quantile:.1%}"
    return Limit(threshold=threshold, rate=rate, rule=f"{rule}.")


def numeric_distribution(values: Values, bins: int = 10) -> dict[str, Any]:
    """Return a distribution of numbers in at most `bins` bins of equal mass.

    Returns:
        `kind` numeric, inner `edges`, `counts` (one more than edges, then the missing), JSON-ready.
    """
    known = _finite(values)
    levels = np.arange(1, bins) / bins
    edges = np.unique(np.quantile(known, levels)) if len(known) else np.empty(0)
    distribution: dict[str, Any] = {"kind": "numeric", "edges": [float(edge) for edge in edges]}
    return {**distribution, "counts": count_in(distribution, values).tolist()}


def categorical_distribution(values: Values) -> dict[str, Any]:
    """Return a distribution of names; the rarest beyond 20 are counted as other.

    Returns:
        `kind` categorical, `categories`, `counts` (one per category, then other, then missing).
    """
    names, counts = np.unique([_name(value) for value in values], return_counts=True)
    frequent = sorted(zip(-counts, names, strict=True))
    kept = [str(name) for _, name in frequent if name != MISSING][:_MAX_CATEGORIES]
    distribution: dict[str, Any] = {"kind": "categorical", "categories": kept}
    return {**distribution, "counts": count_in(distribution, values).tolist()}


def count_in(distribution: Mapping[str, Any], values: Values) -> npt.NDArray[np.int64]:
    """Return how many values fall into each bin of a reference distribution."""
    if distribution["kind"] == "numeric":
        edges = np.asarray(distribution["edges"], dtype=np.float64)
        known = _finite(values)
        placed = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
        return np.append(placed, len(values) - len(known)).astype(np.int64)
    categories = [*distribution["categories"], OTHER, MISSING]
    place = {name: index for index, name in enumerate(categories)}
    places = [place.get(_name(value), place[OTHER]) for value in values]
    return np.bincount(np.array(places, np.int64), minlength=len(categories)).astype(np.int64)


def population_stability_index(reference: Array, observed: Array) -> FloatArray:
    """Return the index of counts against counts, bins along the last axis, half a count added."""
    expected, found = _shares(reference), _shares(observed)
    index: FloatArray = ((found - expected) * np.log(found / expected)).sum(axis=-1)
    return index


def stability_test(
    distribution: Mapping[str, Any],
    values: Values,
    num_independent: tuple[int, int],
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Compare values with a reference distribution; return `psi` and `p_value`.

    Args:
        distribution: Result of `numeric_distribution` or `categorical_distribution`.
        values: What was seen, at least one.
        num_independent: Patients behind the reference and behind the values; images of one patient
            count once in the null, which keeps false alarms below the stated rate.
        samples: Draws of the null; the smallest p-value is `1 / (samples + 1)`.
        seed: Random seed of the draws.
    """
    reference = np.asarray(distribution["counts"], dtype=np.int64)
    observed = count_in(distribution, values)
    generator = np.random.default_rng(seed)
    shares = _shares(reference)
    drawn = [generator.multinomial(num, shares, size=samples) for num in num_independent]
    null = population_stability_index(drawn[0], drawn[1])
    # On equal footing with the null: as if there were one image per patient.
    scaled = [
        counts * (num / max(1, counts.sum()))
        for counts, num in zip((reference, observed), num_independent, strict=True)
    ]
    found = float(population_stability_index(scaled[0], scaled[1]))
    exceeded = int((null >= found - 1e-12).sum())
    return {"psi": found, "p_value": (1 + exceeded) / (samples + 1)}


def _shares(counts: Array) -> FloatArray:
    smoothed = np.asarray(counts, dtype=np.float64) + _SMOOTHING
    shares: FloatArray = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return shares


def _finite(values: Values) -> FloatArray:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return numbers[np.isfinite(numbers)]


def _name(value: Any) -> str:  # noqa: ANN401 - a cell of a table
    return MISSING if value is None or value == "" or value != value else str(value)
