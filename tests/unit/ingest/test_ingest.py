import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexradinet.config import IngestConfig, PreprocessingConfig, QualityConfig
from chexradinet.dataset import Dataset, open_dataset, read_doubtful
from chexradinet.errors import (
    LabelTableError,
    SourceError,
    TooManyRejectsError,
    UnknownFindingError,
)
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import report_ingest
from chexradinet.phantom import write_phantom
from chexradinet.records import Box, LabelledBox
from tests.ingest_world import chest

SIDE = 32


def noise(seed: int, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


class Folder:
    """A source under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[str] = []
        path.mkdir()

    def image(self, file: str, pixels: np.ndarray, row: str = "p,Mass,") -> Path:
        """Add a file, and a row with patient, findings and split."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        self.row(f"{file},{row}")
        return path

    def row(self, row: str) -> None:
        """Add a row without a file."""
        self.rows.append(row)
        lines = ["file,patient,findings,split", *filter(None, self.rows)]
        (self.path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")

    def ingest(self, **settings: object) -> Dataset:
        """Ingest the folder and open what came out."""
        target = self.path.with_name("dataset")
        preprocessing = PreprocessingConfig(image_side=SIDE)
        config = IngestConfig(preprocessing=preprocessing, **settings)  # type: ignore[arg-type]
        info = ingest(str(self.path), target, config)
        dataset = open_dataset(target)
        assert dataset.info == info
        return dataset


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "source")


def reasons(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.rejected["source_uri"], dataset.rejected["reason"], strict=True))


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist"):
        ingest(str(tmp_path / "nowhere"), tmp_path / "dataset", IngestConfig())


def test_file_given_as_source_is_refused(folder: Folder) -> None:
    path = folder.image("a.png", noise(0))
    with pytest.raises(SourceError, match=r"a\.png is a file; give the folder"):
        ingest(str(path), folder.path / "dataset", IngestConfig())


def test_empty_source_is_refused(folder: Folder) -> None:
    with pytest.raises(SourceError, match="holds no image"):
        folder.ingest()


def test_images_without_a_table_are_refused(folder: Folder) -> None:
    folder.image("a.png", noise(0))
    (folder.path / "labels.csv").unlink()
    with pytest.raises(SourceError, match=r"one label table.*no CSV file"):
        folder.ingest()


