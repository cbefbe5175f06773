"""The DICOM reader: known answers."""

import struct
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig, GeometryMode, PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.dicom.reader import read_radiograph, to_model
from chexradinet.errors import ConfigError, RejectedImageError
from chexradinet.phantom import encode_radiograph
from chexradinet.records import Box, RadiographHeader, View

PLAIN = uid.ExplicitVRLittleEndian
NAME = "Żółć^Jürgen"


def ramp(rows: int = 40, columns: int = 32) -> NDArray[np.uint16]:
    values = np.arange(rows * columns, dtype=np.uint16) % 4096
    return values.reshape(rows, columns)


def written(syntax: uid.UID = PLAIN, /, **attributes: object) -> bytes:
    return encode_radiograph(ramp(), syntax, attributes)


def read_header(content: bytes) -> RadiographHeader:
    return read_radiograph(content, DicomConfig()).header


def test_a_window_maps_its_lower_edge_to_black_and_its_upper_to_white() -> None:
    stored = np.array([[0, 99, 100, 150, 200, 201, 4095]] * 2, dtype=np.uint16)
    content = encode_radiograph(stored, PLAIN, {"WindowCenter": 150.5, "WindowWidth": 101})
    radiograph = read_radiograph(content, DicomConfig())
    assert radiograph.pixels[0].tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert radiograph.header.window == "window 1 of 1: LINEAR, centre 150.5, width 101"


def test_the_configured_window_is_applied_and_recorded() -> None:
    windows = {"WindowCenter": [100, 600], "WindowWidth": [50, 800]}
    second = read_radiograph(written(**windows), DicomConfig(voi_index=1))
    alone = read_radiograph(written(WindowCenter=600, WindowWidth=800), DicomConfig())
    assert second.header.window == "window 2 of 2: LINEAR, centre 600, width 800"
    assert np.array_equal(second.pixels, alone.pixels)


def test_monochrome1_is_inverted_after_the_window() -> None:
    attributes = {"WindowCenter": 300, "WindowWidth": 200}
    bright = read_radiograph(written(**attributes), DicomConfig()).pixels
    inverted = read_radiograph(
        written(PhotometricInterpretation="MONOCHROME1", **attributes), DicomConfig()
    ).pixels
    assert np.array_equal(inverted, 255 - bright)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_has_no_say_in_the_range(photometric: str) -> None:
    stored = np.full((8, 8), 500, dtype=np.uint16)
    stored[0, :], stored[1, :], stored[2, :] = 4000, 4095, 100
    attributes = {
        "PhotometricInterpretation": photometric,
        "PixelPaddingValue": 4000,
        "PixelPaddingRangeLimit": 4095,
    }
    pixels = read_radiograph(encode_radiograph(stored, PLAIN, attributes), DicomConfig()).pixels
    assert set(pixels[:2].ravel().tolist()) == {0}
    assert {int(pixels[2, 0]), int(pixels[3, 0])} == {0, 255}


def test_bits_beyond_the_stored_ones_are_ignored() -> None:
    stored = ramp()
    attributes = {"WindowCenter": 600, "WindowWidth": 900}
    clean = read_radiograph(encode_radiograph(stored, PLAIN, attributes), DicomConfig()).pixels
    dirty = encode_radiograph(stored | np.uint16(0xA000), PLAIN, attributes)
    assert np.array_equal(read_radiograph(dirty, DicomConfig()).pixels, clean)


def lookup_table(entries: list[int], bits: int = 12, length: int | None = None) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [length or len(entries), 0, bits])
    item.add_new("LUTData", "US", entries)
    return [item]


