"""`chexradinet ingest`: every option arrives, and a slip of the keyboard is a message."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chexradinet.cli import app
from chexradinet.config import DicomConfig, QualityConfig
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.errors import ChexRadiNetError
from chexradinet.phantom import write_phantom
from tests.ingest_world import KEY_VARIABLE, SECRET, chest, dicom


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    write_phantom(tmp_path / "phantom", 12, 64, seed=1)
    return tmp_path / "phantom"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs the command with `--out` below the test's folder."""

    def ingest(source: Path | str, *options: str, out: str = "{folder}/dataset") -> Result:
        words = ["ingest", str(source), "--out", out.format(folder=tmp_path), "--image-side", "32"]
        return CliRunner().invoke(
            app, [*words, *(text.format(folder=tmp_path) for text in options)]
        )

    return ingest


@pytest.fixture
def opened(tmp_path: Path, run: Callable[..., Result]) -> Callable[..., Dataset]:
    """Return a function that runs the command and opens its data set."""

    def ingested(source: Path, *options: str) -> Dataset:
        result = run(source, *options)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return open_dataset(tmp_path / "dataset")

    return ingested


def test_tables_elsewhere_fractions_shards_and_report_are_options(
    phantom: Path, opened: Callable[..., Dataset], tmp_path: Path
) -> None:
    with (phantom / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    (tmp_path / "tables").mkdir()
    with (tmp_path / "tables" / "labels.csv").open("w") as stream:
        writer = csv.DictWriter(stream, ["file", "patient", "findings"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (phantom / "labels.csv").unlink()
    dataset = opened(
        phantom,
        *("--labels", "{folder}/tables", "--report", "{folder}/reports/r.html"),
        *("--test-fraction", "0.5", "--validation-fraction", "0", "--ingest-shard-size", "5"),
    )
    assert dataset.info.shard_sizes == (5, 5, 2)
    patients = dataset.info.counts["patients_by_split"]
    assert (patients["validation"], patients["test"]) == (0, 3)
    assert dataset.info.ingest["test_fraction"] == 0.5
    assert dataset.digest[:12] in (tmp_path / "reports" / "r.html").read_text()


def test_settings_of_dicom_files_are_options(
    opened: Callable[..., Dataset],
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    source = tmp_path / "source"
    source.mkdir()
    (source / "adult").write_bytes(dicom(1, PatientAge="040Y"))
    (source / "child").write_bytes(dicom(2, PatientAge="009Y"))
    (source / "inverted").write_bytes(dicom(3, 255 - chest(3)))
    (source / "small").write_bytes(dicom(4, chest(4, side=40)))
    dicoms = ("--data-format", "dicom", "--findings", "Mass", "--ingest-workers", "1")
    strict = run(source, *dicoms, "--min-side-px", "50", "--max-reject-fraction", "1")
    assert strict.exit_code == 0
    assert "rejected: inverted 1, too_small 1, under_age 1" in " ".join(strict.output.split())
    options = ("--voi-index", "1", "--no-prefer-voi-lut", "--min-age-years", "5")
    dataset = opened(source, *dicoms, *options, "--no-check-inversion", "--min-side-px", "40")
    assert len(dataset) == 4
    assert dataset.info.preprocessing.dicom == DicomConfig(voi_index=1, prefer_voi_lut=False)
    assert dataset.info.quality == QualityConfig(
        min_age_years=5, min_side_px=40, check_inversion=False
    )


@pytest.mark.parametrize(
    ("source", "out", "options", "told"),
    [
        ("{folder}/phantom", "/", (), "take the place of the source"),
        ("{folder}/phantom", "{folder}/phantom", (), "take the place of the source"),
        ("{folder}/phantom", "{folder}/phantom/labels.csv/ds", (), "become part of the source"),
        ("{folder}/phantom", "{folder}/file", (), "is a file"),
        ("{folder}/phantom", "{folder}/file/ds", (), "cannot be made"),
        ("{folder}/phantom", "/proc/x/ds", (), "cannot be made"),
        ("{folder}/phantom", "{folder}/" + "x" * 300, (), "File name too long"),
        ("x" * 300, "{folder}/ds", (), "File name too long"),
        ("{folder}/phantom", "{folder}/ds", ("--report", "{folder}"), "does not end in .html"),
        ("{folder}/phantom", "{folder}/ds", ("--report", "s3://b/r.html"), "is not a local path"),
        ("{folder}/phantom", "{folder}/ds", ("--report", "/proc/nope/r.html"), "cannot be written"),
        (
            "{folder}/phantom",
            "{folder}/ds",
            ("--labels", "{folder}/phantom/labels.csv"),
            "is a file; give the folder that the table lies in",
        ),
        ("{folder}/phantom", "{folder}/ds", ("--labels", "{folder}/no"), "does not exist"),
    ],
)
def test_slip_of_the_keyboard_is_a_message_and_costs_nothing(
    phantom: Path, run: Callable[..., Result], tmp_path: Path, source: str, out: str,
    options: tuple[str, ...], told: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("mine")
    result = run(source.format(folder=tmp_path), *options, out=out)
    assert isinstance(result.exception, ChexRadiNetError), result.output + repr(result.exception)
    assert told in str(result.exception)
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list((phantom / "images").iterdir())) == 12


def test_error_is_printed_without_a_traceback(phantom: Path) -> None:
    program = "from chexradinet.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "ingest", str(phantom), "--out", str(phantom)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("error: the data set would take the place of the source")
    assert "Traceback" not in ended.stderr