def test_folder_that_cannot_be_listed_and_a_link_in_a_circle_are_left_out_and_counted(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.image("open/a.png", noise(0))
    folder.image("closed/b.png", noise(1))
    (folder.path / "open" / "again").symlink_to(folder.path)
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if getattr(path, "name", "") == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("chexradinet.ingest.os.scandir", refuse)
    dataset = folder.ingest()
    assert reasons(dataset) == {"closed/b.png": "missing"}
    assert dataset.info.ingest["unlisted_folders"] == 2
    assert "2 folders cannot be listed" in caplog.text
    report_ingest(dataset.path, folder.path.with_name("report.html"))
    page = folder.path.with_name("report.html").read_text(encoding="utf-8")
    assert "2 folders could not be listed and were left out" in page


def test_what_comes_in_goes_out_as_image_or_rejection(folder: Folder) -> None:
    folder.image("good.png", noise(1))
    folder.image("again.png", noise(1))
    folder.image("flat.png", np.zeros((48, 48), np.uint8))
    folder.image("small.png", noise(2, side=20))
    cut = folder.image("cut.png", noise(3))
    cut.write_bytes(cut.read_bytes()[:500])
    folder.row("text.png,p,Mass,")
    (folder.path / "text.png").write_text("no image")
    folder.row("gone.png,p,Mass,")
    folder.image("unnamed.png", noise(4), row="")
    folder.rows.pop()
    folder.image("other.png", noise(5), row="q,No Finding,")
    dataset = folder.ingest(max_reject_fraction=1)
    assert dataset.manifest["image_id"].tolist() == ["good.png", "other.png"]
    assert reasons(dataset) == {
        "again.png": "duplicate",
        "flat.png": "constant",
        "small.png": "too_small",
        "cut.png": "truncated",
        "text.png": "not_an_image",
        "gone.png": "missing",
        "unnamed.png": "not_labelled",
    }
    assert dataset.info.counts["rejected"]["duplicate"] == 1


def test_file_of_a_kind_that_is_not_read_is_no_missing_one_and_others_are_counted(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.image("good.png", noise(1))
    folder.image("scans/a.bmp", noise(2))
    folder.row("gone.bmp,p,Mass,")
    for name in ("b.bmp", "weights.bin", "README.md", "FAQ.pdf", "notes.TXT", ".hidden.bin"):
        (folder.path / name).write_bytes(b"x")
    dataset = folder.ingest(max_reject_fraction=1)
    assert reasons(dataset) == {"scans/a.bmp": "not_an_image", "gone.bmp": "missing"}
    assert "kind not read; PNG, JPEG, DICOM" in dataset.rejected["detail"].tolist()
    assert dataset.info.ingest["ignored_files"] == 2
    assert "2 files of other kinds" in caplog.text


def test_name_that_two_files_have_is_refused_and_a_copy_in_another_format_is_found(
    folder: Folder,
) -> None:
    folder.image("one/a.png", noise(1))
    folder.image("two/a.png", noise(2))
    folder.rows = ["a.png,p,Mass,"]
    folder.image("b.jpg", noise(3))
    folder.rows[-1] = "b.png,q,Mass,"
    folder.row("")
    with pytest.raises(LabelTableError, match=r"1 rows of labels\.csv .*one/a\.png"):
        folder.ingest()
    folder.rows[0] = "two/a.png,p,Mass,"
    folder.row("")
    dataset = folder.ingest(max_reject_fraction=1)
    assert dataset.manifest["source_uri"].tolist() == ["two/a.png", "b.jpg"]
    assert reasons(dataset) == {"one/a.png": "not_labelled"}


def test_settings_are_recorded_and_part_of_the_identity(folder: Folder) -> None:
    folder.image("a.png", noise(1))
    first = folder.ingest(uncertain="ones", test_fraction=0.0, validation_fraction=0.0)
    assert first.info.ingest == {
        "format": "csv",
        "uncertain": "ones",
        "validation_fraction": 0.0,
        "test_fraction": 0.0,
        "split_method": "stratified by finding, 1",
        "ignored_files": 0,
    }
    assert folder.ingest(uncertain="zeros").digest != first.digest


def test_placeholder_patient_ids_are_told_where_they_leave_a_split_empty(
    folder: Folder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for number in range(4):
        folder.image(f"{number}.png", noise(number), row="anonymous,Mass,")
    told = "no X-ray is in the validation and the test split, all 4 are of 1 patients"
    folder.ingest(validation_fraction=0.0, test_fraction=0.0)
    assert told not in caplog.text
    folder.ingest()
    assert told in caplog.text
    report_ingest(folder.path.with_name("dataset"), tmp_path / "report.html")
    assert "No X-ray is in the validation and test split" in (tmp_path / "report.html").read_text()


def test_too_many_rejects_fail_with_counts_and_leave_no_data_set(folder: Folder) -> None:
    folder.image("good.png", noise(1))
    for number in range(3):
        folder.row(f"gone-{number}.png,p,Mass,")
    with pytest.raises(TooManyRejectsError, match=r"3 of 4 X-rays were rejected \(missing 3\)"):
        folder.ingest(max_reject_fraction=0.7)
    assert [path.name for path in folder.path.parent.iterdir()] == ["source"]
    assert len(folder.ingest(max_reject_fraction=0.75)) == 1


def test_source_of_which_nothing_remains_fails_whatever_is_allowed(folder: Folder) -> None:
    folder.image("flat.png", np.zeros((48, 48), np.uint8))
    with pytest.raises(TooManyRejectsError, match="constant 1"):
        folder.ingest(max_reject_fraction=1)


def test_unknown_finding_is_refused(folder: Folder) -> None:
    folder.image("a.png", noise(0), row="p,Infiltrat,")
    with pytest.raises(UnknownFindingError, match=r"labels\.csv, row 2.*mean 'Infiltra"):
        folder.ingest()


def test_patient_in_two_splits_is_refused(folder: Folder) -> None:
    folder.image("a.png", noise(0), row="p,Mass,train")
    folder.image("b.png", noise(1), row="p,Mass,test")
    with pytest.raises(LabelTableError, match="1 patients are in two splits"):
        folder.ingest()


def test_colour_transparency_and_depth_give_the_same_pixels_as_grey(folder: Folder) -> None:
    grey = noise(0, side=SIDE)
    folder.image("grey.png", grey)
    folder.image("deep.png", grey.astype(np.uint16) * 257)
    opaque = np.full_like(grey, 255)
    folder.image("colour.png", np.stack([grey, grey, grey, opaque], axis=-1))
    dataset = folder.ingest(max_reject_fraction=1)
    assert reasons(dataset) == {"deep.png": "duplicate", "colour.png": "duplicate"}
    np.testing.assert_array_equal(dataset.images(np.array([0]))[0], grey)


def test_links_spaces_and_unicode_are_followed(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    Image.fromarray(noise(1)).save(elsewhere / "a b.png")
    decomposed = unicodedata.normalize("NFD", "Röntgen/Thorax ü 胸.png")
    folder.image(decomposed, noise(2), row="q,Mass,")
    folder.rows[0] = unicodedata.normalize("NFC", folder.rows[0])
    folder.row("a b.png,p,Mass,")
    (folder.path / "linked").symlink_to(elsewhere)
    (folder.path / "link.png").symlink_to(elsewhere / "a b.png")
    (folder.path / "linked" / "cycle").symlink_to(folder.path)
    (folder.path / ".hidden.png").write_bytes(b"")
    dataset = folder.ingest()
    assert len(dataset) == 2
    assert reasons(dataset) == {"link.png": "not_labelled"}
    assert dataset.manifest["source_uri"].tolist() == [decomposed, "linked/a b.png"]


def test_first_row_of_equal_pixels_stays(folder: Folder) -> None:
    folder.image("z.png", noise(1))
    folder.image("a.png", noise(1))
    dataset = folder.ingest()
    assert dataset.manifest["image_id"].tolist() == ["z.png"]


def test_splits_are_made_among_patients_that_have_files(folder: Folder) -> None:
    for number in range(10):
        folder.image(f"{number}.png", noise(number), row=f"{number},Mass,")
    for number in range(10, 40):
        folder.row(f"{number}.png,{number},Mass,")
    dataset = folder.ingest(max_reject_fraction=1, validation_fraction=0.25, test_fraction=0.2)
    assert dataset.info.counts["splits"] == {"train": 6, "validation": 2, "test": 2}


def test_progress_counts_every_file(tmp_path: Path) -> None:
    write_phantom(tmp_path / "phantom", 5, 64, seed=1)
    seen: list[tuple[int, int]] = []
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=SIDE))
    ingest(
        str(tmp_path / "phantom"),
        tmp_path / "dataset",
        config,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(number, 5) for number in range(1, 6)]


def test_phantom_comes_back_with_its_labels_boxes_and_splits(tmp_path: Path) -> None:
    write_phantom(tmp_path / "phantom", 36, 64, seed=1)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=SIDE))
    info = ingest(str(tmp_path / "phantom"), tmp_path / "dataset", config)
    dataset = open_dataset(tmp_path / "dataset")
    assert info.counts["splits"] == {"train": 24, "validation": 6, "test": 6}
    for row in range(len(dataset)):
        positive = [name for name in info.findings if dataset.manifest[name][row] == 1]
        assert sorted(positive) == sorted(item.finding for item in dataset.boxes(row))


