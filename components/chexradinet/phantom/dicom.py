"""Phantom X-rays as DICOM files, and radiographs in any transfer syntax that is read.

`encode_radiograph` is the inverse of `dicom.reader.read_radiograph` up to the grey-level map: it
takes the integers that a detector stores. `write_phantom_inbox` fills an inbox for the night.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from chexradinet.artifacts import writing_file
from chexradinet.errors import ConfigError
from chexradinet.phantom import iter_phantom

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
