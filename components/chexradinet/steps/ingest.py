"""Kubeflow component of `ingest.ingest`."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.steps import worker


@worker
def ingest(
    source: str,
    labels: str,
    settings: dict,  # type: ignore[type-arg]
    num_shards: int,
    max_loop: int,
    dataset: dsl.Output[dsl.Dataset],
    ingest_report: dsl.Output[dsl.HTML],
) -> NamedTuple(  # type: ignore[valid-type]
    "Ingested",
    [("num_shards", int), ("shards", List[int])],  # noqa: UP006
):
    """Write the data set that all later stages read; return how rounds spread it over shards."""
    from pathlib import Path

    from chexradinet.config import IngestConfig
    from chexradinet.ingest.ingest import ingest
    from chexradinet.ingest.summary import report_ingest
    from chexradinet.monitoring import ProgressLog
    from chexradinet.training.rounds import shards_for

    config = IngestConfig(**settings)
    progress = ProgressLog("files")
    info = ingest(source, Path(dataset.path), config, progress, labels=labels)
    report_ingest(Path(dataset.path), Path(ingest_report.path))
    dataset.metadata["digest"] = info.digest
    dataset.metadata["images"] = info.counts["images"]
    chosen = shards_for(info.counts["splits"]["train"], num_shards, max_loop)
    return (chosen, list(range(chosen)))
