"""X-ray-like images with planted findings and exact boxes: for demos, tests and controlled trials.

Six findings that differ in place, size and texture, several of them in an image, among distractors
that look a little alike: end-on vessels, tubes, skin folds, breast shadows, ribs, other exposures,
an AP marker. Effusion goes with Cardiomegaly and with Consolidation more often than chance, as in
heart failure and in infection. Every image has its own seed, so image 7 is the same in a set of 10
and of 10,000, and any number of processes can draw a part each.

Not a model of any disease: nothing measured on it says how well anything works on patients.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexradinet.artifacts import CsvWriter
from chexradinet.config import require
from chexradinet.errors import ConfigError
from chexradinet.findings import NO_FINDING
from chexradinet.phantom.anatomy import Chest, Plane, draw_body, draw_chest, smooth_noise, soft
from chexradinet.phantom.findings import PHANTOM_FINDINGS, PLANTERS, add_spot, box_of, place_in_lung
from chexradinet.records import LabelledBox, Split, View

AP_PREVALENCE = 0.4
"""Part of the views that is AP when it does not depend on the labels."""

_THRESHOLD = 0.8416
"""Threshold of a unit normal latent: a fifth of the images has a given finding."""
_IMAGES_OF_BLOCK = (0, 1, 1, 2, 2, 2)
"""Patients come in blocks of three, with one, two and three X-rays."""
_SPLITS_OF_BLOCK = (Split.TRAIN,) * 4 + (Split.VALIDATION, Split.TEST)
"""Splits of six blocks in turn: two thirds, a sixth, a sixth of the images."""
_TABLE, _PATIENT = "labels.csv", "phantom-"
_COLUMNS = ("file", "patient", "findings", "view", "age", "sex", "split", "boxes")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomImage:
    """One image with all that is known of it."""

    pixels: NDArray[np.uint8]
    """Shape (S, S)."""
    boxes: tuple[LabelledBox, ...]
    """One for each finding that is there, in pixels of the image."""
    view: View
    patient: int
    split: Split
    age: int
    sex: str

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings that are there."""
        return tuple(item.finding for item in self.boxes)


def iter_phantom(
    num_images: int, image_side: int, seed: int, *, shortcut: float = 0.0
) -> Iterator[PhantomImage]:
    """Yield phantom images one by one.

    Args:
        num_images: How many, at least 1.
        image_side: Height and width in pixels, at least 64.
        seed: Random seed; other seeds give other patients.
        shortcut: In [0, 1]: 0 makes the view independent of the labels; at 1, nine in ten images
            with Consolidation are AP and one in ten without, so that a model can cheat.

    Raises:
        ConfigError: an argument is out of range.
    """
    require(num_images >= 1, "num_images", num_images, "at least 1")
    require(64 <= image_side <= 2048, "image_side", image_side, "in [64, 2048] px")
    require(0 <= shortcut <= 1, "shortcut", shortcut, "in [0, 1]")
    for index in range(num_images):
        yield draw_phantom(index, image_side, seed, shortcut)


def draw_phantom(index: int, image_side: int, seed: int, shortcut: float) -> PhantomImage:
    """Draw image `index` of a seed; the others need not be drawn."""
    block, place = divmod(index, len(_IMAGES_OF_BLOCK))
    patient = 3 * block + _IMAGES_OF_BLOCK[place]
    of_patient = np.random.default_rng([seed, 1, patient])
    rng = np.random.default_rng([seed, 2, index])
    body = draw_body(of_patient)
    wanted = draw_labels(rng)
    chance = AP_PREVALENCE + shortcut * (0.5 if "Consolidation" in wanted else -0.3)
    view = View.AP if rng.random() < chance else View.PA
    large = rng.uniform(1.15, 1.45) if "Cardiomegaly" in wanted else 1.0
    chest = draw_chest(rng, body, image_side, large * (1.06 if view is View.AP else 1.0))
    return PhantomImage(
        boxes=_plant(rng, chest, wanted),
        pixels=expose(rng, chest, view),
        view=view,
        patient=patient,
        split=_SPLITS_OF_BLOCK[block % len(_SPLITS_OF_BLOCK)],
        age=int(of_patient.integers(18, 91)),
        sex="F" if body.breast_density else "M",
    )


def draw_labels(rng: np.random.Generator) -> set[str]:
    """Draw the findings of one image: each in a fifth of them, coupled by two common causes."""
    own = dict(zip(PHANTOM_FINDINGS, rng.standard_normal(len(PHANTOM_FINDINGS)), strict=True))
    heart_failure, infection = rng.standard_normal(2)
    own["Effusion"] = 0.6 * own["Effusion"] + 0.55 * heart_failure + 0.55 * infection
    own["Cardiomegaly"] = 0.75 * own["Cardiomegaly"] + 0.65 * heart_failure
    own["Consolidation"] = 0.75 * own["Consolidation"] + 0.65 * infection
    return {name for name, latent in own.items() if latent > _THRESHOLD}


