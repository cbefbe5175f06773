"""Plots of the reports as PNG bytes, each on an Agg canvas of its own; equal input, equal bytes."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chexradinet.evaluation.classification import FloatArray
from chexradinet.reports import readable

# Colours of Okabe and Ito: distinct for every kind of colour vision, and by lightness in print.
_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#D55E00", "#8A8F98", "#1d2733"
_GREEN, _PINK, _YELLOW, _SKY = "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
_ARM_COLORS = (_BLUE, _ORANGE, _GREEN, _PINK, _YELLOW, _SKY, _INK, _GREY)
_COLUMNS = 4
_DPI = 130
_BINS = 20
_TICKS = ([0, 0.5, 1], ["0", ".5", "1"])


def roc_plot(curves: Mapping[str, Mapping[str, Any]], areas: Mapping[str, float | None]) -> bytes:
    """Return one small ROC plot per finding.

    Args:
        curves: Finding to `fpr` and `tpr`.
        areas: Finding to AUROC, printed in each title.
    """

    def draw(axes: Axes, finding: str) -> None:
        curve = curves[finding]
        axes.plot(curve["fpr"], curve["tpr"], color=_BLUE, linewidth=1.8)
        axes.fill_between(curve["fpr"], curve["tpr"], color=_BLUE, alpha=0.08, linewidth=0)
        _unit_square(axes, finding, areas.get(finding))

    return _small_plots(list(curves), draw, ("1 - specificity", "sensitivity"))


def reliability_plot(
    curves: Mapping[str, Mapping[str, Any]], errors: Mapping[str, float | None]
) -> bytes:
    """Return one small reliability plot per finding: predicted against observed frequency.

    Args:
        curves: Finding to `predicted`, `observed` and `count`.
        errors: Finding to expected calibration error, printed in each title.
    """

    def draw(axes: Axes, finding: str) -> None:
        predicted, observed = curves[finding]["predicted"], curves[finding]["observed"]
        axes.plot(predicted, observed, color=_ORANGE, linewidth=1.4, marker="o", markersize=3.5)
        _unit_square(axes, finding, errors.get(finding))

    return _small_plots(list(curves), draw, ("predicted", "observed"))


def decision_plot(curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return one small plot per finding: net benefit of flags against acting on all.

    Args:
        curves: Finding to `target`, `net_benefit` and `flag_all`.
    """

    def draw(axes: Axes, finding: str) -> None:
        curve = curves[finding]
        axes.axhline(0, color=_GREY, linewidth=0.8, linestyle=":")
        axes.plot(curve["target"], curve["flag_all"], color=_ORANGE, linewidth=1.2)
        axes.plot(curve["target"], curve["net_benefit"], color=_BLUE, linewidth=1.6)
        top = max(curve["net_benefit"] + curve["flag_all"])
        axes.set(xlim=(0, max(curve["target"])), ylim=(-0.4 * top - 0.01, 1.1 * top + 0.01))
        axes.set_title(readable(finding), fontsize=9, color=_INK)

    return _small_plots(list(curves), draw, ("target probability", "net benefit"), (2.5, 2.0))


def learning_plot(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> bytes:
    """Return one small plot per measure of the epochs: guided rounds, and both arms.

    Args:
        curves: Measure to arm to pairs of epoch and value.
    """
    colors = {"control": _GREY, "permuted": _ORANGE}

    def draw(axes: Axes, measure: str) -> None:
        for arm, points in curves[measure].items():
            epochs, values = zip(*points, strict=True)
            color = colors.get(arm, _BLUE)
            axes.plot(epochs, values, color=color, linewidth=1.4, marker="o", markersize=2.5)
        axes.set_title(readable(measure), fontsize=9, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))

    return _small_plots(list(curves), draw, ("epoch, all rounds", "value"), (2.6, 2.0))


