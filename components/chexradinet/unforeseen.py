"""What the readers did not foresee refuses one file and does not end the batch."""

import logging
import struct
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from chexradinet.errors import ChexRadiNetError, RejectedImageError
from chexradinet.records import RejectReason

_LOG = logging.getLogger(__name__)

_UNFORESEEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    cv2.error,
    struct.error,
)


@contextmanager
def refusing_faults() -> Iterator[None]:
    """Turn an unforeseen fault of the block into a rejection; the log asks to report it.

    Raises:
        RejectedImageError: it says where the fault is, and nothing of the file.
    """
    try:
        yield
    except ChexRadiNetError:
        raise
    except _UNFORESEEN as error:
        # The text of such an error may quote the file, its type and place cannot.
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} at line {place.lineno} of {Path(place.filename).name}"
        _LOG.warning("a fault of the reader, please report it: %s", fault)
        raise RejectedImageError(
            RejectReason.UNREADABLE, f"a fault of the reader: {fault}"
        ) from None
