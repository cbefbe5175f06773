"""The last word of a nightly run: how it ended, whatever happened before."""

import logging

from chexradinet.errors import ChexRadiNetError
from chexradinet.flows.lease import is_free, release
from chexradinet.flows.ledger import open_ledger
from chexradinet.results.telemetry import NightlyTelemetry, push

_log = logging.getLogger(__name__)


def report_outcome(results_uri: str, state: str, run_id: str) -> bool:
    """Say how a run ended, and give back what a failed one held; never fails itself.

    Args:
        results_uri: Folder of the results.
        state: As Kubeflow names it: `SUCCEEDED`, or anything else for a failure.
        run_id: Of the run.

    Returns:
        Whether the run ended well.
    """
    succeeded, free = state == "SUCCEEDED", True
    try:
        ledger = open_ledger(results_uri)
        release(ledger, run_id)
        free = is_free(ledger, run_id)
    except ChexRadiNetError as error:
        _log.warning("the lease was not given back (%s); it runs out", type(error).__name__)
    # A run that left the work to another one has no success to report.
    if free or not succeeded:
        push(NightlyTelemetry(success=succeeded))
    return succeeded
