"""What a night says of single X-rays: places, pictures, notes, and what is missing."""

import re
import subprocess
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import uid

from chexradinet.config import QualityConfig, RegionConfig
from chexradinet.config.nightly import (
    DEFAULT_URGENCY,
    PlanConfig,
    ResultSettings,
    WorklistConfig,
    WorklistIdentifiers,
)
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.nightly import XRay
from chexradinet.nightly import read as nightly_read
from chexradinet.nightly.history import read_history
from chexradinet.nightly.ledger import open_ledger, read_completion, read_plan
from chexradinet.nightly.merge import merge, read_shard, unscored_files
from chexradinet.nightly.plan import plan
from chexradinet.phantom import draw_phantom, encode_radiograph
from chexradinet.regions.extract import extract_region
from tests.nightly_reference import publish_reference
from tests.nightly_world import FINDINGS, SIDE_PX, World, calibration, make_world

NO_GATE = ResultSettings(quality=QualityConfig(check_inversion=False))
HEIGHT_PX, WIDTH_PX = 96, 128


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def wide_pixels(number: int) -> np.ndarray:
    """Return an X-ray that is wider than high, so that rows and columns cannot be mixed up."""
    return np.ascontiguousarray(draw_phantom(number, WIDTH_PX, 3, 0.0).pixels[:HEIGHT_PX])


def add_wide_png(world: World, number: int) -> Path:
    """Put such an X-ray into the inbox as PNG."""
    path = world.inbox / f"w{number}.png"
    cv2.imwrite(str(path), wide_pixels(number))
    return path


def add_wide_dicom(world: World, number: int, **header: object) -> Path:
    """Put such an X-ray into the inbox as DICOM."""
    path = world.inbox / f"w{number}.dcm"
    attributes = {
        "SOPInstanceUID": f"1.2.3.4.{number}",
        "StudyInstanceUID": f"1.2.3.5.{number}",
        "PatientID": f"patient-{number}",
        **header,
    }
    pixels = wide_pixels(number).astype(np.uint16)
    path.write_bytes(encode_radiograph(pixels, uid.ExplicitVRLittleEndian, attributes))
    return path


def page_of(world: World, name: str, whole: bool = False) -> str:
    """Return an HTML page of the night, with or without what says how long it took."""
    if whole:
        (path,) = Path(world.results_uri).glob(f"scores/date=*/{name}")
        return path.read_text("utf-8")
    (found,) = [data for key, data in world.results().items() if key.endswith(f"/{name}")]
    return found.decode()


def flag_everything(world: World) -> None:
    """Publish the model with thresholds that every X-ray reaches."""
    fitted = calibration()
    for finding in FINDINGS:
        fitted["findings"][finding]["threshold"] = 0.0
    world.publish(calibration=fitted)


def test_the_peak_lies_where_the_map_is_highest_in_pixels_of_an_image_that_is_not_square(
    world: World,
) -> None:
    for number in range(4):
        add_wide_png(world, number)
    world.run()
    bundle = load_bundle(next((world.root / "models").glob("*/bundle.json")).parent)
    reading = nightly_read.Reading(str(world.inbox), bundle.info.preprocessing, NO_GATE, b"salt")
    rows = {(row["object_key"], row["finding"]): row for row in world.table("part-")}
    peaks = set()
    for image in read_plan(open_ledger(world.results_uri), 1).images:
        xray = nightly_read.read_xray(reading, image)
        assert isinstance(xray, XRay)
        stack = partial(np.take, xray.pixels[None], axis=0)
        maps = predict(bundle.network, stack, np.arange(1), device="cpu").maps
        for column, finding in enumerate(FINDINGS):
            region = extract_region(maps[0, column], SIDE_PX, RegionConfig())
            assert region.peak_row is not None
            assert region.peak_column is not None
            row = rows[image.key, finding]
            assert float(row["peak_row_px"]) == region.peak_row * HEIGHT_PX / SIDE_PX
            assert float(row["peak_column_px"]) == region.peak_column * WIDTH_PX / SIDE_PX
            peaks.add((region.peak_row, region.peak_column))
    # Not all of them in the middle or on the diagonal, where a mistake would not show.
    assert len({row for row, _ in peaks}) > 1
    assert any(row != column for row, column in peaks)


