"""Do the numbers of an ingest add up, and is what came out of use?"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chexradinet.config import IngestConfig
from chexradinet.dataset.schema import Rejection
from chexradinet.errors import ArtifactError, TooManyRejectsError
from chexradinet.ingest.plan import Plan
from chexradinet.records import RejectReason

_logger = logging.getLogger(__name__)


def check_rejected(rejected: Mapping[str, int], num_images: int, config: IngestConfig) -> None:
    """Refuse a source of which too much was rejected.

    Args:
        rejected: Reason to number of files.
        num_images: X-rays that enter.
        config: How much may be rejected.

    Raises:
        TooManyRejectsError: it was more, or everything.
    """
    num_rejected = sum(rejected.values())
    num_inputs = num_rejected + num_images
    if num_rejected <= config.max_reject_fraction * num_inputs and num_images:
        return
    raise TooManyRejectsError(
        f"{num_rejected} of {num_inputs} X-rays were rejected ({told(rejected)}); allowed is a "
        f"part of {config.max_reject_fraction}, and one must remain; check source and format, or "
        "raise max_reject_fraction"
    )


def told(rejected: Mapping[str, int]) -> str:
    """Return reasons and numbers as a line, the most frequent first."""
    return ", ".join(f"{reason} {times}" for reason, times in Counter(rejected).most_common())


def check_counts(plan: Plan, rejections: Sequence[Rejection], num_images: int) -> None:
    """Hold that each input came out once; a row without a file is one only where it is left.

    Raises:
        ArtifactError: one was lost, or came twice.
    """
    unused = (
        sum(item.reason is RejectReason.MISSING for item in rejections) if plan.unmatched else 0
    )
    came_out = len(rejections) + num_images
    if not plan.num_inputs <= came_out <= plan.num_inputs + unused:
        raise ArtifactError(
            f"{plan.num_inputs} X-rays came in, {came_out} are in the data set and its "
            "rejections; this is a fault of ingest, please report it"
        )


def empty_splits(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the splits that a part of the patients was to become and that have no X-ray.

    Args:
        counts: As `dataset.json` has them.
        settings: Its `ingest`; may be empty.
    """
    return [
        split
        for split in ("validation", "test")
        if settings.get(f"{split}_fraction", 0) > 0 and not counts["splits"][split]
    ]


def warn_of_empty_splits(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Log a warning where there are any; arguments are those of `empty_splits`."""
    empty = empty_splits(counts, settings)
    if empty:
        _logger.warning(
            "no X-ray is in the %s split, all %d are of %d patients: are ids of patients "
            "placeholders, or does the table give splits without it?",
            " and the ".join(empty),
            counts["images"],
            counts["patients"],
        )
