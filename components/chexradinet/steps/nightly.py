"""Kubeflow components of the nightly pipeline."""

import functools
from pathlib import Path
from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.config.nightly import Run, ScoreConfig
from chexradinet.config.parameters import NightlySettings, nested
from chexradinet.steps import worker


# fmt: off
@functools.partial(worker, settings=NightlySettings)
def plan(
    run_id: str, max_loop: int, **given: object
) -> NamedTuple("Planned", [  # type: ignore[valid-type]
    ("work", str), ("shards", List[int]), ("num_shards", int),  # noqa: UP006
    ("active", bool), ("accelerators", str), ("status", str),
]):
    # fmt: on
    """Check all settings, and plan what arrived since the last run; the other steps pass if none.

    An empty night keeps one shard, because no runner accepts an empty loop, and asks for no
    accelerator.
    """
    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import plan_stage
    from chexradinet.training.rounds import single_accelerator

    settings = nested(NightlySettings, given)
    addresses = Addresses(
        inbox_uri=settings.inbox_uri,
        models_uri=settings.models_uri,
        results_uri=settings.results_uri,
        archive_uri=settings.archive_uri,
    )
    run = Run(run_id=run_id, lease_ttl_s=settings.lease_ttl_s)
    outcome = plan_stage(addresses, settings.plan, run)
    active = bool(outcome.parts)
    return (
        outcome.work,
        list(range(min(outcome.num_shards, max_loop))) if active else [0],
        outcome.num_shards,
        active,
        single_accelerator(str(settings.placement.accelerator_count if active else 0)),
        outcome.status,
    )


@worker
def score(
    shard: int,
    num_shards: int,
    max_loop: int,
    work: str,
    active: bool,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    num_decoders: int,
    decode_timeout_s: float,
    accelerator_type: str,
    accelerators: str,
) -> None:
    """Score a shard of the planned X-rays and each `max_loop`-th after it, unless it is done."""
    if not active:
        return

    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import score_stage
    from chexradinet.training.processes import check_accelerator

    check_accelerator(accelerator_type, accelerators)
    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    config = ScoreConfig(num_decoders=num_decoders, decode_timeout_s=decode_timeout_s)
    run = Run(run_id=run_id, lease_ttl_s=lease_ttl_s)
    for index in range(int(shard), num_shards, max_loop):
        score_stage(addresses, work, index, config, run)


@worker
def collect(
    work: str,
    active: bool,
    status: str,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    night_report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Write scores, worklist and report of the planned X-rays; return what the night came to."""
    if not active:
        Path(night_report.path).write_text(f"<p>{status.replace('_', ' ')}</p>\n", "utf-8")
        metrics.log_metric("images_scored", 0)
        return status

    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import collect_stage

    night = collect_stage(
        Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri),
        work,
        Run(run_id=run_id, lease_ttl_s=lease_ttl_s),
    )
    Path(night_report.path).write_bytes(night.report)
    metrics.log_metric("images_scored", night.num_scored)
    for name, reasons in sorted(night.excluded.items()):
        metrics.log_metric(f"images_{name}", sum(reasons.values()))
    return night.as_text()


@worker
def upload(results_uri: str, archive_uri: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Send the DICOM results that wait for the archive; return what came of them."""
    from chexradinet.nightly.run import archive_results

    outcome = archive_results(results_uri, archive_uri)
    metrics.log_metric("results_stored", outcome.stored)
    metrics.log_metric("results_already_there", outcome.already_there)
    return outcome.as_text()


@worker
def report_outcome(results_uri: str, run_id: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Report success or failure to telemetry, and give back what a failed run held."""
    from chexradinet.nightly.run import report_outcome

    report_outcome(results_uri, status.state, run_id)