def test_each_row_ends_with_what_its_x_ray_took_and_the_digest_leaves_that_out(
    world: World,
) -> None:
    for number in range(3):
        world.add_dicom(number)
    settings = ResultSettings(quality=NO_GATE.quality, dicom_results=True)
    world.run(results=settings)
    (path,) = Path(world.results_uri).glob("scores/date=*/part-000001.parquet")
    table = pq.read_table(path)
    names = ["read_s", "decode_s", "forward_s", "regions_s", "dicom_s"]
    assert table.column_names[-5:] == names
    seconds = table.select(["object_key", *names]).to_pylist()
    assert all(0 < row[name] < 60 for row in seconds for name in names)
    assert len({tuple(row.values()) for row in seconds}) == 3, "one for all findings of an X-ray"
    head, *lines = path.with_suffix(".csv").read_text("utf-8").splitlines()
    assert head.endswith("," + ",".join(names))
    written = [dict(zip(names, map(float, line.split(",")[-5:]), strict=True)) for line in lines]
    assert written == table.select(names).to_pylist()
    cut = subprocess.run(
        ["sh", "-c", f"sed -E 's/(,[^,]*){{5}}$//' {path.with_suffix('.csv')} | sha256sum"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    completion = read_completion(open_ledger(world.results_uri), 1)
    assert completion is not None
    assert cut.stdout.split()[0] == completion["scores_sha256"]
    report = page_of(world, "report.html", whole=True)
    assert all(f">{name.removesuffix('_s')}<" in report for name in names)


def test_nothing_is_said_of_the_time_for_dicom_results_where_none_were_asked_for(
    world: World,
) -> None:
    world.add_dicom(0)
    world.run()
    (path,) = Path(world.results_uri).glob("scores/date=*/part-000001.parquet")
    table = pq.read_table(path)
    assert table.column("dicom_s").null_count == table.num_rows == len(FINDINGS)
    assert ">dicom<" not in page_of(world, "report.html", whole=True)


def test_the_region_of_an_image_that_is_not_square_reaches_beyond_its_shorter_side(
    world: World,
) -> None:
    for number in range(6):
        add_wide_png(world, number)
    world.run()
    boxes = [row for row in world.table("part-") if row["region_status"] == "ok"]
    assert len(boxes) > 0
    assert all(float(row["region_bottom_px"]) <= HEIGHT_PX for row in boxes)
    assert all(float(row["region_right_px"]) <= WIDTH_PX for row in boxes)
    for row in boxes:
        assert float(row["region_top_px"]) % (HEIGHT_PX / SIDE_PX) == 0
        assert float(row["region_left_px"]) % (WIDTH_PX / SIDE_PX) == 0


def test_rows_say_which_attribute_their_millimetres_come_from(world: World) -> None:
    add_wide_dicom(world, 0, ImagerPixelSpacing=[0.5, 0.25])
    add_wide_dicom(world, 1, PixelSpacing=[0.4, 0.4])
    add_wide_dicom(world, 2)
    add_wide_png(world, 3)
    world.run()
    sources = {row["object_key"]: row["spacing_source"] for row in world.table("part-")}
    assert sources == {
        "w0.dcm": "imager_pixel_spacing", "w1.dcm": "pixel_spacing", "w2.dcm": "", "w3.png": "",
    }  # fmt: skip
    for row in world.table("part-"):
        assert bool(row["region_top_mm"]) == bool(row["region_top_px"] and row["spacing_source"])


def test_the_report_shows_the_most_urgent_flagged_x_rays_the_most_urgent_first(
    world: World,
) -> None:
    flag_everything(world)
    for number in range(8):
        world.add_dicom(number)
    settings = ResultSettings(quality=QualityConfig(check_inversion=False), report_cases=3)
    world.run(results=settings, shard_size=5)
    urgency: dict[str, float] = {}
    for row in world.table("part-"):
        product = DEFAULT_URGENCY[row["finding"]] * float(row["probability"])
        urgency[row["study_uid"]] = max(urgency.get(row["study_uid"], 0.0), product)
    expected = sorted(urgency, key=lambda study: -urgency[study])[:3]
    report = page_of(world, "report.html")
    cases = re.findall(r'<img src="data:image/png;base64,[^"]{500,}" alt="X-ray with', report)
    assert len(cases) == 3
    assert re.findall(r"study <a [^>]*>(1\.2\.3\.5\.\d+)<", report) == expected


def test_an_x_ray_out_of_distribution_is_noted_on_the_worklist_and_listed_in_the_report(
    world: World,
) -> None:
    publish_reference(world, threshold=0.0)
    for number in range(3):
        world.add_dicom(number)
    world.run()
    notes = [row["notes"].split(";") for row in world.table("worklist")]
    assert [said.count("out_of_distribution") for said in notes] == [1, 1, 1]
    distances = {
        row["study_uid"]: float(row["out_of_distribution_score"]) for row in world.table("part-")
    }
    listed = re.findall(
        r'<th scope="row" class="text uid">(1\.2\.3\.5\.\d)</th><td>([\d.]+)</td>',
        page_of(world, "report.html"),
    )
    farthest_first = sorted(distances.items(), key=lambda pair: -pair[1])
    assert listed == [(study, f"{distance:.2f}") for study, distance in farthest_first]


def test_x_rays_like_those_of_the_reference_are_not_noted(world: World) -> None:
    publish_reference(world, threshold=1e6)
    world.add_dicom(0)
    world.run()
    assert "out_of_distribution" not in world.table("worklist")[0]["notes"]
    report = page_of(world, "report.html")
    assert "Flagged above" in report
    assert "30 held-out patients are too few for 1.0%" in report
    assert "1.2.3.5.0</th>" not in report


def test_no_page_shows_the_name_that_a_sender_gave_a_file(world: World) -> None:
    world.add_dicom(1, "DOE^JANE.dcm")
    world.add_dicom(1, "DOE^JANE_copy.dcm")
    (world.inbox / "ROE^JIM.dcm").write_bytes(b"x" * 10)
    world.run()
    pages = {name: data for name, data in world.results().items() if name.endswith(".html")}
    assert len(pages) == 3
    for data in [*pages.values(), *(d for n, d in world.results().items() if "worklist" in n)]:
        assert b"DOE^" not in data
        assert b"ROE^" not in data
    report = page_of(world, "report.html")
    assert "rejected-000001.csv" in report
    assert "not an image" in report
    # Where they do stand, docs/results.md says so.
    assert [row["object_key"] for row in world.table("rejected-")] == [
        "DOE^JANE_copy.dcm", "ROE^JIM.dcm",
    ]  # fmt: skip


def test_files_without_a_score_are_counted_by_what_they_came_to_last(world: World) -> None:
    world.add_dicom(0, "a.dcm")
    world.add_dicom(0, "copy of a.dcm")
    world.add_png(1, "changes.png")
    (world.inbox / "junk.dcm").write_bytes(b"x" * 10)
    (world.inbox / "empty.dcm").write_bytes(b"")
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    world.add_png(2, "changes.png")
    world.run()
    ledger = open_ledger(world.results_uri)
    history = read_history(ledger)
    assert history.numbers == (1, 2)
    plans = [read_plan(ledger, number) for number in history.numbers]
    merged = [merge(one, history) for one in plans]
    junk = {("rejected", "not_an_image"): 1, ("rejected", "truncated"): 1}
    assert unscored_files(history, [], merged[0]) == {("postponed", "changed"): 1, **junk}
    assert unscored_files(history, plans[:1], merged[1]) == junk
    result = read_shard(ledger, plans[1], 0)
    assert result is not None
    assert result.images.num_rows == 1


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (WorklistIdentifiers.NONE, ()),
        (WorklistIdentifiers.ACCESSION, ("ACC-77", "2025-12-24")),
        (WorklistIdentifiers.PATIENT, ("ACC-77", "2025-12-24", "patient-3")),
    ],
)
def test_of_what_names_a_study_no_more_is_kept_than_the_worklist_shows(
    world: World, setting: WorklistIdentifiers, kept: tuple[str, ...]
) -> None:
    header = {"AccessionNumber": "ACC-77", "StudyDate": "20251224"}
    world.add_dicom(3, header=header)
    quality = QualityConfig(check_inversion=False)
    worklist = WorklistConfig(worklist_identifiers=setting)
    world.run(results=ResultSettings(quality=quality, worklist=worklist))
    (row,) = world.table("worklist")
    named = (row["accession_number"], row["study_date"], row["patient_id"])
    assert tuple(name for name in named if name) == kept
    page = page_of(world, "worklist.html")
    files = [path.read_bytes() for path in Path(world.results_uri).rglob("*") if path.is_file()]
    for name in ("ACC-77", "2025-12-24", "patient-3"):
        assert (name in page) == (name in kept)
        assert any(name.encode() in data for data in files) == (name in kept)