WINDOW = {"WindowCenter": 100, "WindowWidth": 300}


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({}, "the header has no window"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "the window has a width of 0"),
        ({"WindowCenter": 100, "WindowWidth": 0.5}, "the window has a width of 0.5"),
        ({"WindowCenter": 100}, "the window is incomplete or damaged"),
        (
            {**WINDOW, "VOILUTFunction": "DOE JANE"},
            "the window has an unknown VOI LUT Function",
        ),
        ({"VOILUTSequence": lookup_table([0, 9], length=3)}, "the VOI LUT is damaged"),
        (
            {
                "VOILUTSequence": lookup_table([0, 0]),
                "WindowCenter": 1,
                "WindowWidth": -4,
            },
            "the VOI LUT is damaged and the window has a width of -4",
        ),
    ],
)
def test_without_a_usable_window_an_image_has_its_own_range_and_says_why(
    attributes: dict[str, object], why: str
) -> None:
    radiograph = read_radiograph(written(**attributes), DicomConfig())
    assert radiograph.header.window == f"own range 0 to 1279: {why}"
    assert (radiograph.pixels.min(), radiograph.pixels.max()) == (0, 255)


def test_a_damaged_modality_lut_is_left_out_and_the_record_says_so() -> None:
    damaged = {"ModalityLUTSequence": lookup_table([0, 9], length=3), **WINDOW}
    radiograph = read_radiograph(written(**damaged), DicomConfig())
    plain = read_radiograph(written(**WINDOW), DicomConfig())
    said = "; without the Modality LUT, which is damaged"
    assert radiograph.header.window == plain.header.window + said
    np.testing.assert_array_equal(radiograph.pixels, plain.pixels)


def test_eight_bits_have_the_range_of_what_they_can_hold_after_a_rescale() -> None:
    stored = np.array([[0, 51, 204]] * 2, dtype=np.uint8)
    for slope, intercept in ((1, 0), (16, 0), (1, -128), (0.25, 3)):
        attributes = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        pixels = read_radiograph(encode_radiograph(stored, PLAIN, attributes), DicomConfig()).pixels
        assert pixels[0].tolist() == [0, 51, 204], (slope, intercept)


def test_a_rescale_beyond_all_numbers_is_implausible() -> None:
    content = written(RescaleSlope="1e306", RescaleIntercept="0")
    with pytest.raises(RejectedImageError, match="implausible: Rescale"):
        read_radiograph(content, DicomConfig())


def test_a_lookup_table_goes_before_a_window_unless_told_otherwise() -> None:
    content = written(**WINDOW, VOILUTSequence=lookup_table(list(range(4096))))
    assert read_radiograph(content, DicomConfig()).header.window == "VOI LUT 1"
    window = read_radiograph(content, DicomConfig(prefer_voi_lut=False)).header.window
    assert window.startswith("window 1 of 1")


def test_files_without_preamble_or_file_meta_are_read() -> None:
    for syntax in (uid.ImplicitVRLittleEndian, PLAIN, uid.ExplicitVRBigEndian):
        whole = written(syntax, WindowCenter=600, WindowWidth=900)
        (meta_length,) = struct.unpack("<I", whole[140:144])
        expected = read_radiograph(whole, DicomConfig()).pixels
        for start in (128, 132, 144 + meta_length):
            bare = read_radiograph(whole[start:], DicomConfig()).pixels
            assert np.array_equal(bare, expected), (syntax.name, start)


def test_model_pixels_are_those_of_the_radiograph_fitted() -> None:
    content = written(WindowCenter=600, WindowWidth=900)
    preprocessing = PreprocessingConfig(image_side=32)
    radiograph = read_radiograph(content, DicomConfig())
    pixels, geometry = to_model(radiograph, preprocessing)
    expected, plain_geometry = fit_to_model(radiograph.pixels, preprocessing)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)
    assert geometry == plain_geometry
    assert radiograph.header.window.startswith("window 1 of 1")


