"""Pictures of rejected X-rays that a person should look at: is the gate right?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import GeometryMode, IngestConfig, PreprocessingConfig
from chexradinet.dataset.dataset import DatasetWriter
from chexradinet.dataset.deidentification import DeidentificationKey
from chexradinet.dataset.labels.header_table import (
    DOUBTFUL,
    PICTURE_SIDE_PX,
    PICTURES,
    write_doubtful,
)
from chexradinet.dataset.naming import name_of
from chexradinet.dataset.schema import Rejection
from chexradinet.errors import RejectedImageError
from chexradinet.ingest.decoding import is_dicom
from chexradinet.ingest.sources import Source
from chexradinet.records import RejectReason

DOUBTFUL_REASONS = (RejectReason.INVERTED, RejectReason.NOT_FRONTAL)
"""Judged by a rule that may err; the others are facts."""
MAX_EACH = 12
"""Pictures kept of each reason: the first in the order of the source."""


def attach_doubtful(
    writer: DatasetWriter,
    rejections: Sequence[Rejection],
    source: Source,
    config: IngestConfig,
    key: DeidentificationKey | None,
) -> None:
    """Write pictures of doubtful rejects into a data set; nothing where there are none.

    Args:
        writer: Of the data set.
        rejections: With names as the source has them.
        source: Where the files are read from once more.
        config: How they are shown.
        key: Codes the names.
    """
    names, pictures = [], []
    for reason in DOUBTFUL_REASONS:
        for rejection in [item for item in rejections if item.reason is reason][:MAX_EACH]:
            picture = _picture(source, rejection.source_uri, config)
            if picture is not None:
                names.append((name_of(key, "file", rejection.source_uri), reason.value))
                pictures.append(picture)
    if pictures:
        write_doubtful(writer.directory, names, pictures)
        writer.attach(DOUBTFUL)
        writer.attach(PICTURES)


def _picture(source: Source, file: str, config: IngestConfig) -> NDArray[np.uint8] | None:
    """Return a small picture; None for what is not DICOM, cannot be read, or may carry text."""
    try:
        content = source.read(file)
        if not is_dicom(file, content, config):
            return None
        from chexradinet.dicom.reader import read_radiograph, to_model

        radiograph = read_radiograph(content, config.preprocessing.dicom)
        if radiograph.header.burned_in_annotation == "YES":
            return None
        small = PreprocessingConfig(image_side=PICTURE_SIDE_PX, geometry=GeometryMode.PAD)
        return to_model(radiograph, small)[0]
    except RejectedImageError:
        return None
