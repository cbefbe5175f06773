"""What the model has seen: distributions of the validation split, kept in the bundle.

Two uses: is one X-ray unlike all of them (out of distribution), and is a night unlike them (drift).

Half of the patients fit the embedding space (principal components, shrunk covariance); the other
half, which the fit has not seen, sets the threshold. So X-rays of new patients like those of the
validation split are flagged at the rate that the reference states, which is the one asked for or
less, or 1 in n + 1 where the n patients of that half are too few for it.

Source: Lee et al. 2018, arXiv:1807.03888 (Mahalanobis distance of features); Ledoit and Wolf 2004
(shrunk covariance). The threshold is that of `conformal`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from chexradinet.errors import EvaluationError, MismatchError
from chexradinet.evaluation.cases import Array, FloatArray
from chexradinet.evaluation.conformal import conformal_limit
from chexradinet.evaluation.distribution import categorical_distribution, numeric_distribution

SCHEMA = 1
"""Version of the document and its arrays."""
NOT_DEFINED = "not_defined"
"""Status where too few patients or constant embeddings leave no embedding space."""
NUMERIC_METADATA = ("age",)
"""Metadata that are numbers; the others are names."""
_MAX_COMPONENTS = 64
_CASES_PER_COMPONENT = 5
_MIN_PATIENTS = 20
_MAX_KEPT = 512


@dataclass(frozen=True, kw_only=True)
class Population:
    """What is known of a set of scored X-rays."""

    findings: Sequence[str]
    """Names of the F columns."""
    probabilities: Array
    """Calibrated, shape (N, F)."""
    embeddings: Array
    """Of the network before its last layer, shape (N, C), finite."""
    patient_ids: Sequence[Any]
    """The patient of each image, N of them."""
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Name (`view`, `sex`, `age`, `manufacturer`) to N values, None or NaN where missing."""
    image_statistics: Mapping[str, Sequence[float] | FloatArray] = field(default_factory=dict)
    """Name (`mean`, `std` of the model pixels) to N values."""

    def __post_init__(self) -> None:
        """Refuse columns that do not belong together."""
        num = len(self.patient_ids)
        lengths = {"probabilities": len(self.probabilities), "embeddings": len(self.embeddings)}
        lengths |= {name: len(values) for name, values in self.metadata.items()}
        lengths |= {name: len(column) for name, column in self.image_statistics.items()}
        wrong = {name: length for name, length in lengths.items() if length != num}
        if wrong or self.probabilities.shape != (num, len(self.findings)):
            raise EvaluationError(
                f"{num} patient ids, {len(self.findings)} findings, probabilities "
                f"{self.probabilities.shape} and columns of other length {wrong}; "
                "give one row an image everywhere"
            )
        if not np.isfinite(self.embeddings).all():
            raise EvaluationError("an embedding is not finite; the model that gave it is broken")

    @property
    def num_patients(self) -> int:
        """Distinct patients."""
        return len(set(self.patient_ids))

    @property
    def columns(self) -> dict[str, tuple[str, Sequence[Any] | FloatArray]]:
        """Every distribution's name to its kind and values."""
        found: dict[str, tuple[str, Sequence[Any] | FloatArray]] = {
            f"score:{name}": ("numeric", np.asarray(self.probabilities[:, i], dtype=np.float64))
            for i, name in enumerate(self.findings)
        }
        for name, values in self.metadata.items():
            kind = "numeric" if name in NUMERIC_METADATA else "categorical"
            found[f"metadata:{name}"] = (kind, values)
        for name, numbers in self.image_statistics.items():
            found[f"image:{name}"] = ("numeric", numbers)
        return found


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reference distributions: a JSON-ready document, and arrays for safetensors (float32)."""

    document: dict[str, Any]
    """Schema, counts, distributions by name, and the out-of-distribution rule."""
    arrays: dict[str, npt.NDArray[np.float32]]
    """The embedding space and a sample of coordinates in it; empty where not defined."""


def build_reference(population: Population, quantile: float = 0.99, seed: int = 0) -> Reference:
    """Return the reference distributions of a validation split.

    What is known of no X-ray has none: a night would differ from it by being known.

    Args:
        population: The split, scored by the model that the bundle holds.
        quantile: X-rays like these shall be flagged at a rate of at most one minus this, in (0, 1);
            `rate` of the document's `ood` is the one that holds.
        seed: Of the halves and of the sample.
    """
    distributions = {
        name: numeric_distribution(np.asarray(_numbers(values)))
        if kind == "numeric"
        else categorical_distribution(values)
        for name, (kind, values) in population.columns.items()
    }
    rule, arrays = _embedding_space(population, quantile, seed)
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

    The last coordinate is what the principal components leave over. NaN where the reference could
    not be defined.

    Raises:
        MismatchError: the embeddings have another width than the reference's.
    """
    if reference.document["ood"]["status"] == NOT_DEFINED:
        return np.full(len(embeddings), np.nan)
    return np.asarray(np.linalg.norm(embedding_coordinates(reference, embeddings), axis=1))


def ood_flags(reference: Reference, scores: FloatArray) -> npt.NDArray[np.bool_]:
    """Tell which images are unlike all of the reference; none where it is not defined."""
    threshold = reference.document["ood"]["threshold"]
    return scores > (np.inf if threshold is None else threshold)


def one_row_per_patient(patient_ids: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return the row of each patient's first image, in the order of the rows."""
    _, first = np.unique(np.asarray(patient_ids), return_index=True)
    return np.sort(first).astype(np.int64)


def _embedding_space(
    population: Population, quantile: float, seed: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    undefined = {"status": NOT_DEFINED, "quantile": quantile, "threshold": None, "rate": None}
    undefined |= {"rule": "No X-ray is flagged: the validation split has too few patients."}
    embeddings = np.asarray(population.embeddings, dtype=np.float64)
    if population.num_patients < _MIN_PATIENTS or not np.ptp(embeddings, axis=0).any():
        return {**undefined, "reason": "too few patients, or constant embeddings"}, {}
    generator = np.random.default_rng(seed)
    patients = np.unique(np.asarray(population.patient_ids))
    chosen = generator.permutation(patients)[: len(patients) // 2]
    fitting = np.isin(np.asarray(population.patient_ids), chosen)
    space = _fit_space(embeddings[fitting], seed)
    kept = Reference(document={"ood": {"status": "ok"}}, arrays=space)
    held_out = np.flatnonzero(~fitting)
    coordinates = embedding_coordinates(kept, embeddings[held_out])
    # X-rays of one patient are alike, so they count once: the rate is that over new patients.
    rows = one_row_per_patient([population.patient_ids[int(row)] for row in held_out])
    limit = conformal_limit(np.linalg.norm(coordinates[rows], axis=1), quantile)
    sample = generator.permutation(rows)[:_MAX_KEPT]
    rule = {
        "status": "ok",
        "quantile": quantile,
        **asdict(limit),
        "num_fitted": int(fitting.sum()),
        "num_held_out": len(held_out),
        "num_held_out_patients": len(rows),
        "num_components": int(space["components"].shape[0]),
        "method": "Mahalanobis distance, threshold at the quantile of patients not fitted on",
    }
    return rule, {**space, "sample": coordinates[sample].astype(np.float32)}


def _fit_space(embeddings: FloatArray, seed: int) -> dict[str, npt.NDArray[np.float32]]:
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


def _numbers(values: Sequence[Any] | FloatArray) -> list[float]:
    return [np.nan if value is None else float(value) for value in values]
