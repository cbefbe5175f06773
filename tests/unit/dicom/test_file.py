"""Every broken, hostile or foreign file ends in its reason, before memory is taken."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from chexradinet.config import DicomConfig
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import RejectedImageError
from chexradinet.phantom.dicom import encode_radiograph
from chexradinet.records import RejectReason
from tests.dicom_files import with_pixel_bytes

PLAIN = uid.ExplicitVRLittleEndian
NAME = "Smith^Jürgen"


def written(syntax: uid.UID = PLAIN, /, **attributes: object) -> bytes:
    stored = (np.arange(40 * 32) % 4096).astype(np.uint16).reshape(40, 32)
    named = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": NAME, **attributes}
    return encode_radiograph(stored, syntax, named)


def reason_of(content: bytes | Path) -> RejectReason:
    with pytest.raises(RejectedImageError) as caught:
        read_radiograph(content, DicomConfig())
    assert "Jürgen" not in str(caught.value)
    return RejectReason(caught.value.reason)


def patched(content: bytes, group: int, element: int, vr: bytes, value: int) -> bytes:
    """Overwrite the value of a two-byte element of an explicit VR file."""
    head = struct.pack("<HH", group, element) + vr + b"\x02\x00"
    assert content.count(head) == 1
    place = content.index(head) + len(head)
    return content[:place] + struct.pack("<H", value) + content[place + 2 :]


def item_bytes(item: Dataset) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, item)
    value = stream.getvalue()
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value


def test_a_file_cut_in_its_pixels_is_truncated() -> None:
    for syntax in (PLAIN, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless):
        assert reason_of(written(syntax)[:-200]) is RejectReason.TRUNCATED, syntax.name
    deflated = written(uid.DeflatedExplicitVRLittleEndian)
    assert reason_of(deflated[: len(deflated) // 2]) in (
        RejectReason.TRUNCATED,
        RejectReason.NOT_AN_IMAGE,
    )


def test_an_empty_file_is_truncated_and_another_kind_is_not_an_image(tmp_path: Path) -> None:
    assert reason_of(b"") is RejectReason.TRUNCATED
    assert reason_of(b"\x89PNG\r\n\x1a\n" + bytes(300)) is RejectReason.NOT_AN_IMAGE
    assert reason_of(b"Image Index,Finding Labels\n") is RejectReason.NOT_AN_IMAGE
    assert reason_of(tmp_path / "absent.dcm") is RejectReason.MISSING
    assert reason_of(tmp_path) is RejectReason.UNREADABLE


def test_an_object_without_pixel_data_is_not_an_image() -> None:
    content = written()
    place = content.index(b"\xe0\x7f\x10\x00OW")
    assert reason_of(content[:place]) is RejectReason.NOT_AN_IMAGE


def test_several_frames_are_refused() -> None:
    assert reason_of(written(NumberOfFrames=2)) is RejectReason.MULTI_FRAME


def test_sizes_that_contradict_the_pixels_are_implausible() -> None:
    for rows in (0, 41, 65535):
        content = patched(written(), 0x0028, 0x0010, b"US", rows)
        assert reason_of(content) is RejectReason.IMPLAUSIBLE, rows


def test_a_bomb_of_pixels_is_refused_before_memory_is_taken() -> None:
    for syntax in (PLAIN, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1):
        content = patched(written(syntax), 0x0028, 0x0010, b"US", 8000)
        content = patched(content, 0x0028, 0x0011, b"US", 8000)
        assert reason_of(content) is RejectReason.IMPLAUSIBLE, syntax.name


def test_a_bomb_of_deflate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexradinet.dicom.file.MAX_FILE_BYTES", 100_000)
    content = written(uid.DeflatedExplicitVRLittleEndian)
    (meta_length,) = struct.unpack("<I", content[140:144])
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflater.compress(bytes(1_000_000)) + deflater.flush()
    assert reason_of(content[: 144 + meta_length] + bomb) is RejectReason.TOO_LARGE


def test_contradicting_depths_are_implausible_and_unusual_ones_unreadable() -> None:
    for stored, high in ((17, 16), (0, 15), (12, 3), (12, 16)):
        content = patched(written(), 0x0028, 0x0102, b"US", high)
        content = patched(content, 0x0028, 0x0101, b"US", stored)
        if stored:
            assert reason_of(content) is RejectReason.IMPLAUSIBLE, (stored, high)
    content = patched(written(), 0x0028, 0x0100, b"US", 32)
    assert reason_of(content) is RejectReason.UNREADABLE


def test_without_a_known_photometric_interpretation_a_file_is_unreadable_and_says_so() -> None:
    for given, why in ((None, "no Photometric"), ("", "no Photometric"), (NAME, "unknown Photo")):
        content = written(PhotometricInterpretation=given)
        assert reason_of(content) is RejectReason.UNREADABLE
        with pytest.raises(RejectedImageError, match=why):
            read_radiograph(content, DicomConfig())
    for given in (f"MONOCHROME2 {NAME}", "MONOCHROME"):
        assert reason_of(written(PhotometricInterpretation=given)) is RejectReason.UNREADABLE


def test_an_element_that_is_a_sequence_in_place_of_text_is_not_copied() -> None:
    item = Dataset()
    item.PatientName = NAME
    content = encode_radiograph(np.eye(40, dtype=np.uint8), PLAIN, {"Manufacturer": "ACME"})
    place = content.index(b"\x08\x00\x70\x00LO")
    body = item_bytes(item)
    element = b"\x08\x00\x70\x00SQ\0\0" + struct.pack("<I", len(body)) + body
    content = content[:place] + element + content[place + 12 :]
    assert read_radiograph(content, DicomConfig()).header.manufacturer == ""


def test_an_unknown_transfer_syntax_is_unreadable() -> None:
    content = written().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    assert reason_of(content) is RejectReason.UNREADABLE


def test_a_damaged_stream_is_unreadable() -> None:
    heads = {
        uid.JPEGLSLossless: b"\xff\xda",
        uid.JPEG2000Lossless: b"\xff\x90",
        uid.JPEGLosslessSV1: b"\xff\xda",
    }
    for syntax, head in heads.items():
        content = written(syntax)
        place = content.rindex(head)
        damaged = content[: place + 2] + b"\x01\x02\x03\x04" + content[place + 6 :]
        assert reason_of(damaged) is RejectReason.UNREADABLE, syntax.name


def test_a_bomb_of_black_pixels_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = encode_radiograph(np.zeros((1500, 1500), dtype=np.uint16), uid.JPEG2000Lossless)
    assert len(bomb) < 2_000
    monkeypatch.setattr("chexradinet.dicom.pixels.decode_frame", None)
    assert reason_of(bomb) is RejectReason.IMPLAUSIBLE


def test_colour_that_two_columns_share_needs_an_even_number_of_them() -> None:
    colour = np.zeros((33, 33, 3), dtype=np.uint8)
    attributes = {"PhotometricInterpretation": "YBR_FULL_422"}
    content = encode_radiograph(colour, PLAIN, attributes)
    assert reason_of(with_pixel_bytes(content, bytes(33 * 33 * 2))) is RejectReason.IMPLAUSIBLE


def test_words_that_lack_their_second_byte_are_truncated() -> None:
    grey = np.zeros((33, 33), dtype=np.uint8)
    content = encode_radiograph(grey, uid.ExplicitVRBigEndian)
    odd = with_pixel_bytes(content, bytes(33 * 33), "OW", little=False)
    assert reason_of(odd) is RejectReason.TRUNCATED


@pytest.mark.parametrize("failing", ["pixel_layout", "decoded"])
def test_what_the_reader_did_not_foresee_is_unreadable(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(NAME)

    monkeypatch.setattr(f"chexradinet.dicom.reader.{failing}", fail)
    assert reason_of(written()) is RejectReason.UNREADABLE
