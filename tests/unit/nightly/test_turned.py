"""X-rays that are stored mirrored, on their side or upside down: places in the stored grid."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import ResultSettings
from chexradinet.phantom import draw_phantom, encode_radiograph
from tests.nightly_world import FINDINGS, World, calibration, make_world

HEIGHT_PX, WIDTH_PX = 96, 128
ORIENTATIONS = ("LF", "RF", "LH", "FR", "HL")
PLACES = (
    ("peak_row_px", "peak_column_px"),
    ("region_top_px", "region_left_px"),
    ("region_bottom_px", "region_right_px"),
)


def stored_as(upright: np.ndarray, orientation: str) -> np.ndarray:
    """Return an upright image as it is stored where rows and columns run to these parts."""
    turned = upright[:, ::-1] if "R" in orientation else upright
    turned = turned[::-1] if "H" in orientation else turned
    return np.ascontiguousarray(turned.T if orientation[0] in "HF" else turned)


def upright_place(row: float, column: float, orientation: str) -> tuple[float, float]:
    """Return where a place of the stored grid lies in the upright image."""
    row, column = (column, row) if orientation[0] in "HF" else (row, column)
    row = HEIGHT_PX - row if "H" in orientation else row
    return row, WIDTH_PX - column if "R" in orientation else column


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a night that scored one X-ray stored in several ways, all findings flagged."""
    world = make_world(tmp_path_factory.mktemp("turned"))
    fitted = calibration()
    for finding in FINDINGS:
        fitted["findings"][finding]["threshold"] = 0.0
    world.publish(calibration=fitted)
    upright = draw_phantom(2, WIDTH_PX, 3, 0.0).pixels[:HEIGHT_PX].astype(np.uint16)
    for number, orientation in enumerate(ORIENTATIONS):
        attributes = {
            "SOPInstanceUID": f"1.2.3.4.{number}",
            "StudyInstanceUID": f"1.2.3.5.{number}",
            "PatientID": f"patient-{number}",
            "PatientOrientation": list(orientation),
        }
        stored = stored_as(upright, orientation)
        content = encode_radiograph(stored, uid.ExplicitVRLittleEndian, attributes)
        (world.inbox / f"{number}.dcm").write_bytes(content)
    gate = QualityConfig(check_inversion=False)
    world.run(results=ResultSettings(quality=gate, dicom_results=True))
    return world


@pytest.mark.parametrize("number", range(len(ORIENTATIONS)), ids=ORIENTATIONS)
def test_places_of_a_turned_x_ray_lie_in_the_stored_grid(world: World, number: int) -> None:
    orientation = ORIENTATIONS[number]
    table = world.table("part-")
    upright = {row["finding"]: row for row in table if row["object_key"] == "0.dcm"}
    rows = [row for row in table if row["object_key"] == f"{number}.dcm"]
    assert len(rows) == len(FINDINGS)
    for row in rows:
        assert ("turned_upright" in row["quality"]) == (orientation != "LF")
        found, wanted = [], []
        for down, across in PLACES if row["region_status"] == "ok" else PLACES[:1]:
            found.append(upright_place(float(row[down]), float(row[across]), orientation))
            first = upright[row["finding"]]
            wanted.append((float(first[down]), float(first[across])))
        assert found[0] == pytest.approx(wanted[0], abs=1e-6)
        # Corners change places where the image is mirrored.
        for axis in (0, 1):
            ends = sorted(place[axis] for place in found)
            assert ends == pytest.approx(sorted(place[axis] for place in wanted), abs=1e-6)
    assert "ok" in {row["region_status"] for row in rows}


def test_the_picture_of_a_turned_x_ray_is_upright(world: World) -> None:
    pictures = {}
    for path in Path(world.results_uri).glob("dicom/date=*/**/*.dcm"):
        result = pydicom.dcmread(path)
        if "PixelData" in result:
            assert list(result.PatientOrientation) == ["L", "F"]
            pictures[result.SourceImageSequence[0].ReferencedSOPInstanceUID] = result.pixel_array
    assert len(pictures) == len(ORIENTATIONS)
    first, *others = pictures.values()
    for other in others:
        assert np.abs(other.astype(int) - first.astype(int)).max() <= 1
