"""Histograms of a night's scores over those that the model was calibrated on."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chexradinet.results.plots import BLUE, INK, ORANGE

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


def _draw(axes: Axes, values: Sequence[float], reference: Mapping[str, Any] | None) -> None:
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), _BINS, (0.0, 1.0))
    density = counts * _BINS / max(1, len(values))
    axes.stairs(density, edges, fill=True, color=BLUE, alpha=0.5)
    if reference is not None:
        inner = np.asarray(reference["edges"], dtype=np.float64)
        bounds = np.concatenate([[0.0], np.clip(inner, 1e-6, 1 - 1e-6), [1.0]])
        known = np.asarray(reference["counts"][: len(inner) + 1], dtype=np.float64)
        widths = np.maximum(np.diff(bounds), 1 / (4 * _BINS))
        axes.stairs(known / max(1.0, known.sum()) / widths, bounds, color=ORANGE, linewidth=1.4)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
