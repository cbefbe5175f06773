"""The ingest report: what came in, was kept, was rejected and why, and what needs review."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chexradinet.reports import count, write_page
from chexradinet.reports.overlay import overlay, png_bytes

_THUMBNAIL_SIDE_PX = 200
_MAX_THUMBNAILS = 24


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One X-ray to review."""

    image: npt.NDArray[np.uint8]
    """Grey values, shape (H, W)."""
    image_id: str
    """Opaque identifier; never a name."""
    reason: str
    """Why it needs review, or the code it was rejected with."""

    @property
    def png(self) -> bytes:
        """The X-ray, enlarged to be seen."""
        return png_bytes(overlay(self.image, None, min_side_px=_THUMBNAIL_SIDE_PX))


@dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What the ingest counted."""

    dataset: str
    """Name of the data set."""
    digest: str
    """Digest of its content, in hex."""
    num_found: int
    """Files the source named or held."""
    num_kept: int
    """X-rays in the data set."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason code to count."""
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split to `images` and `patients`."""
    positives: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Finding to split to positive cases."""
    views: Mapping[str, int] = field(default_factory=dict)
    """View to images; the empty name is unknown."""
    notes: Sequence[str] = ()
    """What a reader must know beside the counts, one sentence each."""

    @property
    def num_rejected(self) -> int:
        """Rejected files."""
        return sum(self.rejected.values())

    @property
    def cards(self) -> list[tuple[str, str, str]]:
        """Headline counts: label, value, note."""
        unexplained = self.num_found - self.num_kept - self.num_rejected
        values = [
            ("Found", count(self.num_found), "files of the source"),
            ("Kept", count(self.num_kept), "X-rays in the data set"),
            ("Rejected", count(self.num_rejected), f"for {len(self.rejected)} reasons"),
        ]
        if unexplained:
            values.append(("Unexplained", count(unexplained), "neither kept nor rejected"))
        return values

    @property
    def without_positives(self) -> dict[str, list[str]]:
        """Split to the findings that have no positive case in it; splits with none left out."""
        found = {
            split: [name for name, counts in self.positives.items() if not counts.get(split, 0)]
            for split in self.splits
        }
        return {split: names for split, names in found.items() if names}


def write_ingest_report(
    path: Path, summary: IngestSummary, samples: Sequence[Thumbnail] = ()
) -> None:
    """Write the report, atomically: one self-contained file.

    Args:
        path: The HTML file.
        summary: What was counted.
        samples: X-rays to review; the first 24 are shown, the rest counted.
    """
    write_page(
        path,
        "ingest",
        summary=summary,
        rejected=sorted(summary.rejected.items(), key=lambda item: (-item[1], item[0])),
        samples=samples[:_MAX_THUMBNAILS],
        num_more=max(0, len(samples) - _MAX_THUMBNAILS),
    )
