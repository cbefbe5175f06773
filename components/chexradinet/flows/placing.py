"""From a row of a label table and its decoded file to the record that the data set keeps."""

from dataclasses import replace

from chexradinet.dataset.schema import ImageRecord
from chexradinet.dataset.tables import TableRow
from chexradinet.flows.decoding import Decoded
from chexradinet.records import Box, Geometry, LabelledBox, Split


def image_record(
    row: TableRow, file: str, decoded: Decoded, box_frame: tuple[int, int] | None
) -> ImageRecord:
    """Return the record of one X-ray.

    Args:
        row: What the tables say, with a split where one is known.
        file: Place of the file, relative to the source.
        decoded: Model pixels and geometry.
        box_frame: Height and width of the image that boxes are measured in; None: the file.
    """
    geometry = with_extent(decoded.geometry, row.extent_mm)
    side = len(decoded.pixels)
    return ImageRecord(
        image_id=row.image_id,
        patient_id=row.patient_id,
        study_id=row.study_id,
        view=row.view or decoded.view,
        age=decoded.age if row.age is None else row.age,
        sex=row.sex or decoded.sex,
        split=row.split or Split.TRAIN,
        source_uri=file,
        sha256=decoded.digest,
        labels=row.labels,
        boxes=placed_boxes(row.boxes, box_frame, geometry, side),
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