def _plant(rng: np.random.Generator, chest: Chest, wanted: set[str]) -> tuple[LabelledBox, ...]:
    _add_distractors(rng, chest)
    planted = {"Cardiomegaly": box_of(1 - chest.heart_radius, 0.0)}
    for name, plant in PLANTERS.items():
        planted[name] = plant(rng, chest) if name in wanted else None
    # A finding of which nothing shows is not labelled.
    return tuple(
        LabelledBox(name, box)
        for name in PHANTOM_FINDINGS
        if name in wanted and (box := planted[name]) is not None
    )


def _add_distractors(rng: np.random.Generator, chest: Chest) -> None:
    for _ in range(rng.integers(0, 4)):  # end-on vessels, smaller and fainter than nodules
        radius = rng.uniform(0.009, 0.015) * chest.side_px
        add_spot(chest, place_in_lung(rng, chest), radius, 0.12)
    if rng.random() < 0.25:  # a tube
        start, slope = rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.3)
        beside = np.abs(chest.across - start - slope * chest.down)
        chest.density += 0.12 * soft(0.004 - beside, 150) * (chest.down < rng.uniform(-0.1, 0.3))
    if rng.random() < 0.12:  # a skin fold, a line like that of a pneumothorax
        start, side = rng.uniform(0.2, 0.3), 1 if rng.random() < 0.5 else -1
        fold = side * chest.across - start + 0.3 * chest.down**2
        chest.density -= 0.05 * soft(fold, 120) * soft(0.03 - fold, 40)


def expose(rng: np.random.Generator, chest: Chest, view: View) -> NDArray[np.uint8]:
    """Turn density into grey levels: scatter, noise, contrast, brightness, and the AP marker."""
    side = chest.side_px
    shape = (side, side)
    density: Plane = chest.density + chest.vessels + 0.03 * smooth_noise(rng, shape, 3)
    noise = rng.uniform(0.012, 0.03)
    density += noise * rng.standard_normal(shape, dtype=np.float32)
    portable = view is View.AP
    gamma = rng.uniform(0.75, 1.25) * (0.85 if portable else 1.0)
    gain, offset = rng.uniform(0.85, 1.1), rng.uniform(-0.03, 0.06) + (0.04 if portable else 0.0)
    # A table of 4,096 levels is much cheaper than a power of every pixel.
    curve = np.linspace(0, 1, 4096) ** gamma * gain + offset
    levels = (np.clip(curve, 0, 1) * 255).astype(np.uint8)
    pixels = levels[(np.clip(density, 0, 1) * 4095).astype(np.int16)]
    if portable:
        unit = max(2, side // 40)
        pixels[2 * unit : 4 * unit, side - 5 * unit : side - 2 * unit] = 242
    return pixels


def write_phantom(
    folder: Path, num_images: int, image_side: int, seed: int, *, shortcut: float = 0.0
) -> None:
    """Write phantom images as PNG files with `labels.csv` in the format of `generic`.

    The splits are by patient: two thirds of the images train, a sixth validates, a sixth tests.
    Other arguments are those of `iter_phantom`.

    Raises:
        ConfigError: an argument is out of range, or `folder` holds anything but older phantom
            images.
    """
    _require_phantom(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / _TABLE).open("w", encoding="utf-8", newline="") as stream:
        writer = CsvWriter(stream)
        writer.writerow(_COLUMNS)
        images = iter_phantom(num_images, image_side, seed, shortcut=shortcut)
        for index, item in enumerate(images):
            file = f"images/{index:06d}.png"
            Image.fromarray(item.pixels).save(folder / file)
            boxes = [{"finding": box.finding, **asdict(box.box)} for box in item.boxes]
            patient = f"{_PATIENT}{seed}-{item.patient:06d}"
            findings = "|".join(item.findings) or NO_FINDING
            known = (item.view.value, item.age, item.sex, item.split.value)
            writer.writerow([file, patient, findings, *known, json.dumps(boxes) if boxes else ""])


def _require_phantom(folder: Path) -> None:
    """Refuse a folder in which writing would replace somebody's images or label table."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the path of a folder to make")
    if not folder.exists() or next(folder.iterdir(), None) is None:
        return
    table = folder / _TABLE
    rows = table.read_text("utf-8", "replace").splitlines() if table.is_file() else []
    head, first, *_ = [*rows, "", ""]
    if head != ",".join(_COLUMNS) or f",{_PATIENT}" not in first:
        raise ConfigError(
            f"{folder} is not empty and holds no phantom images, so nothing in it is replaced; "
            "give another path, or empty it yourself"
        )
