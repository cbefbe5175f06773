"""Read damaged DICOM files: `python -m tests.integration.dicom_mutations SEED COUNT [FOLDER]`.

Bytes of files that were written, and of the real ones in a folder, are changed. A rejection that
quotes the patient's name is an error too.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig, PreprocessingConfig, QualityConfig
from chexradinet.dataset.quality import gate
from chexradinet.dicom.reader import read_radiograph, to_model
from chexradinet.errors import RejectedImageError
from chexradinet.phantom import WRITABLE_SYNTAXES, encode_radiograph
from tests.dicom_files import with_pixel_bytes
from tests.integration.mutations import read_cases, with_changed_bytes

PATIENT_NAME = "Müller^Łucja"
REAL_PIXELS = 250_000
# Most bytes of a file are pixels; headers and the heads of streams hold what can go wrong.
_REGIONS = ((0, 1200), (0, 1 << 40), (600, 1600))
_NAMED = {
    "PatientName": PATIENT_NAME,
    "SpecificCharacterSet": "ISO_IR 192",
    "WindowCenter": [2048, 1000],
    "WindowWidth": [4096, 500],
    "PixelPaddingValue": 0,
    "ImagerPixelSpacing": [0.14, 0.14],
}


def lookup_table() -> Dataset:
    """Return an item of a Modality or VOI LUT Sequence for 12 bits."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [min(value * 16, 65535) for value in range(4096)]
    item["LUTData"].VR = "US"
    return item


def written_files() -> list[bytes]:
    """Return small files of each transfer syntax, with even and odd sides, and of other kinds."""
    files = []
    for rows, columns in ((48, 40), (47, 39)):
        grey = drawn(rows, columns)
        octets = (grey >> 4).astype(np.uint8)
        for syntax in WRITABLE_SYNTAXES:
            stored = octets if syntax == uid.JPEGBaseline8Bit else grey
            files.append(encode_radiograph(stored, syntax, _NAMED))
        files += _colour_files(octets)
    grey = drawn(48, 40)
    plain = uid.ExplicitVRLittleEndian
    table = [lookup_table()]
    luts = {"ModalityLUTSequence": table, "VOILUTSequence": table, **_NAMED}
    files += [encode_radiograph(grey, syntax, luts) for syntax in (plain, uid.ExplicitVRBigEndian)]
    files.append(encode_radiograph((grey - 2048).view(np.int16), plain, _NAMED))
    files.append(encode_radiograph(grey, uid.ImplicitVRLittleEndian, _NAMED)[132:])
    return files


def drawn(rows: int, columns: int) -> NDArray[np.uint16]:
    """Return a 12-bit scene with noise."""
    row, column = np.mgrid[0:rows, 0:columns]
    noise = np.random.default_rng(5).normal(0, 8, row.shape)
    values = 2048 + 1500 * np.sin(column / 9) * np.cos(row / 7) + noise
    return np.asarray(values, dtype=np.uint16)


def _colour_files(octets: NDArray[np.uint8]) -> list[bytes]:
    """Return files of colour, of shared colour, with a palette, and of 8 bits in big endian."""
    plain = uid.ExplicitVRLittleEndian
    colour = np.stack([octets, octets // 2, 255 - octets], axis=-1)
    shared = {**_NAMED, "PhotometricInterpretation": "YBR_FULL_422"}
    native = encode_radiograph(colour, plain, shared)
    palette: dict[str, object] = {**_NAMED, "PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = bytes(range(256))
    big = encode_radiograph(octets, uid.ExplicitVRBigEndian, _NAMED)
    even = octets.tobytes() + b"\0" * (octets.size % 2)
    return [
        encode_radiograph(colour, plain, _NAMED),
        encode_radiograph(colour, uid.RLELossless, _NAMED),
        encode_radiograph(colour, uid.JPEGBaseline8Bit, shared),
        with_pixel_bytes(native, bytes(octets.size * 2)),
        encode_radiograph(octets, plain, palette),
        with_pixel_bytes(big, even, "OW", little=False),
    ]


def real_files(folder: Path) -> list[bytes]:
    """Return the real files that decode fast enough to be read thousands of times."""
    paths = sorted(folder.glob("*.dcm"))
    return [path.read_bytes() for path in paths if path.stat().st_size < REAL_PIXELS * 2]


def mutated(files: list[bytes], random: np.random.Generator) -> bytes:
    """Return one of the files with bytes changed."""
    return with_changed_bytes(files[int(random.integers(len(files)))], random, _REGIONS)


def outcome(content: bytes) -> str:
    """Read one file as ingest does and return what became of it."""
    try:
        radiograph = read_radiograph(content, DicomConfig())
        to_model(radiograph, PreprocessingConfig(image_side=32))
        gate(radiograph.header, radiograph.pixels, QualityConfig())
    except RejectedImageError as error:
        if "ller" in str(error) or "ucja" in str(error):
            raise SystemExit("a rejection names the patient") from error
        return str(error.reason)
    return "read"


if __name__ == "__main__":
    FILES = written_files() + (real_files(Path(sys.argv[3])) if len(sys.argv) > 3 else [])
    read_cases(int(sys.argv[1]), int(sys.argv[2]), partial(mutated, FILES), outcome)
