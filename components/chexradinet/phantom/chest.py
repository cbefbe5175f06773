"""Chest of the phantom: body, lungs, mediastinum, ribs, vessels, distractors, planted findings.

Coordinates are thorax coordinates: `across` grows to the right of the image (the patient's left),
`down` to the feet, both 0 at the centre of the thorax and about 1 over the whole image. Density is
0 for air and about 1 for the densest bone; it becomes grey levels only in `phantom.expose`.

Findings return their exact boxes. They differ in place (basal, apical, cardiac, anywhere in a
lung), in size (Nodule 0.7% of the image, Cardiomegaly 10%) and in texture (a mass is fine-grained
and sharp, a consolidation fuzzy with dark bronchi, an effusion homogeneous, a pneumothorax without
vessels).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.records import Box

Plane = NDArray[np.floating[Any]]
"""Values, 32-bit for speed, of shape (S, S) or (h, w)."""
PHANTOM_FINDINGS = ("Nodule", "Mass", "Consolidation", "Effusion", "Pneumothorax", "Cardiomegaly")
"""Canonical names, in the order of the label columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What all X-rays of one patient share."""

    lung_half_width: tuple[float, float]
    """Half widths of the lungs on the left and right of the image."""
    lung_half_height: float
    heart_half_width: float
    heart_half_height: float
    rib_frequency: float
    rib_phase: float
    breast_density: float
    """Density of the breast shadows; 0 for none."""


@dataclass(slots=True, kw_only=True)
class Lung:
    """One lung, its own coordinates 0 at its centre."""

    side: int
    """-1 on the left of the image, 1 on the right."""
    mask: Plane
    """1 inside, 0 outside, soft at the edge."""
    across: Plane
    down: Plane
    radius: Plane
    """1 on the outline, smaller inside."""
    half_width: float
    half_height: float
    base: float
    """Where the dome of the diaphragm stands, in thorax coordinates."""


@dataclass(slots=True, kw_only=True)
class Chest:
    """A chest while findings are planted into it."""

    density: Plane
    vessels: Plane
    """Lung texture, added last so that a finding can take its place."""
    lungs: tuple[Lung, Lung]
    heart: Plane
    """1 inside the heart, soft at the edge."""
    heart_radius: Plane
    across: Plane
    down: Plane

    @property
    def side_px(self) -> int:
        """Height and width in pixels."""
        return len(self.density)


def soft(distance: Plane, slope: float) -> Plane:
    """Return a soft step: 0 far below zero, 1 far above, `slope` steep at zero."""
    step: Plane = np.clip(distance * slope + 0.5, 0, 1)
    return step


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], num_knots: int) -> Plane:
    """Return unit noise interpolated between `num_knots` knots along each axis."""
    knots = rng.standard_normal((max(2, num_knots), max(2, num_knots)), dtype=np.float32)
    return np.asarray(cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def draw_body(rng: np.random.Generator) -> Body:
    """Draw what all X-rays of a patient share."""
    return Body(
        lung_half_width=(rng.uniform(0.14, 0.165), rng.uniform(0.13, 0.155)),
        lung_half_height=rng.uniform(0.32, 0.36),
        heart_half_width=rng.uniform(0.115, 0.15),
        heart_half_height=rng.uniform(0.115, 0.145),
        rib_frequency=rng.uniform(50, 58),
        rib_phase=rng.uniform(0, 2 * np.pi),
        breast_density=rng.uniform(0.02, 0.05) if rng.random() < 0.5 else 0.0,
    )


def draw_chest(rng: np.random.Generator, body: Body, side_px: int, heart_factor: float) -> Chest:
    """Draw one exposure of a body, without findings.

    Args:
        rng: Random source of this exposure: position, tilt, breath and textures.
        body: The patient.
        side_px: Height and width of the image.
        heart_factor: Factor on the heart's width; above 1 for Cardiomegaly and for an AP view.
    """
    across, down = _thorax_coordinates(rng, side_px)
    # Squares of squares: NumPy takes ten times as long for a fourth power.
    outline = ((across / 0.47) ** 2) ** 2 + (((down - 0.15) / 0.72) ** 2) ** 2
    inside = soft(1 - outline, 4)
    density = 0.05 + 0.5 * inside
    breath = rng.uniform(-0.02, 0.03)
    lungs = tuple(_draw_lung(body, side, across, down, breath) for side in (-1, 1))
    air = np.maximum(lungs[0].mask, lungs[1].mask)
    density -= 0.32 * air
    heart_radius = _heart_radius(body, across, down, heart_factor)
    heart = soft(1 - heart_radius, 5)
    density += 0.27 * np.maximum(heart, 0.9 * _mediastinum(across, down)) * np.maximum(air, 0.25)
    _add_spine_and_trachea(density, across, down, rng.uniform(0, 1))
    _add_bones(density, body, across, down, inside)
    _add_breasts(density, body, lungs)
    return Chest(
        density=density,
        vessels=_vessels(rng, across, down, air),
        lungs=(lungs[0], lungs[1]),
        heart=heart,
        heart_radius=heart_radius,
        across=across,
        down=down,
    )


def _thorax_coordinates(rng: np.random.Generator, side_px: int) -> tuple[Plane, Plane]:
    places = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px - 0.5
    centre = rng.uniform(-0.035, 0.035, 2).astype(np.float32)
    angle, scale = np.deg2rad(rng.uniform(-4, 4)), rng.uniform(0.94, 1.06)
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    columns, rows = (places - centre[0])[None, :], (places - centre[1])[:, None]
    return cosine * columns + sine * rows, cosine * rows - sine * columns


def _draw_lung(body: Body, side: int, across: Plane, down: Plane, breath: float) -> Lung:
    half_width = body.lung_half_width[0 if side < 0 else 1]
    own_across = across - side * (0.195 + 0.06 * (down + 0.1))
    own_down = down + 0.02
    height = (own_down / body.lung_half_height) ** 2
    height *= height
    radius = (own_across / half_width) ** 2 + height * (0.4 + 0.6 * height)
    # The dome on the left of the image lies over the liver and stands higher.
    base = 0.25 + breath - (0.015 if side < 0 else 0.0)
    above_diaphragm = soft(base + 1.5 * own_across**2 - down, 60)
    return Lung(
        side=side,
        mask=soft(1 - radius, 6) * above_diaphragm,
        across=own_across,
        down=own_down,
        radius=radius,
        half_width=half_width,
        half_height=body.lung_half_height,
        base=base,
    )


def _heart_radius(body: Body, across: Plane, down: Plane, factor: float) -> Plane:
    x = (across - 0.045) / (body.heart_half_width * factor)
    y = (down - np.float32(0.15)) / (body.heart_half_height * (1 + 0.25 * (factor - 1)))
    return x * x + y * y - 0.3 * x * y


def _mediastinum(across: Plane, down: Plane) -> Plane:
    return soft(0.055 + 0.01 * down - np.abs(across), 50) * soft(down + 0.36, 20)


def _add_spine_and_trachea(density: Plane, across: Plane, down: Plane, phase: float) -> None:
    middle = np.flatnonzero((np.abs(across) < 0.06).any(axis=0))
    band = slice(int(middle[0]), int(middle[-1]) + 1)
    x, y = across[:, band], down[:, band]
    discs = 1 + 0.35 * np.sin((y + phase) * 75)
    density[:, band] += 0.07 * soft(0.032 - np.abs(x), 60) * discs
    density[:, band] -= 0.10 * soft(0.016 - np.abs(x), 90) * soft(-0.12 - y, 25)


def _add_bones(density: Plane, body: Body, across: Plane, down: Plane, inside: Plane) -> None:
    lateral = np.abs(across)
    arc = down - 1.1 * across * across + 0.45 * lateral
    ribs = np.sin(arc * body.rib_frequency + body.rib_phase)
    density += 0.045 * np.maximum(ribs, 0) * inside * soft(0.31 - np.abs(down + 0.06), 12)
    top = len(density) // 2
    x, y = lateral[:top], down[:top]
    collar = soft(0.014 - np.abs(y + 0.33 - 0.10 * x), 90) * soft(x - 0.04, 40)
    density[:top] += 0.08 * collar * soft(0.36 - x, 40)


def _add_breasts(density: Plane, body: Body, lungs: tuple[Lung, ...]) -> None:
    if body.breast_density:
        for lung in lungs:
            distance = (lung.across / 0.15) ** 2 + ((lung.down - 0.17) / 0.14) ** 2
            density += body.breast_density * soft(1 - distance, 3)


def _vessels(rng: np.random.Generator, across: Plane, down: Plane, air: Plane) -> Plane:
    shape = (len(air), len(air))
    texture = 0.020 * smooth_noise(rng, shape, 24) + 0.012 * smooth_noise(rng, shape, 48)
    from_hila = (np.abs(across) - 0.08) ** 2 + (down - 0.02) ** 2
    crowded: Plane = np.maximum(0.6, 1.2 - from_hila * 12)
    return texture * crowded * air


def box_of(mask: Plane, threshold: float, corner: tuple[int, int] = (0, 0)) -> Box | None:
    """Return the tightest box around all pixels above a threshold, or None if there is none.

    Args:
        mask: Values of a patch, shape (h, w).
        threshold: What a pixel must exceed.
        corner: Row and column of the patch's first pixel in the image.
    """
    above = mask > threshold
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if not len(rows):
        return None
    top, left = corner
    sides = (top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1)
    return Box(*map(float, sides))


def place_in_lung(rng: np.random.Generator, chest: Chest) -> tuple[int, int]:
    """Return row and column of a random point inside one lung and clear of the heart."""
    step = max(1, chest.side_px // 32)
    grid = (slice(None, None, step), slice(None, None, step))
    clear = chest.heart[grid] < 0.3
    inside = np.argwhere((chest.lungs[rng.integers(2)].mask[grid] > 0.95) & clear)
    row, column = inside[rng.integers(len(inside))] * step + rng.integers(0, step, 2)
    return int(row), int(column)


def _patch(chest: Chest, centre: tuple[int, int], radius: float) -> tuple[slice, slice]:
    reach = int(np.ceil(radius))
    rows, columns = (
        slice(max(0, place - reach), min(chest.side_px, place + reach + 1)) for place in centre
    )
    return rows, columns


def _offsets(patch: tuple[slice, slice], centre: tuple[int, int]) -> tuple[Plane, Plane]:
    rows = np.arange(patch[0].start, patch[0].stop, dtype=np.float32)[:, None] - centre[0]
    columns = np.arange(patch[1].start, patch[1].stop, dtype=np.float32)[None, :] - centre[1]
    return rows, columns


def _air(chest: Chest, patch: tuple[slice, slice]) -> Plane:
    return np.maximum(chest.lungs[0].mask[patch], chest.lungs[1].mask[patch])


def add_spot(chest: Chest, centre: tuple[int, int], radius: float, density: float) -> Box | None:
    """Add a smooth round spot: a nodule, or an end-on vessel if it is small."""
    patch = _patch(chest, centre, radius + 2)
    rows, columns = _offsets(patch, centre)
    distance = (rows * rows + columns * columns) / (radius * radius)
    shade = soft(1 - distance, 3) * (1 - 0.25 * np.minimum(distance, 1))
    chest.density[patch] += density * shade
    return box_of(1 - distance, 0.0, (patch[0].start, patch[1].start))


def add_nodule(rng: np.random.Generator, chest: Chest) -> Box | None:
    """Plant a small, round, smooth density in a lung."""
    radius = rng.uniform(0.034, 0.052) * chest.side_px
    return add_spot(chest, place_in_lung(rng, chest), radius, 0.40)


def add_mass(rng: np.random.Generator, chest: Chest) -> Box | None:
    """Plant a lobulated, sharp-edged, fine-grained density in a lung."""
    centre = place_in_lung(rng, chest)
    radius = rng.uniform(0.058, 0.095) * chest.side_px
    patch = _patch(chest, centre, 1.3 * radius)
    rows, columns = _offsets(patch, centre)
    angle = np.arctan2(rows, columns)
    phases = rng.uniform(0, 2 * np.pi, 2).tolist()
    lobes = 1 + 0.13 * np.sin(3 * angle + phases[0]) + 0.09 * np.sin(5 * angle + phases[1])
    shape = soft(1 - np.hypot(rows, columns) / (radius * lobes), 7)
    grain = smooth_noise(rng, shape.shape, max(4, round(len(shape) * 110 / chest.side_px)))
    shade = 0.65 + 0.35 * _air(chest, patch)  # a mass over the diaphragm shows less
    chest.density[patch] += shape * shade * (0.32 + 0.09 * grain)
    return box_of(shape, 0.5, (patch[0].start, patch[1].start))


def add_consolidation(rng: np.random.Generator, chest: Chest) -> Box | None:
    """Plant a fuzzy, patchy density with dark bronchi, mostly within the lungs."""
    centre = place_in_lung(rng, chest)
    half_height, half_width = (rng.uniform(0.07, 0.13) * chest.side_px for _ in range(2))
    patch = _patch(chest, centre, 1.3 * max(half_height, half_width))
    rows, columns = _offsets(patch, centre)
    distance = (rows / half_height) ** 2 + (columns / half_width) ** 2
    size = distance.shape
    distance += 0.35 * smooth_noise(rng, size, 5)
    shape = soft(1 - distance, 1.4) * (0.25 + 0.75 * _air(chest, patch))
    angle = rng.uniform(0, np.pi)
    along = (rows * math.sin(angle) + columns * math.cos(angle)) * (130 / chest.side_px)
    bronchi = np.sin(along + 2 * smooth_noise(rng, size, 4)) > 0.6
    grain = smooth_noise(rng, size, max(3, round(size[0] * 50 / chest.side_px)))
    chest.density[patch] += shape * (0.29 + 0.07 * grain - 0.06 * bronchi)
    return box_of(shape, 0.35, (patch[0].start, patch[1].start))


def add_effusion(rng: np.random.Generator, chest: Chest) -> Box | None:
    """Fill the base of one lung with homogeneous fluid that climbs at the chest wall."""
    lung: Lung = chest.lungs[rng.integers(2)]
    level = lung.base - rng.uniform(0.03, 0.14)
    outwards = lung.side * lung.across
    surface = chest.down - level + 0.6 * (outwards + 0.03)
    fluid = soft(surface, 25) * soft(1.12 - lung.radius, 6)
    fluid *= soft(lung.base + 0.06 - chest.down, 20)
    strength = rng.uniform(0.09, 0.165)
    chest.density += fluid * (strength * lung.mask + 0.02 * (1 - lung.mask))
    chest.vessels *= 1 - fluid
    return box_of(fluid * lung.mask, 0.4)


def add_pneumothorax(rng: np.random.Generator, chest: Chest) -> Box | None:
    """Draw one lung back from apex and chest wall: darker, no vessels, a thin pleural line."""
    lung: Lung = chest.lungs[rng.integers(2)]
    depth = rng.uniform(0.22, 0.48)
    shifted = (lung.across + lung.side * lung.half_width * depth) / lung.half_width
    edge = shifted**2 + ((lung.down - 0.06) / lung.half_height) ** 2
    outwards = lung.side * lung.across
    upper = lung.mask * soft(0.12 - chest.down, 20)
    gap = upper * soft(edge - 1, 8)
    gap *= soft(outwards + 0.35 * lung.half_width - 0.25 * chest.down - 0.02, 40)
    line = np.maximum(1 - np.abs(edge - 1) * 14, 0) * upper
    line *= soft(outwards + 0.2 * lung.half_width, 40)
    strength = rng.uniform(0.65, 1.0)
    chest.density += strength * (0.115 * line - 0.105 * gap)
    chest.vessels *= 1 - gap
    return box_of(gap, 0.5)


PLANTERS: dict[str, Callable[[np.random.Generator, Chest], Box | None]] = {
    "Pneumothorax": add_pneumothorax,
    "Effusion": add_effusion,
    "Consolidation": add_consolidation,
    "Mass": add_mass,
    "Nodule": add_nodule,
}
"""What plants each finding, in the order of planting; Cardiomegaly is drawn with the heart."""