def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    write_phantom(tmp_path / "phantom", 60, 64, seed=1)
    preprocessing = PreprocessingConfig(image_side=SIDE)
    digests = {
        ingest(
            str(tmp_path / "phantom"),
            tmp_path / f"dataset-{workers}",
            IngestConfig(preprocessing=preprocessing, ingest_workers=workers, ingest_shard_size=7),
        ).digest
        for workers in (0, 1, 2)
    }
    assert len(digests) == 1


def test_boxes_of_another_frame_are_scaled_and_those_outside_left_out(tmp_path: Path) -> None:
    source = tmp_path / "nih"
    source.mkdir()
    tall = noise(0, side=512)[:, :256]
    Image.fromarray(tall).save(source / "00000001_000.png")
    (source / "entry.csv").write_text(
        "Image Index,Finding Labels,Patient ID\n00000001_000.png,Mass|Nodule,1\n"
    )
    (source / "boxes.csv").write_text(
        'Image Index,Finding Label,"Bbox [x",y,w,h]\n00000001_000.png,Mass,512,256,256,128\n'
        "00000001_000.png,Nodule,1000,1000,100,100\n00000001_000.png,Nodule,2000,10,10,10\n"
    )
    preprocessing = PreprocessingConfig(image_side=128)
    config = IngestConfig(data_format="nih", preprocessing=preprocessing)  # type: ignore[arg-type]
    ingest(str(source), tmp_path / "dataset", config)
    assert open_dataset(tmp_path / "dataset").boxes(0) == (
        LabelledBox("Mass", Box(32, 64, 48, 96)),
        LabelledBox("Nodule", Box(125, 125, 128, 128)),
    )


