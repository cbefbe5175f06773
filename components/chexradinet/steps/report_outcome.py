"""Kubeflow component that runs last, whatever happened before."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def report_outcome(results_uri: str, run_id: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Report success or failure to telemetry, and give back what a failed run held."""
    from chexradinet.nightly.run import report_outcome

    report_outcome(results_uri, status.state, run_id)
