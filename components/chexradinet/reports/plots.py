"""Plots of the report as PNG bytes, drawn from metrics.json; each on an Agg canvas of its own."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A8F98", "#1d2733"
"""Of Okabe and Ito: told apart by every kind of colour vision, and by lightness in print."""
_COLUMNS = 4
_DPI = 130


def roc_plot(curves: Mapping[str, Mapping[str, Any]], areas: Mapping[str, float | None]) -> bytes:
    """Return one small ROC plot a finding.

    Args:
        curves: Finding to `fpr` and `tpr`.
        areas: Finding to AUROC, printed in each title.
    """

    def draw(axes: Axes, finding: str) -> None:
        curve, area = curves[finding], areas.get(finding)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(curve["fpr"], curve["tpr"], color=BLUE, linewidth=1.8)
        axes.fill_between(curve["fpr"], curve["tpr"], color=BLUE, alpha=0.08, linewidth=0)
        _title(axes, finding, "" if area is None else f"{area:.3f}")

    return _small_plots(list(curves), draw, ("1 - specificity", "sensitivity"))


def reliability_plot(
    curves: Mapping[str, Mapping[str, Any]], errors: Mapping[str, float | None]
) -> bytes:
    """Return one small reliability plot a finding: promised against observed frequency.

    Args:
        curves: Finding to `predicted`, `observed` and `count`.
        errors: Finding to expected calibration error, printed in each title.
    """

    def draw(axes: Axes, finding: str) -> None:
        curve, error = curves[finding], errors.get(finding)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(
            curve["predicted"],
            curve["observed"],
            color=ORANGE,
            linewidth=1.4,
            marker="o",
            markersize=3.5,
        )
        _title(axes, finding, "" if error is None else f"{error:.3f}")

    drawn = [name for name, curve in curves.items() if curve["predicted"]]
    return _small_plots(drawn, draw, ("promised", "observed"))


def localization_plot(
    own: Mapping[str, Mapping[str, Any]],
    random: Mapping[str, Mapping[str, Any]],
    swapped: Mapping[str, Mapping[str, Any]],
    key: str,
) -> bytes:
    """Return own accuracy beside both controls, one row a finding, sorted by the own.

    Args:
        own: Finding to its localisation numbers.
        random: The same with random maps.
        swapped: The same with swapped maps; a finding may be missing.
        key: Which measure, as `iou_0.3`.
    """
    findings = sorted(own, key=lambda name: own[name][key])
    places = np.arange(len(findings))
    figure = Figure(figsize=(8.8, 0.9 + 0.32 * len(findings)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    lengths = [own[name][key] for name in findings]
    axes.barh(places, lengths, color=BLUE, alpha=0.55, height=0.55, label="own map")
    marks = (("swapped map", swapped, "D", ORANGE), ("random map", random, "o", "white"))
    for label, control, marker, color in marks:
        held = [place for place in places if findings[place] in control]
        values = [control[findings[place]][key] for place in held]
        axes.plot(
            values,
            held,
            marker,
            label=label,
            color=color,
            markeredgecolor=INK,
            markersize=7,
            clip_on=False,
        )
    axes.set_yticks(places, [_readable(name) for name in findings])
    axes.set_xlim(0, 1)
    measure = key.replace("_", " > ").replace("iou", "IoU")
    axes.set_xlabel(f"fraction of cases, {measure}", fontsize=9, color=INK)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    _plain(axes)
    return _png(figure)


def _small_plots(
    findings: Sequence[str], draw: Callable[[Axes, str], None], labels: tuple[str, str]
) -> bytes:
    columns = min(_COLUMNS, max(1, len(findings)))
    rows = max(1, -(-len(findings) // columns))
    figure = Figure(figsize=(2.3 * columns, 2.35 * rows), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.ravel()):
        if index >= len(findings):
            axes.set_axis_off()
            continue
        draw(axes, findings[index])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        _plain(axes)
    figure.supxlabel(labels[0], fontsize=9, color=INK)
    figure.supylabel(labels[1], fontsize=9, color=INK)
    return _png(figure)


def _title(axes: Axes, finding: str, value: str) -> None:
    axes.set_title(f"{_readable(finding)}  {value}".rstrip(), fontsize=9, color=INK)


def _readable(finding: str) -> str:
    return finding.replace("_", " ")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def _png(figure: Figure) -> bytes:
    stream = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