def test_flat_pixels_are_made_square_before_padding_and_boxes_find_back() -> None:
    stored = np.zeros((100, 200), dtype=np.uint16)
    stored[40:60, 50:150] = 4000
    content = encode_radiograph(stored, PLAIN, {"PixelAspectRatio": [1, 2]})
    radiograph = read_radiograph(content, DicomConfig())
    assert radiograph.header.pixel_aspect_ratio == 0.5
    preprocessing = PreprocessingConfig(image_side=64, geometry=GeometryMode.PAD)
    pixels, geometry = to_model(radiograph, preprocessing)
    # 100 rows of half height are 50 square pixels, a quarter of 200: 16 of 64 model rows.
    rows = np.flatnonzero(pixels.any(axis=1))
    columns = np.flatnonzero(pixels.any(axis=0))
    found = Box(float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1))
    original = geometry.to_original(found)
    assert (geometry.original_height, geometry.original_width) == (100, 200)
    assert original.top == pytest.approx(40, abs=geometry.row_scale)
    assert original.bottom == pytest.approx(60, abs=geometry.row_scale)
    assert original.left == pytest.approx(50, abs=geometry.column_scale)
    assert original.right == pytest.approx(150, abs=geometry.column_scale)


UPRIGHT = ["L", "F"]
TURNED = {
    ("L", "F"): lambda upright: upright,
    ("R", "F"): lambda upright: upright[:, ::-1],
    ("L", "H"): lambda upright: upright[::-1],
    ("R", "H"): lambda upright: upright[::-1, ::-1],
    ("F", "L"): lambda upright: upright.T,
    ("F", "R"): lambda upright: upright.T[::-1],
    ("H", "L"): lambda upright: upright.T[:, ::-1],
    ("H", "R"): lambda upright: upright.T[::-1, ::-1],
}
"""How an upright image is stored when rows and columns run to these parts of the patient."""
each_orientation = pytest.mark.parametrize("orientation", TURNED, ids="".join)


@each_orientation
def test_an_image_is_turned_upright_by_its_patient_orientation(
    orientation: tuple[str, str],
) -> None:
    stored = np.ascontiguousarray(TURNED[orientation](ramp()))
    for letters in (list(orientation), [f"{orientation[0]}P", f"{orientation[1]}AP"]):
        radiograph = read_radiograph(
            encode_radiograph(stored, PLAIN, {"PatientOrientation": letters}), DicomConfig()
        )
        plain = read_radiograph(encode_radiograph(ramp(), PLAIN), DicomConfig())
        assert np.array_equal(radiograph.pixels, plain.pixels)
        flagged = "turned_upright" in radiograph.header.notes
        assert flagged == (orientation != ("L", "F"))


@each_orientation
@pytest.mark.parametrize("mode", list(GeometryMode))
def test_a_box_in_a_turned_image_finds_back_to_the_stored_grid(
    orientation: tuple[str, str], mode: GeometryMode
) -> None:
    upright = np.zeros((120, 200), dtype=np.uint16)
    upright[30:60, 20:100] = 4000
    stored = np.ascontiguousarray(TURNED[orientation](upright))
    rows, columns = np.nonzero(stored)
    true = Box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    aspect = [1, 2] if orientation[0] in "LR" else [2, 1]
    attributes = {"PatientOrientation": list(orientation), "PixelAspectRatio": aspect}
    radiograph = read_radiograph(encode_radiograph(stored, PLAIN, attributes), DicomConfig())
    preprocessing = PreprocessingConfig(image_side=200, geometry=mode)
    pixels, geometry = to_model(radiograph, preprocessing)
    rows, columns = np.nonzero(pixels > 127)
    found = Box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    original = geometry.to_original(found)
    for side in ("top", "left", "bottom", "right"):
        assert getattr(original, side) == pytest.approx(getattr(true, side), abs=3.4)
        back = geometry.to_model(original)
        assert getattr(back, side) == pytest.approx(getattr(found, side), abs=1e-9)
        shown = getattr(geometry.to_upright(true), side)
        assert shown == pytest.approx(getattr(Box(30, 20, 60, 100), side), abs=1e-9)
    assert (geometry.original_height, geometry.original_width) == stored.shape


def test_an_unturned_image_has_the_geometry_it_always_had() -> None:
    for orientation in (None, UPRIGHT):
        content = written(PatientOrientation=orientation)
        radiograph = read_radiograph(content, DicomConfig())
        preprocessing = PreprocessingConfig(image_side=32)
        geometry = to_model(radiograph, preprocessing)[1]
        assert geometry == fit_to_model(radiograph.pixels, preprocessing)[1]
        assert geometry.upright == geometry
        assert "transposed" not in geometry.as_dict()


