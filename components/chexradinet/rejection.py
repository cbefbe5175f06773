"""A fault of a reader rejects one file and does not end the batch."""

import logging
import struct
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from chexradinet.errors import ChexRadiNetError, RejectedImageError
from chexradinet.parallel import time_limit
from chexradinet.records import RejectReason

DECODE_TIMEOUT_S = 60.0
"""Most seconds that the decoding of one file may take."""

_LOG = logging.getLogger(__name__)

_READER_FAULTS = (
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


def is_memory_error(error: Exception) -> bool:
    """Tell whether Python or OpenCV had no memory left."""
    of_opencv = isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
    return of_opencv or isinstance(error, MemoryError)


def out_of_memory() -> RejectedImageError:
    """Return the rejection of a file that takes more memory than it may."""
    detail = "decoding it takes more memory than a process may use"
    return RejectedImageError(RejectReason.TOO_LARGE, detail)


@contextmanager
def reject_on_error(timeout_s: float = DECODE_TIMEOUT_S) -> Iterator[None]:
    """Turn an unexpected fault of the block into a rejection; the log asks to report it.

    Args:
        timeout_s: Most seconds that the block may take in a worker process.

    Raises:
        RejectedImageError: it says where the fault is, and nothing of the file.
    """
    try:
        with time_limit(timeout_s):
            yield
    except ChexRadiNetError:
        raise
    except MemoryError:
        raise out_of_memory() from None
    except _READER_FAULTS as error:
        if is_memory_error(error):
            raise out_of_memory() from None
        # The text of such an error may quote the file, its type and place cannot.
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} at line {place.lineno} of {Path(place.filename).name}"
        _LOG.warning("a fault of the reader, please report it: %s", fault)
        raise RejectedImageError(
            RejectReason.UNREADABLE, f"a fault of the reader: {fault}"
        ) from None
