"""Normal chest of the phantom: body, lungs, mediastinum, ribs, vessels and harmless distractors.

Coordinates are thorax coordinates: `across` grows to the right of the image (the patient's left),
`down` to the feet, both 0 at the centre of the thorax and about 1 over the whole image. Density is
0 for air and about 1 for the densest bone; it becomes grey levels only in `phantom.expose`.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
"""Values, 32-bit for speed, of shape (S, S) or (h, w)."""


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
