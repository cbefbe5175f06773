"""Kubeflow component of `flows.ingest`."""

from kfp import dsl

from chexradinet.steps.worker import worker


@worker
def ingest(
    source: str,
    data_format: str,
    findings: str,
    image_side: int,
    geometry: str,
    uncertain_labels: str,
    validation_fraction: float,
    split_seed: int,
    max_reject_fraction: float,
    dataset: dsl.Output[dsl.Dataset],
    ingest_report: dsl.Output[dsl.HTML],
) -> None:
    """Decode the source's X-rays once and write the data set that all later stages read."""
    from pathlib import Path

    from chexradinet.config import (
        GeometryMode,
        IngestConfig,
        PreprocessingConfig,
        SourceFormat,
        choice,
    )
    from chexradinet.flows.ingest import ingest
    from chexradinet.flows.ingest_summary import report_ingest

    info = ingest(
        source,
        Path(dataset.path),
        IngestConfig(
            format=choice(SourceFormat, "data_format", data_format),
            findings=tuple(name for name in findings.split(",") if name),
            preprocessing=PreprocessingConfig(
                image_side=image_side, geometry=choice(GeometryMode, "geometry", geometry)
            ),
            uncertain=uncertain_labels,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            max_reject_fraction=max_reject_fraction,
        ),
    )
    report_ingest(Path(dataset.path), Path(ingest_report.path))
    dataset.metadata["digest"] = info.digest
    dataset.metadata["images"] = info.counts["images"]
