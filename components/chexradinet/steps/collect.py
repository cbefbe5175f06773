"""Kubeflow component of `nightly.collect`."""

from kfp import dsl

from chexradinet.steps import worker


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
    from pathlib import Path

    if not active:
        Path(night_report.path).write_text(f"<p>{status.replace('_', ' ')}</p>\n", "utf-8")
        metrics.log_metric("images_scored", 0)
        return status

    from chexradinet.config.nightly import Run
    from chexradinet.nightly.records import Addresses
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
