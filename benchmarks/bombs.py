"""Peak memory of files that are small and decode to much, each above the process that reads it.

`python -m benchmarks.bombs [NAME…]`, ten minutes. Every kind is written into a folder, then
read in a process of its own as ingest does. At most `ALLOWED_MIB` for any of them; a kind that is
refused counts too. Linux only.
"""

import argparse
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from pydicom import uid

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.dataset.deidentification import DeidentificationKey
from chexradinet.errors import ChexRadiNetError
from chexradinet.ingest import Folder
from chexradinet.ingest.decoding import Refused, decode_file
from chexradinet.ingest.matching import read_table
from chexradinet.phantom import encode_radiograph

ALLOWED_MIB = 512
_LARGEST, _LAYERED, _DICOM = 8000, 4470, 6320
"""Sides of the largest picture, of the largest in layers, and of the largest DICOM image, in px."""
_ITEM, _UNDEFINED = b"\xfe\xff\x00\xe0", b"\xff" * 4
_SEQUENCE = b"\x08\x00\x01\x10SQ\0\0"
_END = b"\xfe\xff\xdd\xe0" + bytes(4)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(side: int, bits: int, colour: int, extra: bytes = b"") -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (side * channels * bits + 7) // 8
    rows = b"\0" + b"\x07" * (row - 1) + bytes(row * (side - 1))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + extra + body


def _jpeg(side: int, mode: str, extra: bytes = b"", **options: bool) -> bytes:
    stream = io.BytesIO()
    image = Image.new(mode, (side, side))
    image.paste(Image.new(mode, (64, 64), (200,) * len(mode) if len(mode) > 1 else 200))
    image.save(stream, "JPEG", **options)
    return stream.getvalue()[:2] + extra + stream.getvalue()[2:]


def _noise() -> np.ndarray:
    tile = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    tile[:32] = 0
    return np.ascontiguousarray(np.tile(tile, (99, 99))[:_DICOM, :_DICOM])


def _dicom(syntax: uid.UID) -> bytes:
    return encode_radiograph(_noise(), syntax)


def _fragments() -> bytes:
    content = encode_radiograph(_noise()[:64, :64].copy(), uid.JPEG2000Lossless)
    place = content.rindex(b"\xe0\x7f\x10\x00OB") + 12
    return content[:place] + (_ITEM + b"\x02\0\0\0ab") * 3_000_000


def _header(elements: bytes) -> bytes:
    """Return a deflated file with more elements."""
    plain = encode_radiograph(_noise()[:64, :64].copy(), uid.ExplicitVRLittleEndian)
    content = encode_radiograph(_noise()[:64, :64].copy(), uid.DeflatedExplicitVRLittleEndian)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    ends = [144 + struct.unpack_from("<I", one, 140)[0] for one in (content, plain)]
    body = deflater.compress(elements + plain[ends[1] :]) + deflater.flush()
    return content[: ends[0]] + body


def _table(row: Callable[[int], bytes], count: int) -> bytes:
    return gzip.compress(b"file,patient,findings\n" + b"".join(map(row, range(count))), 1)


KINDS: dict[str, Callable[[], bytes]] = {
    "grey.png": lambda: _png(_LARGEST, 16, 0),
    "colour.png": lambda: _png(_LARGEST, 8, 2),
    "palette.png": lambda: _png(_LARGEST, 8, 3, _chunk(b"PLTE", bytes(range(256)) * 3)),
    "transparent.png": lambda: _png(_LAYERED, 16, 6),
    "text.png": lambda: _png(
        500, 8, 0, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(400 << 20)))
    ),
    "chunks.png": lambda: _png(500, 8, 0, _chunk(b"teXt", b"") * 3_000_000),
    "grey.jpg": lambda: _jpeg(_LARGEST, "L", progressive=True),
    "colour.jpg": lambda: _jpeg(_LARGEST, "RGB"),
    "progressive.jpg": lambda: _jpeg(_LAYERED, "RGB", progressive=True),
    "larger-progressive.jpg": lambda: _jpeg(_LARGEST, "RGB", progressive=True),
    "cmyk.jpg": lambda: _jpeg(_LAYERED, "CMYK", progressive=True),
    "segments.jpg": lambda: _jpeg(500, "L", b"\xff\xe5\x00\x02" * 8_000_000),
    "native.dcm": lambda: _dicom(uid.ExplicitVRLittleEndian),
    "big-endian.dcm": lambda: _dicom(uid.ExplicitVRBigEndian),
    "deflated.dcm": lambda: _dicom(uid.DeflatedExplicitVRLittleEndian),
    "rle.dcm": lambda: _dicom(uid.RLELossless),
    "jpeg.dcm": lambda: _dicom(uid.JPEGLosslessSV1),
    "jpeg-ls.dcm": lambda: _dicom(uid.JPEGLSLossless),
    "jpeg-2000.dcm": lambda: _dicom(uid.JPEG2000Lossless),
    "htj2k.dcm": lambda: _dicom(uid.HTJ2KLossless),
    "fragments.dcm": _fragments,
    "elements.dcm": lambda: _header(b"\x08\x00\x01\x00CS\0\0" * (120 << 17)),
    "items.dcm": lambda: _header(_SEQUENCE + _UNDEFINED + (_ITEM + bytes(4)) * 48_000 + _END),
    "nested.dcm": lambda: _header((_SEQUENCE + _UNDEFINED + _ITEM + _UNDEFINED) * 49_000),
    "value.dcm": lambda: _header(b"\x09\x00\x01\x10OB\0\0\0\0\0\x07" + bytes(7 << 24)),
    "rows.csv.gz": lambda: _table(
        lambda number: b"%07d.png,p%d,Mass\n" % (number, number), 990_000
    ),
    "more-rows.csv.gz": lambda: _table(lambda number: b"%d.png,p,Mass\n" % number, 4_000_000),
    "one-row.csv.gz": lambda: _table(lambda number: b"a.png,p,Mass\n", 999_000),
}


def read(path: Path) -> str:
    """Read one file as ingest does; return what came of it."""
    kind = SourceFormat.CSV if path.suffix == ".gz" else SourceFormat.DICOM
    config = IngestConfig(data_format=kind)
    try:
        if path.suffix == ".gz":
            table = read_table(path.parent, config)
            return f"{0 if table is None else len(table.rows)} rows"
        key = DeidentificationKey(secret=b"0" * 64)
        outcome = decode_file(Folder(path.parent), config, key, path.name)
    except ChexRadiNetError as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return str(outcome.reason) if isinstance(outcome, Refused) else "decoded"


def _memory(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return int(found[1]) / 1024 if found else 0.0


def measure(path: Path) -> None:
    """Print how many MiB above itself this process took to read a file."""
    import chexradinet.dicom.reader  # noqa: F401 - what it takes is not the file's

    imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    outcome = read(path)
    print(f"{_memory('VmHWM') - before:.0f} MiB  {outcome}")


def main() -> None:
    """Measure the kinds that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--file", type=Path)
    chosen = parser.parse_args()
    if chosen.file:
        measure(chosen.file)
        return
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.names or KINDS:
            path = Path(folder) / name.replace(".", "-") / name
            path.parent.mkdir()
            path.write_bytes(KINDS[name]())
            command = [sys.executable, "-m", "benchmarks.bombs", "--file", str(path)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            worst = max(worst, int(said.split()[0]))
            print(
                f"{name:24} {path.stat().st_size / 1e6:8.2f} MB stored: {said.strip()}", flush=True
            )
            path.unlink()
    print(f"worst {worst} MiB, allowed {ALLOWED_MIB}")
    sys.exit(worst > ALLOWED_MIB)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
