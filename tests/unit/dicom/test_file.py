"""Every broken, hostile or foreign file ends in its reason, before memory is taken."""

import struct
import zlib

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from chexradinet.config import DicomConfig
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import RejectedImageError
from chexradinet.phantom import encode_radiograph
from chexradinet.records import RejectReason
from tests.dicom_files import patched, with_pixel_bytes

PLAIN = uid.ExplicitVRLittleEndian
NAME = "Smith^Jürgen"


def written(syntax: uid.UID = PLAIN, /, **attributes: object) -> bytes:
    stored = (np.arange(40 * 32) % 4096).astype(np.uint16).reshape(40, 32)
    named = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": NAME, **attributes}
    return encode_radiograph(stored, syntax, named)


def reason_of(content: bytes) -> RejectReason:
    with pytest.raises(RejectedImageError) as caught:
        read_radiograph(content, DicomConfig())
    assert "Jürgen" not in str(caught.value)
    return RejectReason(caught.value.reason)


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


def test_an_empty_file_is_truncated_and_another_kind_is_not_an_image() -> None:
    assert reason_of(b"") is RejectReason.TRUNCATED
    assert reason_of(b"\x89PNG\r\n\x1a\n" + bytes(300)) is RejectReason.NOT_AN_IMAGE
    assert reason_of(b"Image Index,Finding Labels\n") is RejectReason.NOT_AN_IMAGE


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


def meta_end(content: bytes) -> int:
    return 144 + int(struct.unpack("<I", content[140:144])[0])


def meta_of(
    elements: dict[int, bytes], *, explicit: bool, group_length: int | None = None
) -> bytes:
    """Return group 0002 in explicit or implicit VR, with a length that may be wrong."""
    written = b""
    for number, value in elements.items():
        vr = b"OB\0\0" if number == 1 else b"UI"
        size = struct.pack("<I" if number == 1 else "<H", len(value))
        head = vr + size if explicit else struct.pack("<I", len(value))
        written += struct.pack("<HH", 2, number) + head + value
    length = len(written) if group_length is None else group_length
    head = b"UL\x04\0" if explicit else struct.pack("<I", 4)
    return struct.pack("<HH", 2, 0) + head + struct.pack("<I", length) + written


META = {1: b"\0\1", 2: b"1.2.840.10008.5.1.4.1.1.1.1\0", 3: b"1.2.3.4\0"}
EXPLICIT, IMPLICIT = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0"


def is_read(content: bytes) -> bool:
    expected = read_radiograph(written(), DicomConfig()).pixels
    return np.array_equal(read_radiograph(content, DicomConfig()).pixels, expected)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("group_length", [None, 0, 2, 60, 5_000])
def test_file_meta_of_either_vr_and_any_group_length_is_read(
    explicit: bool, group_length: int | None
) -> None:
    for syntax, name in ((PLAIN, EXPLICIT), (uid.ImplicitVRLittleEndian, IMPLICIT)):
        content = written(syntax)
        meta = meta_of({**META, 16: name}, explicit=explicit, group_length=group_length)
        for start in (content[:132], b"DICM", b""):
            assert is_read(start + meta + content[meta_end(content) :])


@pytest.mark.parametrize("explicit", [True, False])
def test_the_first_of_two_file_metas_is_believed(explicit: bool) -> None:
    content = written(uid.JPEGLosslessSV1)
    end = meta_end(content)
    second = meta_of({**META, 16: EXPLICIT}, explicit=explicit)
    for stray in (second, second[12:], second * 2):
        assert is_read(content[:end] + stray + content[end:])


PLACES = {
    "first": b"\x08\x00\x05\x00CS",
    "middle": b"\x08\x00\x60\x00CS",
    "last": b"\xe0\x7f\x10\x00OW",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("vr", [b"--", b"??", b"\0\0", b"  ", b"RE", b"ZZ", b"ox"])
@pytest.mark.parametrize("is_long", [True, False])
def test_an_element_of_unknown_vr_is_passed_over(place: str, vr: bytes, is_long: bool) -> None:
    content = written()
    start = content.index(PLACES[place])
    group = {"first": 8, "middle": 8, "last": 0x7FDF}[place]
    number = {"first": 1, "middle": 0x5F, "last": 0x10}[place]
    size = b"\0\0" + struct.pack("<I", 4) if is_long else struct.pack("<H", 4)
    element = struct.pack("<HH", group, number) + vr + size + b"WSD "
    assert is_read(content[:start] + element + content[start:])


def test_an_element_of_known_vr_with_a_length_of_the_other_size_is_passed_over() -> None:
    content = written()
    start = content.index(PLACES["middle"])
    element = b"\x08\x00\x5f\x00UN" + struct.pack("<H", 4) + b"WSD "
    assert is_read(content[:start] + element + content[start:])


@pytest.mark.parametrize(
    ("keyword", "head"),
    [("Rows", b"\x28\x00\x10\x00US"), ("ViewPosition", b"\x18\x00\x01\x51CS")],
)
def test_a_known_element_of_unknown_vr_has_the_value_it_should_have(
    keyword: str, head: bytes
) -> None:
    content = written()
    assert content.count(head) == 1, keyword
    for vr in (b"--", b"ZZ"):
        changed = content.replace(head, head[:4] + vr)
        assert is_read(changed)
        assert read_radiograph(changed, DicomConfig()).header.is_frontal


def test_values_of_eight_bytes_are_not_taken_for_an_element() -> None:
    content = written(Manufacturer="--ZZ??RE", PatientID="ABCDEFGH", InstitutionName="12345678")
    header = read_radiograph(content, DicomConfig()).header
    assert (header.manufacturer, header.patient_id) == ("--ZZ??RE", "ABCDEFGH")


def deflated(data_set: bytes) -> bytes:
    """Return a deflated file of a data set that goes before the elements of an X-ray."""
    plain, content = written(), written(uid.DeflatedExplicitVRLittleEndian)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflater.compress(data_set + plain[meta_end(plain) :]) + deflater.flush()
    return content[: meta_end(content)] + body


TINY = b"\x08\x00\x01\x00CS\0\0"
ITEM, ITEM_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4)
UNDEFINED = b"\xff" * 4
SEQUENCE = b"\x08\x00\x01\x10SQ\0\0"
BOMBS = {
    "elements": TINY * 300_000,
    "items": SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 300_000,
    "elements in an item": b"\x08\x00\x01\x10SQ\0\0"
    + UNDEFINED
    + ITEM
    + UNDEFINED
    + TINY * 300_000,
    "a sequence of known length": SEQUENCE
    + struct.pack("<I", 8 + 8 * 600_000)
    + ITEM
    + struct.pack("<I", 8 * 600_000)
    + TINY * 600_000,
    "a text": b"\x08\x00\x05\x00UN\0\0" + struct.pack("<I", 3_000_000) + b"ISO\\" * 750_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_of_more_than_an_x_ray_has_is_too_large(bomb: str) -> None:
    assert reason_of(deflated(BOMBS[bomb])) is RejectReason.TOO_LARGE


def test_a_file_of_more_bytes_than_are_read_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexradinet.dicom.file.MAX_FILE_BYTES", 2_000)
    assert reason_of(written()) is RejectReason.TOO_LARGE


def test_a_window_of_a_million_values_is_not_converted() -> None:
    content = written(uid.ImplicitVRLittleEndian)
    place = content.index(b"\xe0\x7f\x10\x00")
    values = b"1\\" * 1_000_000
    element = b"\x28\x00\x50\x10" + struct.pack("<I", len(values)) + values
    assert reason_of(content[:place] + element + content[place:]) is RejectReason.TOO_LARGE
