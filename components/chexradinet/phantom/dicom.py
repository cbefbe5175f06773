"""Phantom X-rays as DICOM files: an inbox for the nightly run, without any patient in it."""

import hashlib
from pathlib import Path

import numpy as np
from pydicom import uid

from chexradinet.artifacts import writing_file
from chexradinet.phantom import iter_phantom
from chexradinet.phantom.dicom_write import encode_radiograph

SYNTAXES = (uid.ExplicitVRLittleEndian, uid.JPEGLSLossless, uid.RLELossless, uid.JPEG2000Lossless)
"""Transfer syntaxes of the files, in turn; all keep every grey level."""

SPACING_MM = 2.0
"""Distance of the pixels on the detector: a phantom of 192 px is 38 cm wide."""

_GREY_STEP = 16
"""The 8-bit grey values are stored as 12 bits, as detectors do."""


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
