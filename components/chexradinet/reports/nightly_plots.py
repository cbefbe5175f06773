"""Histograms of a night's scores over those that the model was calibrated on."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chexradinet.evaluation.classification import FloatArray
from chexradinet.reports.plots import BLUE, INK, ORANGE

_BINS = 20
_COLUMNS = 4


def score_histograms(
    probabilities: Mapping[str, Sequence[float]], reference: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """Return one small histogram a finding as PNG bytes; equal input gives equal bytes.

    Args:
        probabilities: Finding to the night's calibrated probabilities.
        reference: Finding to its distribution in the reference (`edges`, `counts`); a finding
            without one is drawn without.
    """
    names = list(probabilities)
    columns = min(_COLUMNS, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(2.6 * columns, 1.7 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.ravel()):
        if index >= len(names):
            axes.set_axis_off()
            continue
        _draw(axes, probabilities[names[index]], reference.get(names[index]))
        axes.set_title(names[index].replace("_", " "), fontsize=9, color=INK)
    figure.supxlabel("calibrated probability", fontsize=9, color=INK)
    figure.supylabel("density", fontsize=9, color=INK)
    stream = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def reference_density(reference: Mapping[str, Any], edges: FloatArray) -> FloatArray:
    """Return a reference distribution in other bins, so that it compares with a night bin by bin.

    Its own bins hold equal parts and may be far narrower. Within each the values are taken as
    spread evenly; in the outermost, which have one end only, over three widths of the next one,
    which has the mean of a tail that goes on as it began.

    Args:
        reference: `edges` and `counts` of probabilities, as `numeric_distribution` gives them.
        edges: Of the new bins, from 0 to 1, ascending, shape (B + 1,).

    Returns:
        Density in each bin, shape (B,): part of the values over the bin's width.
    """
    inner = np.asarray(reference["edges"], dtype=np.float64)
    known = np.asarray(reference["counts"][: len(inner) + 1], dtype=np.float64)
    below = np.concatenate([[0.0], np.cumsum(known)]) / max(1.0, known.sum())
    if not len(inner):
        return np.zeros(len(edges) - 1)
    # A single edge holds nearly all values: its tails are drawn within a bin.
    reach = 3 * np.diff(inner) if len(inner) > 1 else np.diff(edges)
    lowest, highest = max(0.0, inner[0] - reach[0]), min(1.0, inner[-1] + reach[-1])
    bounds = np.concatenate([[lowest], inner, [highest]])
    density: FloatArray = np.diff(np.interp(edges, bounds, below)) / np.diff(edges)
    return density


def _draw(axes: Axes, values: Sequence[float], reference: Mapping[str, Any] | None) -> None:
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), _BINS, (0.0, 1.0))
    density = counts * _BINS / max(1, len(values))
    axes.stairs(density, edges, fill=True, color=BLUE, alpha=0.5)
    if reference is not None:
        axes.stairs(reference_density(reference, edges), edges, color=ORANGE, linewidth=1.4)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
