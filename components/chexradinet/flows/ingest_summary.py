"""The page that says what ingest kept, what it rejected, and why."""

from pathlib import Path

from chexradinet.dataset.format import open_dataset
from chexradinet.results.ingest_report import IngestSummary, write_ingest_report


def report_ingest(dataset: Path, target: Path) -> None:
    """Write the ingest report of a data set, drawn from the data set alone.

    Args:
        dataset: Directory that `ingest` wrote.
        target: The HTML file to make.

    Raises:
        ArtifactError: the data set cannot be read.
    """
    data = open_dataset(dataset, verify=False)
    counts = data.info.counts
    views = data.manifest["view"].value_counts(sort=False).sort_index()
    summary = IngestSummary(
        dataset=Path(data.info.source).name,
        digest=data.digest,
        num_found=counts["images"] + sum(counts["rejected"].values()),
        num_kept=counts["images"],
        rejected=counts["rejected"],
        splits={
            split: {"images": images, "patients": counts["patients_by_split"][split]}
            for split, images in counts["splits"].items()
        },
        positives=counts["positives"],
        views={str(view): int(count) for view, count in views.items()},
    )
    write_ingest_report(target, summary)