@pytest.mark.parametrize("orientation", [["L", "R"], ["F", "H"], ["L"], ["UP", "DOWN"], ["A", "F"]])
def test_an_orientation_of_no_frontal_is_left_and_flagged(orientation: list[str]) -> None:
    radiograph = read_radiograph(written(PatientOrientation=orientation), DicomConfig())
    plain = read_radiograph(written(), DicomConfig())
    assert np.array_equal(radiograph.pixels, plain.pixels)
    assert radiograph.header.notes == ("patient_orientation_unclear",)


def test_spacing_at_the_detector_goes_before_pixel_spacing() -> None:
    both = read_header(written(ImagerPixelSpacing=[0.14, 0.15], PixelSpacing=[0.1, 0.1]))
    assert (both.row_spacing_mm, both.column_spacing_mm) == (0.14, 0.15)
    assert both.spacing_source == "imager_pixel_spacing"
    zero = read_header(written(PixelSpacing=[0.0, 0.0]))
    assert zero.row_spacing_mm is None
    assert "implausible_spacing" in zero.notes


@pytest.mark.parametrize(
    ("given", "years"),
    [("081Y", 81), ("81", 81), ("006M", 0.5), ("411Y", None), ("abc", None)],
)
def test_ages_are_read_with_and_without_a_unit(given: str, years: float | None) -> None:
    assert read_header(written(PatientAge=given)).age_years == years


def test_an_absent_age_follows_from_birth_and_study() -> None:
    header = read_header(
        written(PatientAge=None, PatientBirthDate="19500101", StudyDate="20200101")
    )
    assert header.age_years == pytest.approx(70, abs=0.01)
    assert header.study_date == date(2020, 1, 1)


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100", "NONSENSE", None])
def test_names_outside_ascii_do_no_harm_and_are_not_shown(charset: str | None) -> None:
    content = written(PatientName="Doe^J", PatientID="4711-secret")
    raw = NAME.encode()
    raw += b" " * (len(raw) % 2)
    name = b"\x10\x00\x10\x00PN\x06\x00Doe^J "
    content = content.replace(name, name[:6] + struct.pack("<H", len(raw)) + raw)
    if charset is not None:
        text = charset.encode() + b" " * (len(charset) % 2)
        element = b"\x08\x00\x05\x00CS" + struct.pack("<H", len(text)) + text
        place = content.index(b"\x08\x00\x16\x00UI")
        content = content[:place] + element + content[place:]
    header = read_header(content)
    assert header.patient_id == "4711-secret"
    assert "secret" not in repr(header)
    assert "rgen" not in repr(header)


def test_the_writer_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ConfigError, match="uint16"):
        encode_radiograph(ramp(), uid.JPEGBaseline8Bit)
    with pytest.raises(ConfigError, match="float64"):
        encode_radiograph(np.zeros((4, 4)), PLAIN)  # type: ignore[arg-type]


def test_the_real_files_say_what_is_known_of_them(shared_data: Path) -> None:
    folder = shared_data / "radiographs" / "dicom"
    rg1 = read_header((folder / "RG1_J2KI.dcm").read_bytes())
    assert (rg1.rows, rg1.columns, rg1.photometric_interpretation) == (1955, 1841, "MONOCHROME1")
    assert (rg1.view, rg1.modality, rg1.body_part, rg1.sex) == (View.PA, "CR", "CHEST", "F")
    assert "lossy" in rg1.notes
    bare = read_header((folder / "CR-MONO1-10-chest.dcm").read_bytes())
    assert (bare.rows, bare.columns, bare.view) == (440, 440, View.PA)
    assert bare.acquisition_date == date(1993, 2, 24)
    nih = read_header((folder / "nih_00000002_000_google.dcm").read_bytes())
    assert (nih.age_years, nih.view, nih.is_frontal, nih.shows_chest) == (
        81,
        View.UNKNOWN,
        None,
        None,
    )
    dog = read_header((folder / "dx_dog_thorax_not_human.dcm").read_bytes())
    assert not dog.is_human
    assert dog.is_frontal is False
