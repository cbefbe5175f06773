"""DICOM sources for tests of ingest: small drawn chests with headers that name somebody."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.dataset.deidentification import KEY_VARIABLE as KEY_VARIABLE
from chexradinet.phantom import encode_radiograph

SECRET = "0123456789abcdef" * 4
SIDE_PX = 32


def chest(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """Return a drawn chest with noise of its own: grey body, dark lungs, bright midline."""
    rows, columns = np.mgrid[0:side, 0:side] / (side - 1)
    image = np.full((side, side), 120.0)
    image[(np.abs(columns - 0.5) < 0.1) | (rows > 0.85)] = 220
    for centre in (0.29, 0.71):
        image[((rows - 0.45) / 0.3) ** 2 + ((columns - centre) / 0.15) ** 2 < 1] = 40
    noise = np.random.default_rng(seed).normal(0, 6, image.shape)
    return np.asarray(np.clip(image + noise, 0, 255), dtype=np.uint8)


def sop_uid(number: int) -> str:
    """Return the SOP Instance UID of a test's X-ray."""
    return f"1.2.826.0.1.3680043.8.498.{7_000_000 + number}"


def dicom(number: int, pixels: NDArray[np.uint8] | None = None, /, **attributes: object) -> bytes:
    """Return the DICOM file of a patient of one's own, with elements over the defaults."""
    elements: dict[str, object] = {
        "SOPInstanceUID": sop_uid(number),
        "StudyInstanceUID": f"1.2.826.0.1.3680043.8.499.{number}",
        "PatientID": f"MRN-{number:04d}",
        **attributes,
    }
    stored = chest(number) if pixels is None else pixels
    return encode_radiograph(stored, uid.ExplicitVRLittleEndian, elements)


def write_dicom(folder: Path, count: int, suffix: str = ".dcm") -> list[str]:
    """Write so many DICOM files and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"xray-{number:04d}{suffix}" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(dicom(number))
    return names


def dicom_config(**settings: object) -> IngestConfig:
    """Return settings for DICOM sources with small model pixels."""
    values: dict[str, object] = {
        "format": "dicom",
        "preprocessing": PreprocessingConfig(image_side=SIDE_PX),
        "num_workers": 1,
        **settings,
    }
    return IngestConfig(**values)  # type: ignore[arg-type]