def study_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the mean AUROC of a study's arms by number of labels, one plot per read-out.

    Args:
        rows: Rows of the table with `readout`, `labels`, `arm` and `auroc_by_seed`. A dot is a mean
            over seeds, its bar goes from the worst seed to the best.
    """
    arms, readouts = (list(dict.fromkeys(row[key] for row in rows)) for key in ("arm", "readout"))
    numbers = sorted({row["labels"] for row in rows})
    figure = Figure(figsize=(8.8, 3.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(readouts), squeeze=False)[0]
    for row in rows:
        index = arms.index(row["arm"])
        values = [value for value in row["auroc_by_seed"].values() if value is not None]
        if values:
            place = numbers.index(row["labels"]) + (index + 1) / (len(arms) + 1) - 0.5
            color = _ARM_COLORS[index % len(_ARM_COLORS)]
            axes = panels[readouts.index(row["readout"])]
            axes.vlines(place, min(values), max(values), color=color, linewidth=1.4)
            axes.plot(place, np.mean(values), "o", color=color, markersize=4.5, label=row["arm"])
    for axes, readout in zip(panels, readouts, strict=True):
        axes.set_title(readout, fontsize=9, color=_INK)
        axes.set_xticks(range(len(numbers)), map(str, numbers))
        _plain(axes)
    named = dict(zip(*reversed(panels[-1].get_legend_handles_labels()), strict=True))
    figure.legend(
        named.values(), named, loc="outside upper center", ncols=5, frameon=False, fontsize=8
    )
    figure.supxlabel("labelled images", fontsize=9, color=_INK)
    figure.supylabel("mean AUROC", fontsize=9, color=_INK)
    return _png(figure)


def localization_plot(
    own: Mapping[str, Mapping[str, Any]],
    random: Mapping[str, Mapping[str, Any]],
    swapped: Mapping[str, Mapping[str, Any]],
    key: str,
) -> bytes:
    """Return own accuracy beside both controls, one row per finding, sorted by the own.

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
    axes.barh(places, lengths, color=_BLUE, alpha=0.55, height=0.55, label="own map")
    style: dict[str, Any] = {"markeredgecolor": _INK, "markersize": 7, "clip_on": False}
    marks = (("swapped map", swapped, "D", _ORANGE), ("random map", random, "o", "white"))
    for label, control, marker, color in marks:
        held = [place for place in places if findings[place] in control]
        values = [control[findings[place]][key] for place in held]
        axes.plot(values, held, marker, label=label, color=color, **style)
    axes.set_yticks(places, [readable(name) for name in findings])
    axes.set_xlim(0, 1)
    measure = key.replace("_", " > ").replace("iou", "IoU")
    axes.set_xlabel(f"fraction of cases, {measure}", fontsize=9, color=_INK)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    _plain(axes)
    return _png(figure)


def score_histograms(
    probabilities: Mapping[str, Sequence[float]], reference: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """Return one small histogram per finding of a night's scores over those of the reference.

    Args:
        probabilities: Finding to the night's scores.
        reference: Finding to its distribution in the reference (`edges`, `counts`); a finding
            without one is drawn without.
    """

    def draw(axes: Axes, finding: str) -> None:
        values = np.asarray(probabilities[finding], dtype=np.float64)
        counts, edges = np.histogram(values, _BINS, (0.0, 1.0))
        density = counts * _BINS / max(1, len(values))
        axes.stairs(density, edges, fill=True, color=_BLUE, alpha=0.5)
        if finding in reference:
            drawn = reference_density(reference[finding], edges)
            axes.stairs(drawn, edges, color=_ORANGE, linewidth=1.4)
        axes.set(xlim=(0, 1), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xticks(*_TICKS)
        axes.set_title(readable(finding), fontsize=9, color=_INK)

    return _small_plots(list(probabilities), draw, ("score", "density"), (2.6, 1.7))


def reference_density(reference: Mapping[str, Any], edges: FloatArray) -> FloatArray:
    """Return a reference distribution in other bins, so that it compares with a night bin by bin.

    Its own bins hold equal parts and may be far narrower. Within each the values are taken as
    spread evenly; in the outermost, which have one end only, over three widths of the next one,
    which has the mean of a tail that continues as it began.

    Args:
        reference: `edges` and `counts` of probabilities, as `numeric_distribution` gives them.
        edges: Edges of the new bins, from 0 to 1, ascending, shape (B + 1,).

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


def _small_plots(
    names: Sequence[str],
    draw: Callable[[Axes, str], None],
    labels: tuple[str, str],
    size: tuple[float, float] = (2.3, 2.35),
) -> bytes:
    """Draw one small plot per name, at most four side by side, with the labels of both axes."""
    columns = min(_COLUMNS, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        draw(axes, name)
        _plain(axes)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel(labels[0], fontsize=9, color=_INK)
    figure.supylabel(labels[1], fontsize=9, color=_INK)
    return _png(figure)


def _unit_square(axes: Axes, finding: str, value: float | None) -> None:
    shown = "" if value is None else f"{value:.3f}"
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title(f"{readable(finding)}  {shown}".rstrip(), fontsize=9, color=_INK)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xticks(*_TICKS)
    axes.set_yticks(*_TICKS)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)


def _png(figure: Figure) -> bytes:
    stream = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
