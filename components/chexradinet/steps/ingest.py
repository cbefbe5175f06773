"""Kubeflow component of `ingest.ingest`."""

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
    labels: str,
    test_fraction: float,
    voi_index: int,
    min_age_years: float,
    check_inversion: bool,
    num_workers: int,
    shard_size: int,
    dataset: dsl.Output[dsl.Dataset],
    ingest_report: dsl.Output[dsl.HTML],
) -> int:
    """Write the data set that all later stages read; return its number of training images."""
    from pathlib import Path

    from chexradinet.config import (
        DicomConfig,
        GeometryMode,
        IngestConfig,
        PreprocessingConfig,
        QualityConfig,
        SourceFormat,
        choice,
    )
    from chexradinet.ingest.ingest import ingest
    from chexradinet.ingest.summary import report_ingest

    info = ingest(
        source,
        Path(dataset.path),
        IngestConfig(
            data_format=choice(SourceFormat, "data_format", data_format),
            findings=tuple(name for name in findings.split(",") if name),
            preprocessing=PreprocessingConfig(
                image_side=image_side,
                geometry=choice(GeometryMode, "geometry", geometry),
                dicom=DicomConfig(voi_index=voi_index),
            ),
            quality=QualityConfig(min_age_years=min_age_years, check_inversion=check_inversion),
            uncertain_labels=uncertain_labels,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            max_reject_fraction=max_reject_fraction,
            test_fraction=test_fraction,
            ingest_workers=num_workers,
            ingest_shard_size=shard_size,
        ),
        labels=labels,
    )
    report_ingest(Path(dataset.path), Path(ingest_report.path))
    dataset.metadata["digest"] = info.digest
    dataset.metadata["images"] = info.counts["images"]
    return int(info.counts["splits"]["train"])
