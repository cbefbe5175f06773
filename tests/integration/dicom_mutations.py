"""Read mutated DICOM files in a process of its own: `dicom_mutations.py SEED COUNT [FOLDER]`.

A crash of a C decoder, a hang or a memory limit ends this process, which the test that started it
sees. Every case is reproducible from its number. Anything but a radiograph or a rejection is an
error; so is a rejection that quotes the patient's name.
"""

import faulthandler
import resource
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig, PreprocessingConfig, QualityConfig
from chexradinet.dataset.dicom import read_radiograph, to_model
from chexradinet.dataset.dicom_write import WRITABLE_SYNTAXES, encode_radiograph
from chexradinet.dataset.quality import gate
from chexradinet.errors import RejectedImageError

MAX_SECONDS = 10
MAX_BYTES = 3 << 30
PATIENT_NAME = "Müller^Łucja"
REAL_PIXELS = 250_000
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def lookup_table() -> Dataset:
    """Return an item of a Modality or VOI LUT Sequence for 12 bits."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [min(value * 16, 65535) for value in range(4096)]
    item["LUTData"].VR = "US"
    return item


def written_files() -> list[bytes]:
    """Return one small file for each transfer syntax, and some of other kinds."""
    rows, columns = np.mgrid[0:48, 0:40]
    noise = np.random.default_rng(5).normal(0, 8, rows.shape)
    grey = (2048 + 1500 * np.sin(columns / 9) * np.cos(rows / 7) + noise).astype(np.uint16)
    octets = (grey >> 4).astype(np.uint8)
    named = {
        "PatientName": PATIENT_NAME,
        "SpecificCharacterSet": "ISO_IR 192",
        "WindowCenter": [2048, 1000],
        "WindowWidth": [4096, 500],
        "PixelPaddingValue": 0,
        "ImagerPixelSpacing": [0.14, 0.14],
    }
    files = []
    for syntax in WRITABLE_SYNTAXES:
        stored = octets if syntax == uid.JPEGBaseline8Bit else grey
        files.append(encode_radiograph(stored, syntax, named))
    plain = uid.ExplicitVRLittleEndian
    colour = np.stack([octets, octets // 2, 255 - octets], axis=-1)
    table = [lookup_table()]
    luts = {"ModalityLUTSequence": table, "VOILUTSequence": table, **named}
    files += [encode_radiograph(colour, syntax, named) for syntax in (plain, uid.RLELossless)]
    files.append(encode_radiograph(grey, plain, luts))
    files.append(encode_radiograph((grey - 2048).view(np.int16), plain, named))
    files.append(encode_radiograph(grey, uid.ImplicitVRLittleEndian, named)[132:])
    return files


def real_files(folder: Path) -> list[bytes]:
    """Return the real files that decode fast enough to be read thousands of times."""
    paths = sorted(folder.glob("*.dcm"))
    return [path.read_bytes() for path in paths if path.stat().st_size < REAL_PIXELS * 2]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Return the file with some bytes changed, lost, doubled or set to an extreme."""
    changed = bytearray(content)
    # Most bytes of a file are pixels; headers and the heads of streams hold what can go wrong.
    start, end = [(0, 1200), (0, len(changed)), (600, 1600)][int(random.integers(3))]
    end = min(end, len(changed))
    start = min(start, end - 1)
    kind = int(random.integers(10))
    place = int(random.integers(start, end))
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        length = int(random.integers(1, 64))
        return bytes(changed[:place] + changed[place + length :])
    if kind == 2:
        length = int(random.integers(1, 64))
        return bytes(changed[:place] + changed[place : place + length] + changed[place:])
    if kind == 3:
        extreme = _EXTREMES[int(random.integers(len(_EXTREMES)))]
        changed[place : place + 4] = struct.pack("<I", extreme)
        return bytes(changed)
    for spot in random.integers(start, end, int(random.integers(1, 9))):
        changed[spot] = int(random.integers(256))
    return bytes(changed)


def outcome(content: bytes) -> str:
    """Read one file as ingest does and return what became of it."""
    try:
        radiograph = read_radiograph(content, DicomConfig())
        to_model(radiograph, PreprocessingConfig(image_side=32))
        verdict = gate(radiograph.header, radiograph.pixels, QualityConfig())
    except RejectedImageError as error:
        if "ller" in str(error) or "ucja" in str(error):
            raise SystemExit("a rejection names the patient") from error
        return str(error.reason)
    return str(verdict.reason or "read")


def main(seed: int, count: int, folder: Path | None) -> None:
    """Read `count` mutated files and print how many came to which end."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    files = written_files() + (real_files(folder) if folder else [])
    ends: Counter[str] = Counter()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        content = mutated(files[int(random.integers(len(files)))], random)
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        try:
            ends[outcome(content)] += 1
        except BaseException:
            sys.stderr.write(f"case {seed} {number}\n")
            raise
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"{sum(ends.values())} cases, peak {peak} MiB: {dict(ends)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
