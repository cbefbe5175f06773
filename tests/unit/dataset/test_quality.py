"""The gate: every reason on a written or real file, and how well inversion is told."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig, QualityConfig
from chexradinet.dataset.images import read_image
from chexradinet.dataset.labels.generic import parse_view
from chexradinet.dataset.quality import (
    INVERTED_BELOW,
    UNSURE_BELOW,
    chest_contrast,
    gate,
)
from chexradinet.dicom.reader import Radiograph, read_radiograph
from chexradinet.errors import ConfigError, RejectedImageError
from chexradinet.phantom import encode_radiograph
from chexradinet.records import RejectReason


def chest(side: int = 96) -> NDArray[np.uint8]:
    """Return a drawn chest: grey body, dark lungs, bright midline and abdomen."""
    rows, columns = np.mgrid[0:side, 0:side] / (side - 1)
    image = np.full((side, side), 120, dtype=np.uint8)
    image[(np.abs(columns - 0.5) < 0.1) | (rows > 0.85)] = 220
    for centre in (0.29, 0.71):
        lung = ((rows - 0.45) / 0.3) ** 2 + ((columns - centre) / 0.15) ** 2 < 1
        image[lung] = 40
    return image


def code(value: str, meaning: str = "") -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = value, meaning
    return [item]


class Verdict(NamedTuple):
    """Reason of a rejection, or flags."""

    reason: str | None
    flags: tuple[str, ...]


def verdict_on(radiograph: Radiograph, config: QualityConfig) -> Verdict:
    try:
        return Verdict(None, gate(radiograph.header, radiograph.pixels, config))
    except RejectedImageError as error:
        return Verdict(error.reason, ())


def judged(
    pixels: NDArray[np.uint8] | None = None,
    config: QualityConfig | None = None,
    /,
    **attributes: object,
) -> Verdict:
    stored = chest() if pixels is None else pixels
    content = encode_radiograph(stored, uid.ExplicitVRLittleEndian, attributes)
    return verdict_on(read_radiograph(content, DicomConfig()), config or QualityConfig())


def test_a_frontal_adult_chest_passes_without_flags() -> None:
    assert judged() == Verdict(None, ())


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "CT"}, RejectReason.WRONG_MODALITY),
        ({"Modality": "MG"}, RejectReason.WRONG_MODALITY),
        (
            {"Modality": "OT", "SOPClassUID": uid.SecondaryCaptureImageStorage},
            None,
        ),
        (
            {
                "Modality": "OT",
                "SOPClassUID": uid.SecondaryCaptureImageStorage,
                "BodyPartExamined": None,
            },
            RejectReason.WRONG_MODALITY,
        ),
        ({"BodyPartExamined": "KNEE"}, RejectReason.NOT_CHEST),
        ({"BodyPartExamined": "TSPINE"}, RejectReason.NOT_CHEST),
        ({"BodyPartExamined": "PORT CHEST"}, None),
        ({"BodyPartExamined": "THORAX"}, None),
        ({"PatientSpeciesDescription": "Felis catus"}, RejectReason.NOT_CHEST),
        ({"PatientSpeciesDescription": "Homo sapiens"}, None),
        ({"PatientSpeciesCodeSequence": code("448771007")}, RejectReason.NOT_CHEST),
        ({"PatientSpeciesCodeSequence": code("337915000")}, None),
        ({"PatientBreedDescription": "Labrador"}, RejectReason.NOT_CHEST),
        ({"InstitutionName": "Veterinary Hospital"}, RejectReason.NOT_CHEST),
        ({"ViewPosition": "LL"}, RejectReason.NOT_FRONTAL),
        ({"ViewPosition": "AP"}, None),
        (
            {"ViewPosition": None, "ViewCodeSequence": code("399173006", "left lateral")},
            RejectReason.NOT_FRONTAL,
        ),
        (
            {"ViewPosition": None, "SeriesDescription": "CHEST LAT"},
            RejectReason.NOT_FRONTAL,
        ),
        (
            {"ViewPosition": None, "PatientOrientation": ["A", "F"]},
            RejectReason.NOT_FRONTAL,
        ),
        ({"BurnedInAnnotation": "YES"}, RejectReason.BURNED_IN),
        ({"PatientAge": "017Y"}, RejectReason.UNDER_AGE),
        ({"PatientAge": "200M"}, RejectReason.UNDER_AGE),
        ({"PatientAge": "018Y"}, None),
        ({"PatientAge": "000Y"}, RejectReason.UNDER_AGE),
        (
            {"PatientAge": "000Y", "PatientBirthDate": "19500101", "StudyDate": "20200101"},
            None,
        ),
        (
            {"PatientAge": "005D", "PatientBirthDate": "19500101", "StudyDate": "20200101"},
            RejectReason.UNDER_AGE,
        ),
        ({"BodyPartExamined": "TÓRAX"}, None),
        ({"BodyPartExamined": "Poumons"}, None),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": code("T-D3000")}, None),
        (
            {
                "BodyPartExamined": "UNKNOWN",
                "AnatomicRegionSequence": code("51185008", "структура"),
                "SpecificCharacterSet": "ISO_IR 192",
            },
            None,
        ),
        (
            {"BodyPartExamined": None, "AnatomicRegionSequence": code("72696002", "Knee")},
            RejectReason.NOT_CHEST,
        ),
        ({"PatientBreedDescription": "NONE"}, None),
        ({"PatientBreedDescription": "n/a"}, None),
        ({"PatientSpeciesDescription": "UNKNOWN"}, None),
        ({"InstitutionName": "White Horse Medical Centre"}, None),
        ({"InstitutionName": "Clínica Veterinária"}, RejectReason.NOT_CHEST),
        ({"InstitutionName": "Tierärztliche Praxis"}, RejectReason.NOT_CHEST),
        ({"StudyDescription": "Dog bite, fell from horse"}, None),
        ({"ProtocolName": "DOG THORAX"}, RejectReason.NOT_CHEST),
        ({"ViewPosition": "AP LORDOTIC"}, RejectReason.NOT_FRONTAL),
        ({"ViewPosition": "AP AXIAL"}, RejectReason.NOT_FRONTAL),
        ({"ViewPosition": "PA_RLD"}, RejectReason.NOT_FRONTAL),
        ({"ViewPosition": "AP_SUPINE"}, None),
        ({"ViewPosition": "SWIMMERS"}, RejectReason.NOT_FRONTAL),
        (
            {"ViewPosition": "UNKNOWN", "SeriesDescription": "CHEST LAT"},
            RejectReason.NOT_FRONTAL,
        ),
        (
            {
                "ViewPosition": None,
                "ViewCodeSequence": code("272479007", "PA, in a study with LAT"),
            },
            None,
        ),
    ],
)
def test_the_header_decides(attributes: dict[str, object], reason: RejectReason | None) -> None:
    assert judged(**attributes).reason is reason


@pytest.mark.parametrize(
    ("attributes", "flag"),
    [
        ({"ViewPosition": None}, "view_unknown"),
        ({"ViewPosition": None, "SeriesDescription": "CHEST PA AND LAT"}, "view_unknown"),
        ({"ViewPosition": "FRONTAL"}, "view_unknown"),
        ({"ViewPosition": "FRONTAL", "SeriesDescription": "CHEST LAT"}, "view_unknown"),
        ({"ViewPosition": "UNKNOWN"}, "view_unknown"),
        ({"ViewPosition": "Other"}, "view_unknown"),
        ({"BodyPartExamined": None}, "body_part_unknown"),
        ({"BodyPartExamined": "UNKNOWN"}, "body_part_unknown"),
        ({"PatientAge": None}, "age_unknown"),
        ({"Modality": None}, "modality_unknown"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "burned_in_unknown"),
        ({"PresentationLUTShape": "INVERSE"}, "presentation_lut_contradicts_photometric"),
    ],
)
def test_what_is_odd_but_acceptable_is_flagged(attributes: dict[str, object], flag: str) -> None:
    assert judged(**attributes) == Verdict(None, (flag,))


def test_a_view_named_in_the_series_is_taken() -> None:
    attributes = {"ViewPosition": None, "SeriesDescription": "Thorax a-p"}
    content = encode_radiograph(chest(), uid.ExplicitVRLittleEndian, attributes)
    header = read_radiograph(content, DicomConfig()).header
    assert (header.view, header.view_source) == ("AP", "description")


@pytest.mark.parametrize(
    "written",
    [
        *("PA", "AP", "", "FRONTAL", "UNKNOWN", "NA", "N/A", "LL", "AP AXIAL", "AP LORDOTIC"),
        *("AP Supine", "AP erect", "PA ERECT", "AP_PORTABLE", "P-A", "postero-anterior", "OTHER"),
        *("PA LLD", "LATERAL", "RLAT", "PA/LAT", "SWIMMERS", "NONE", "pa", "Oblique", "LPO"),
    ],
)
def test_a_header_and_a_table_say_the_same_of_a_view(written: str) -> None:
    content = encode_radiograph(chest(), uid.ExplicitVRLittleEndian, {"ViewPosition": written})
    header = read_radiograph(content, DicomConfig()).header
    view, rejected = parse_view(written)
    assert header.view is view
    assert (header.is_frontal is False) == (rejected is RejectReason.NOT_FRONTAL)


def test_a_frontal_view_position_leaves_it_to_the_series_which_one() -> None:
    attributes = {"ViewPosition": "FRONTAL", "SeriesDescription": "Chest PA"}
    content = encode_radiograph(chest(), uid.ExplicitVRLittleEndian, attributes)
    header = read_radiograph(content, DicomConfig()).header
    assert (header.view, header.is_frontal) == ("PA", True)


def test_a_body_part_in_utf_8_is_understood() -> None:
    content = encode_radiograph(chest(), uid.ExplicitVRLittleEndian, {"BodyPartExamined": "TxxRAX"})
    content = content.replace(b"TxxRAX", "TÓRAX".encode())
    assert read_radiograph(content, DicomConfig()).header.shows_chest


def test_the_age_limit_can_be_lifted() -> None:
    assert judged(None, QualityConfig(min_age_years=0), PatientAge="003Y").reason is None


def test_small_and_constant_images_are_refused() -> None:
    assert judged(chest(31)).reason is RejectReason.TOO_SMALL
    assert judged(chest(64), QualityConfig(min_side_px=65)).reason is RejectReason.TOO_SMALL
    flat = np.full((64, 64), 7, dtype=np.uint8)
    assert judged(flat).reason is RejectReason.CONSTANT


def test_a_wrong_photometric_interpretation_is_seen_in_the_image() -> None:
    assert judged(PhotometricInterpretation="MONOCHROME1").reason is RejectReason.INVERTED
    lifted = QualityConfig(check_inversion=False)
    assert judged(None, lifted, PhotometricInterpretation="MONOCHROME1").reason is None


def test_an_image_without_polarity_is_flagged_not_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    assert judged(noise) == Verdict(None, ("polarity_unsure",))


def test_chest_contrast_changes_sign_with_inversion_and_ignores_exposure() -> None:
    image = chest()
    darker = (image // 4 + 3).astype(np.uint8)
    assert chest_contrast(255 - image) == pytest.approx(-chest_contrast(image), abs=1e-9)
    assert chest_contrast(darker) == pytest.approx(chest_contrast(image), abs=0.01)
    assert chest_contrast(np.zeros((64, 64), dtype=np.uint8)) == 0.0


def bordered(image: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    height, width = (side // 12 for side in image.shape)
    framed = np.full((image.shape[0] + 2 * height, image.shape[1] + 2 * width), value, np.uint8)
    framed[height:-height, width:-width] = image
    return framed


VARIANTS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "as it is": lambda image: image,
    "black border": lambda image: bordered(image, 0),
    "white border": lambda image: bordered(image, 255),
    "cropped": lambda image: image[: image.shape[0] * 9 // 10, image.shape[1] // 12 :],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_real_radiographs_pass_and_their_inverted_copies_are_caught(
    variant: str, shared_data: Path
) -> None:
    paths = sorted((shared_data / "radiographs" / "images").iterdir())
    contrasts = np.array(
        [chest_contrast(VARIANTS[variant](read_image(path.read_bytes()))) for path in paths]
    )
    assert len(contrasts) == 255
    falsely_rejected = int((contrasts < INVERTED_BELOW).sum())
    missed = int((-contrasts >= INVERTED_BELOW).sum())
    assert (falsely_rejected, missed) == (0, 0)
    assert contrasts.min() > UNSURE_BELOW


def test_the_real_dicom_files_are_judged_as_known(shared_data: Path) -> None:
    folder = shared_data / "radiographs" / "dicom"
    expected = {
        "RG1_J2KI": None,
        "CR-MONO1-10-chest": None,
        "nih_00000002_000_google": None,
        "dx_dog_thorax_not_human": RejectReason.NOT_CHEST,
    }
    for name, reason in expected.items():
        radiograph = read_radiograph((folder / f"{name}.dcm").read_bytes(), DicomConfig())
        assert verdict_on(radiograph, QualityConfig()).reason is reason, name
        inverted = replace(radiograph, pixels=255 - radiograph.pixels)
        verdict = verdict_on(inverted, QualityConfig())
        assert verdict.reason is (reason or RejectReason.INVERTED), name


def test_impossible_limits_name_the_setting() -> None:
    with pytest.raises(ConfigError, match="min_age_years"):
        QualityConfig(min_age_years=-1)
    with pytest.raises(ConfigError, match="min_side_px"):
        QualityConfig(min_side_px=0)
    with pytest.raises(ConfigError, match="voi_index"):
        DicomConfig(voi_index=-1)


def test_an_image_is_judged_where_no_dicom_reader_is_installed() -> None:
    program = (
        "import sys; sys.modules['pydicom'] = None; import numpy; "
        "from chexradinet.dataset.quality import chest_contrast; "
        "import chexradinet.dataset.deidentification; "
        "assert chest_contrast(numpy.eye(64, dtype='uint8')) != 2"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
