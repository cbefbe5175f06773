"""Kubeflow component of `nightly.archive`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def upload(results_uri: str, archive_uri: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Send the DICOM results that wait for the archive; return what came of them."""
    from chexradinet.nightly.archive import archive_results

    outcome = archive_results(results_uri, archive_uri)
    metrics.log_metric("results_stored", outcome.stored)
    metrics.log_metric("results_already_there", outcome.already_there)
    return outcome.as_text()
