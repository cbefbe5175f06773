"""Pictures of the reports: plots, and radiographs with what the model looked at.

Deterministic: equal inputs give equal bytes, so a rerun of scoring writes the same files. Each plot
has an Agg canvas of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from chexradinet.errors import EvaluationError
from chexradinet.evaluation.classification import Array, FloatArray
from chexradinet.records import Box
from chexradinet.reports import readable

REGION_COLOR = (255, 176, 0)
"""Amber, RGB: the region of the model."""
TRUTH_COLOR = (100, 210, 255)
"""Sky blue, RGB: the reader's box, dashed. The pair differs for every kind of colour vision."""
_MAX_ALPHA = 0.55
_ALPHA_POWER = 1.5
_DASH = 4
_STRIP_ROWS = 64
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
            mark = "os^"[index // len(_ARM_COLORS) % 3]
            axes = panels[readouts.index(row["readout"])]
            axes.vlines(place, min(values), max(values), color=color, linewidth=1.4)
            axes.plot(place, np.mean(values), mark, color=color, markersize=4.5, label=row["arm"])
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


def overlay(
    image: NDArray[np.uint8],
    heatmap: Array | None,
    region: Box | None = None,
    true_boxes: Sequence[Box] = (),
    min_side_px: int = 0,
) -> NDArray[np.uint8]:
    """Draw heatmap and boxes over a radiograph.

    Args:
        image: Grey values, shape (H, W).
        heatmap: Any resolution, shape (h, w); its positive part, over its maximum, sets how
            strongly the colour covers. None, or a map without positive evidence, draws nothing.
        region: The model's box in pixels of the image, drawn with a solid line.
        true_boxes: The reader's boxes in pixels of the image, drawn dashed.
        min_side_px: Enlarge until the shorter side has at least this many pixels.

    Returns:
        RGB, shape (H', W', 3); the aspect ratio is kept.

    Raises:
        EvaluationError: the image is not 8-bit grey, or the heatmap is not a matrix.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise EvaluationError(
            f"image has shape {image.shape} and type {image.dtype}; give one 8-bit grey radiograph"
        )
    factor = max(1.0, min_side_px / min(image.shape))
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else image
    grey = np.asarray(enlarged, dtype=np.uint8)
    strength = None if heatmap is None else evidence(heatmap, size[1], size[0])
    plain = np.asarray(cv2.merge([grey] * 3), dtype=np.uint8)
    canvas = plain if strength is None else _blend(grey, strength)
    thickness = max(1, round(min(size) / 160))
    for box in true_boxes:
        _draw_dashed(canvas, box, factor, thickness)
    if region is not None:
        corners = _corners(region, factor, canvas.shape)
        cv2.rectangle(canvas, corners[0], corners[1], REGION_COLOR, thickness)
    return np.ascontiguousarray(canvas, dtype=np.uint8)


def evidence(heatmap: Array, height: int, width: int) -> NDArray[np.float32]:
    """Return the positive part of a map over its maximum, enlarged to (height, width), in [0, 1].

    All zero if the map has no finite positive value.

    Raises:
        EvaluationError: the heatmap is not a matrix.
    """
    if heatmap.ndim != 2 or not heatmap.size:
        raise EvaluationError(f"heatmap has shape {heatmap.shape}; give one map of shape (h, w)")
    positive = np.nan_to_num(np.asarray(heatmap, dtype=np.float32), nan=0, posinf=0, neginf=0)
    positive = np.maximum(positive, 0)
    highest = float(positive.max())
    if highest <= 0:
        return np.zeros((height, width), dtype=np.float32)
    enlarged = cv2.resize(positive / highest, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(enlarged, dtype=np.float32), 0, 1)


def png_bytes(image: NDArray[np.uint8], compression: int = 6) -> bytes:
    """Return the PNG file of a grey (H, W) or RGB (H, W, 3) image.

    Args:
        image: Grey values or colours.
        compression: From 0, fast, to 9, small.

    Raises:
        EvaluationError: the image is of neither form.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise EvaluationError(f"image is {image.dtype} {image.shape}; give 8-bit grey or RGB")
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    return bytes(encoded.tobytes())


def _blend(grey: NDArray[np.uint8], strength: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cover grey values with colour, strip by strip: what is computed on stays in the cache."""
    inferno = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO)
    tables = cv2.split(np.asarray(inferno[:, :, ::-1], dtype=np.float32))
    planes = [np.empty(grey.shape, np.uint8) for _ in tables]
    for first in range(0, len(grey), _STRIP_ROWS):
        rows = slice(first, first + _STRIP_ROWS)
        levels = np.rint(strength[rows] * 255).astype(np.uint8)
        alpha = _MAX_ALPHA * strength[rows] ** _ALPHA_POWER
        kept = grey[rows] * (1 - alpha)
        for plane, table in zip(planes, tables, strict=True):
            plane[rows] = np.rint(cv2.LUT(levels, table) * alpha + kept)
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _corners(
    box: Box, factor: float, shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the outermost pixels of a half-open box, inside the canvas, as (column, row)."""
    rows = np.clip([round(box.top * factor), round(box.bottom * factor) - 1], 0, shape[0] - 1)
    columns = np.clip([round(box.left * factor), round(box.right * factor) - 1], 0, shape[1] - 1)
    return (int(columns[0]), int(rows[0])), (int(columns[1]), int(rows[1]))


def _draw_dashed(canvas: NDArray[np.uint8], box: Box, factor: float, thickness: int) -> None:
    (left, top), (right, bottom) = _corners(box, factor, canvas.shape)
    dash = _DASH * thickness
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash - 1, right)
        for row in (top, bottom):
            cv2.line(canvas, (start, row), (end, row), TRUTH_COLOR, thickness)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash - 1, bottom)
        for column in (left, right):
            cv2.line(canvas, (column, start), (column, end), TRUTH_COLOR, thickness)
