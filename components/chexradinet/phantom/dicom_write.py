"""Write a radiograph as DICOM in any transfer syntax that is read: phantoms, tests, benchmarks.

The inverse of `dicom.read_radiograph` up to the grey-level map: what is given here are the integers
that a detector stores.
"""

import io
from collections.abc import Mapping

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from chexradinet.errors import ConfigError

WRITABLE_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)
"""Transfer syntaxes that are written and read."""

LOSSY_SYNTAXES = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
)
"""Those that change pixels."""

_FIRST_PREDICTOR, _OTHER_PREDICTOR = 1, 4


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
            f"cannot write {stored.dtype} pixels as {syntax}; needed are uint8, uint16 or int16 "
            "(JPEG baseline: uint8) and one of dicom_write.WRITABLE_SYNTAXES"
        )
    # Real files hold values that the standard forbids, such as an age without its unit.
    with config.disable_value_validation():
        dataset = _described(stored)
        for keyword, value in (attributes or {}).items():
            if value is None:
                dataset.pop(keyword, None)
            else:
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


def _described(stored: NDArray[np.integer]) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.StudyInstanceUID = uid.generate_uid()
    dataset.SeriesInstanceUID = uid.generate_uid()
    dataset.Modality = "DX"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.PatientID = "phantom"
    dataset.PatientAge = "050Y"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * stored.itemsize
    dataset.BitsStored = 8 if stored.itemsize == 1 else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype == np.int16)
    return dataset


def _encoded(stored: NDArray[np.integer], syntax: uid.UID, bits: int) -> bytes:
    patterns = np.ascontiguousarray(stored)
    if syntax == uid.RLELossless:
        return _run_lengths(patterns)
    if stored.dtype == np.int16:
        patterns = patterns.view(np.uint16) & np.uint16((1 << bits) - 1)
    if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        near = 2 if syntax == uid.JPEGLSNearLossless else 0
        return bytes(imagecodecs.jpegls_encode(patterns, level=near))
    if syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        lossless = syntax == uid.JPEG2000Lossless
        return bytes(
            imagecodecs.jpeg2k_encode(
                patterns,
                level=0 if lossless else 60,
                codecformat="J2K",
                reversible=lossless,
                bitspersample=bits,
            )
        )
    if syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        return bytes(imagecodecs.htj2k_encode(patterns, reversible=syntax != uid.HTJ2K))
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        predictor = _FIRST_PREDICTOR if syntax == uid.JPEGLosslessSV1 else _OTHER_PREDICTOR
        return bytes(
            imagecodecs.jpeg8_encode(
                patterns, lossless=True, predictor=predictor, bitspersample=bits
            )
        )
    return bytes(imagecodecs.jpeg8_encode(patterns, level=95, bitspersample=bits))


def _run_lengths(stored: NDArray[np.integer]) -> bytes:
    """Write one PackBits segment for each byte of each sample, high byte first, rows apart."""
    samples = [stored] if stored.ndim == 2 else [stored[:, :, index] for index in range(3)]
    planes = []
    for sample in samples:
        octets = np.ascontiguousarray(sample).view(np.uint8).reshape(*sample.shape, -1)
        planes += [octets[:, :, index] for index in reversed(range(octets.shape[2]))]
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in p) for p in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
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
    dcmwrite(
        stream,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return stream.getvalue()
