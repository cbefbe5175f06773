"""From a row of a label table and its decoded file to the record that the data set keeps."""

from dataclasses import dataclass, replace

from chexradinet.dataset.deidentification import DeidentificationKey, coarse_age
from chexradinet.dataset.labels.table import TableRow
from chexradinet.dataset.naming import name_of
from chexradinet.dataset.schema import ImageRecord
from chexradinet.ingest.decoding import Facts
from chexradinet.records import Box, Geometry, LabelledBox, Split


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is the same for all X-rays of a source."""

    side: int
    """Height and width of model pixels."""
    box_frame: tuple[int, int] | None
    """Height and width of the image that boxes are measured in; None: the file."""
    min_age_years: float = 0.0
    """Youngest patient of a DICOM file, by the table's age."""
    key: DeidentificationKey | None
    """Makes codes of the source's names; None keeps them."""


def image_record(row: TableRow | None, file: str, facts: Facts, place: Placement) -> ImageRecord:
    """Return the record of one X-ray.

    A table's patient goes before the header's, as its author chose it to tell patients apart; a
    header's study and image go before the table's, as they are the same in every table.

    Args:
        row: What the tables say, with a split where one is known; None where they are silent.
        file: Place of the file, relative to the source.
        facts: What is known from the file.
        place: How it is placed and named.
    """
    key = place.key
    row = row or TableRow(file=file, image_id=file, patient_id="", labels={})
    geometry = with_extent(facts.geometry, row.extent_mm)
    patient = name_of(key, "patient", row.patient_id) or facts.patient_id
    age = row.age if key is None else coarse_age(row.age)
    return ImageRecord(
        image_id=facts.image_id or name_of(key, "image", row.image_id),
        patient_id=patient or name_of(key, "patient", facts.digest),
        study_id=facts.study_id or name_of(key, "study", row.study_id),
        view=row.view or facts.view,
        age=facts.age if age is None else age,
        sex=row.sex or facts.sex,
        split=row.split or Split.TRAIN,
        source_uri=name_of(key, "file", file),
        sha256=facts.digest,
        labels=row.labels,
        boxes=placed_boxes(row.boxes, place.box_frame, geometry, place.side),
        geometry=geometry,
    )


def placed_boxes(
    boxes: tuple[LabelledBox, ...],
    box_frame: tuple[int, int] | None,
    geometry: Geometry,
    side: int,
) -> tuple[LabelledBox, ...]:
    """Return boxes in model pixels, clipped to the image; one that lies outside is left out."""
    frame = box_frame or (geometry.original_height, geometry.original_width)
    down = geometry.original_height / frame[0]
    across = geometry.original_width / frame[1]
    placed = []
    for item in boxes:
        box = item.box
        original = Box(box.top * down, box.left * across, box.bottom * down, box.right * across)
        inside = geometry.to_model(original).clipped(side, side)
        if inside is not None:
            placed.append(LabelledBox(item.finding, inside))
    return tuple(placed)


def with_extent(geometry: Geometry, extent_mm: tuple[float, float] | None) -> Geometry:
    """Return the geometry with the spacing that follows from the exposed field, where known."""
    if extent_mm is None or geometry.row_spacing_mm is not None:
        return geometry
    return replace(
        geometry,
        row_spacing_mm=extent_mm[0] / geometry.original_height,
        column_spacing_mm=extent_mm[1] / geometry.original_width,
    )