def test_a_file_that_two_rows_name_is_ambiguous_and_never_labelled(folder: Folder) -> None:
    folder.image("good.png", noise(0))
    folder.image("sub/twice.png", noise(1))
    folder.row("twice.png,q,No Finding,")
    folder.image("stem.png", noise(2))
    folder.rows.pop()
    folder.row("stem.jpg,r,Mass,")
    folder.row("stem.tif,s,No Finding,")
    dataset = folder.ingest(max_reject_fraction=1)
    assert dataset.manifest["image_id"].tolist() == ["good.png"]
    assert reasons(dataset) == {"sub/twice.png": "ambiguous", "stem.png": "ambiguous"}
    assert dataset.info.counts["rejected"] == {"ambiguous": 4}


def test_picture_whose_black_and_white_are_swapped_is_rejected_and_shown(folder: Folder) -> None:
    folder.image("good.png", chest(0))
    folder.image("swapped.png", 255 - chest(1))
    dataset = folder.ingest()
    assert reasons(dataset) == {"swapped.png": "inverted"}
    ((name, reason, picture),) = read_doubtful(dataset.path)
    assert (name, reason, picture.shape) == ("swapped.png", "inverted", (200, 200))
    report_ingest(dataset.path, folder.path.with_name("report.html"))
    page = folder.path.with_name("report.html").read_text(encoding="utf-8")
    assert "rejected: inverted" in page
    unchecked = folder.ingest(quality=QualityConfig(check_inversion=False))
    assert len(unchecked) == 2


def test_findings_without_a_positive_in_a_split_are_named_before_anything_is_trained(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    for number, split in enumerate(("train", "validation", "test")):
        finding = "Mass|Hernia" if split == "train" else "Mass"
        folder.image(f"{number}.png", noise(number), row=f"{number},{finding},{split}")
    dataset = folder.ingest()
    named = "validation: Hernia; test: Hernia"
    assert f"without a positive X-ray in a split: {named}" in caplog.text
    report_ingest(dataset.path, folder.path.with_name("report.html"))
    assert named in folder.path.with_name("report.html").read_text(encoding="utf-8")
