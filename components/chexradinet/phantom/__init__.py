"""X-ray-like images with planted findings and exact boxes: for demos, tests and controlled trials.

Six findings that differ in place, size and texture, several of them in an image, among distractors
that look a little alike: end-on vessels, tubes, skin folds, breast shadows, ribs, other exposures,
an AP marker. Effusion goes with Cardiomegaly and with Consolidation more often than chance, as in
heart failure and in infection. Every image has its own seed, so image 7 is the same in a set of 10
and of 10,000, and any number of processes can draw a part each.

`encode_radiograph` writes a radiograph as DICOM in any transfer syntax that is read: the inverse of
`dicom.reader.read_radiograph` up to the grey-level map, it takes the integers that a detector
stores. `write_phantom_inbox` fills an inbox for the night.

Not a model of any disease: nothing measured on it says how well anything works on patients.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from chexradinet.artifacts import CsvWriter, writing_file
from chexradinet.config import require
from chexradinet.errors import ConfigError
from chexradinet.findings import NO_FINDING
from chexradinet.phantom.chest import (
    PHANTOM_FINDINGS,
    PLANTERS,
    Chest,
    Plane,
    add_spot,
    box_of,
    draw_body,
    draw_chest,
    place_in_lung,
    smooth_noise,
    soft,
)
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
WRITABLE_SYNTAXES = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit),
    *(uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless),
    *(uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
)
"""Transfer syntaxes that are written and read."""
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.JPEGLSLossless, uid.RLELossless, uid.JPEG2000Lossless)
"""Transfer syntaxes of the files, in turn; all keep every grey level."""
SPACING_MM = 2.0
"""Distance of the pixels on the detector: a phantom of 192 px is 38 cm wide."""
_GREY_STEP = 16
"""The 8-bit grey values are stored as 12 bits, as detectors do."""


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


def write_phantom_inbox(folder: Path, num_images: int, image_side: int, seed: int) -> None:
    """Write phantom X-rays as DICOM files named `000000.dcm` and so on.

    Equal arguments give equal files. Patients have one to three X-rays, each a study of its own.

    Args:
        folder: Made if it is not there.
        num_images: How many files.
        image_side: Rows and columns, in pixels, at least 64.
        seed: Take another than the training set's: other seeds are other patients.

    Raises:
        ConfigError: an argument is out of range.
    """
    for index, drawn in enumerate(iter_phantom(num_images, image_side, seed)):
        name = f"{seed}/{index}"
        content = encode_radiograph(
            drawn.pixels.astype(np.uint16) * _GREY_STEP,
            SYNTAXES[index % len(SYNTAXES)],
            {
                "SOPInstanceUID": _uid(f"image {name}"),
                "StudyInstanceUID": _uid(f"study {name}"),
                "SeriesInstanceUID": _uid(f"series {name}"),
                "PatientID": f"PHANTOM-{seed}-{drawn.patient}",
                "PatientAge": f"{drawn.age:03d}Y",
                "PatientSex": drawn.sex,
                "ViewPosition": drawn.view.value,
                "Manufacturer": "Phantom",
                "WindowCenter": str(128 * _GREY_STEP),
                "WindowWidth": str(256 * _GREY_STEP),
                "ImagerPixelSpacing": [str(SPACING_MM), str(SPACING_MM)],
            },
        )
        with writing_file(folder / f"{index:06d}.dcm") as temporary:
            temporary.write_bytes(content)


def _uid(name: str) -> str:
    """Return a UID of the UUID-derived root that depends on the name alone."""
    number = int.from_bytes(hashlib.sha256(f"chexradinet phantom {name}".encode()).digest()[:16])
    return f"2.25.{number}"


def encode_radiograph(
    stored: NDArray[np.integer],
    syntax: uid.UID,
    attributes: Mapping[str, object] | None = None,
) -> bytes:
    """Return a DICOM file.

    Args:
        stored: Grey values of shape (H, W) or colour of shape (H, W, 3); uint8, uint16 or int16.
        syntax: One of `WRITABLE_SYNTAXES`; JPEG baseline needs uint8, JPEG extended 12 bits.
        attributes: Elements by keyword, over the defaults of a frontal chest radiograph; None
            removes one.

    Raises:
        ConfigError: the transfer syntax or the pixels cannot be written.
    """
    types = (np.uint8,) if syntax == uid.JPEGBaseline8Bit else (np.uint8, np.uint16, np.int16)
    if syntax not in WRITABLE_SYNTAXES or stored.dtype not in types:
        raise ConfigError(
            f"cannot write {stored.dtype} pixels as {syntax}; use uint8, uint16 or int16 "
            "(JPEG baseline: uint8) and one of WRITABLE_SYNTAXES"
        )
    # Real files hold values that the standard forbids, such as an age without its unit.
    with config.disable_value_validation():
        dataset = Dataset()
        for keyword, value in {**_described(stored), **(attributes or {})}.items():
            if value is not None:
                setattr(dataset, keyword, value)
        _store(dataset, stored, syntax)
        return _file(dataset, syntax)


def _store(dataset: Dataset, stored: NDArray[np.integer], syntax: uid.UID) -> None:
    if syntax.is_encapsulated:
        frame = _encoded(stored, syntax, int(dataset.BitsStored))
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        ordered = stored.dtype.newbyteorder("<" if syntax.is_little_endian else ">")
        dataset.PixelData = stored.astype(ordered).tobytes()
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
        dataset["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"


def _described(stored: NDArray[np.integer]) -> dict[str, object]:
    bits = 8 if stored.itemsize == 1 else 12
    return {
        "SOPClassUID": uid.DigitalXRayImageStorageForPresentation,
        **{f"{level}InstanceUID": uid.generate_uid() for level in ("SOP", "Study", "Series")},
        **{"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"},
        **{"PatientID": "phantom", "PatientAge": "050Y"},
        **{"Rows": stored.shape[0], "Columns": stored.shape[1]},
        "SamplesPerPixel": 1 if stored.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if stored.ndim == 2 else "RGB",
        "PlanarConfiguration": None if stored.ndim == 2 else 0,
        **{"BitsAllocated": 8 * stored.itemsize, "BitsStored": bits, "HighBit": bits - 1},
        "PixelRepresentation": int(stored.dtype == np.int16),
    }


def _encoded(stored: NDArray[np.integer], syntax: uid.UID, bits: int) -> bytes:
    patterns = np.ascontiguousarray(stored)
    if syntax == uid.RLELossless:
        return _run_lengths(patterns)
    if stored.dtype == np.int16:
        patterns = patterns.view(np.uint16) & np.uint16((1 << bits) - 1)
    if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        near = 2 if syntax == uid.JPEGLSNearLossless else 0
        return bytes(imagecodecs.jpegls_encode(patterns, level=near))
    options: dict[str, Any] = {"bitspersample": bits}
    if syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        lossless = syntax == uid.JPEG2000Lossless
        options |= {"level": 0 if lossless else 60, "codecformat": "J2K", "reversible": lossless}
        return bytes(imagecodecs.jpeg2k_encode(patterns, **options))
    if syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        return bytes(imagecodecs.htj2k_encode(patterns, reversible=syntax != uid.HTJ2K))
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        options |= {"lossless": True, "predictor": 1 if syntax == uid.JPEGLosslessSV1 else 4}
        return bytes(imagecodecs.jpeg8_encode(patterns, **options))
    return bytes(imagecodecs.jpeg8_encode(patterns, level=95, **options))


def _run_lengths(stored: NDArray[np.integer]) -> bytes:
    """Write one PackBits segment for each byte of each sample, high byte first, rows apart."""
    samples = [stored] if stored.ndim == 2 else [stored[:, :, index] for index in range(3)]
    planes = []
    for sample in samples:
        octets = np.ascontiguousarray(sample).view(np.uint8).reshape(*sample.shape, -1)
        planes += [octets[:, :, index] for index in reversed(range(octets.shape[2]))]
    packed = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in p) for p in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in packed]
    starts = np.cumsum([64, *map(len, segments[:-1])])
    head = np.zeros(16, dtype="<u4")
    head[0], head[1 : len(starts) + 1] = len(segments), starts
    return head.tobytes() + b"".join(segments)


def _file(dataset: Dataset, syntax: uid.UID) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", uid.SecondaryCaptureImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or uid.generate_uid()
    meta.ImplementationClassUID = uid.PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
