"""Findings of the phantom: each is planted into a chest and returns its exact box.

They differ in place (basal, apical, cardiac, anywhere in a lung), in size (Nodule 0.7% of the
image, Cardiomegaly 10%) and in texture (a mass is fine-grained and sharp, a consolidation fuzzy
with dark bronchi, an effusion homogeneous, a pneumothorax without vessels).
"""

import math
from collections.abc import Callable

import numpy as np

from chexradinet.phantom.anatomy import Chest, Lung, Plane, smooth_noise, soft
from chexradinet.records import Box

PHANTOM_FINDINGS = ("Nodule", "Mass", "Consolidation", "Effusion", "Pneumothorax", "Cardiomegaly")
"""Canonical names, in the order of the label columns."""


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
