"""Which findings' heatmaps guide training: what is labelled, else what the model believes most."""

import numpy as np
from numpy.typing import ArrayLike

from chexradinet.errors import MismatchError


def guiding_findings(labels: ArrayLike, scores: ArrayLike) -> list[tuple[int, int]]:
    """Return the (row, finding column) pairs whose maps guide training, by row, then column.

    Args:
        labels: 1 present, 0 absent, NaN unknown, shape (N, F).
        scores: Logits or probabilities, shape (N, F). A score that is not finite counts as lowest.

    Returns:
        Every labelled positive finding of a row; for a row with none, the finding with the highest
        score (the first of equals). So every row appears at least once.

    Raises:
        MismatchError: the two arrays differ in shape, or have no finding.
    """
    known, believed = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if known.shape != believed.shape or known.ndim != 2 or known.shape[1] == 0:
        raise MismatchError(
            f"labels have shape {known.shape}, scores {believed.shape}; both must be "
            "(images, findings) with at least one finding: use scores of the same data set"
        )
    guiding = known == 1
    unlabelled = ~guiding.any(axis=1)
    finite = np.where(np.isfinite(believed), believed, -np.inf)
    guiding[unlabelled, finite[unlabelled].argmax(axis=1)] = True
    return [(int(row), int(column)) for row, column in np.argwhere(guiding)]
