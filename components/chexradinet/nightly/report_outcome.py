"""The last word of a nightly run: how it ended, whatever happened before."""

import logging

from chexradinet.errors import ChexRadiNetError
from chexradinet.monitoring import NightlyTelemetry, push
from chexradinet.nightly.lease import release
from chexradinet.nightly.ledger import open_ledger
from chexradinet.nightly.stage_run import read_run, seconds_since

_log = logging.getLogger(__name__)

ENDED_WELL = frozenset({"SUCCEEDED", "COMPLETE", "CACHED"})
"""Names of success: of the local runner and of the API, and of the backend's metadata store."""


def report_outcome(results_uri: str, state: str, run_id: str) -> bool:
    """Say how a run ended, and give back what a failed one held; never fails itself.

    A run that has done its work ended well, whatever Kubeflow calls its state. One that did not
    begin and ended well left the work to another run: it has nothing to report.

    Args:
        results_uri: Folder of the results.
        state: As Kubeflow names it: one of `ENDED_WELL`, or anything else for a failure.
        run_id: Of the run.

    Returns:
        Whether the run ended well.
    """
    finished, duration_s = False, None
    try:
        ledger = open_ledger(results_uri)
        release(ledger, run_id)
        record = read_run(ledger, run_id)
        if record is not None:
            finished, duration_s = record.finished, seconds_since(ledger, record)
    except ChexRadiNetError as error:
        _log.warning("the ledger does not tell how the run ended (%s)", type(error).__name__)
        finished = state in ENDED_WELL
    succeeded = finished or state in ENDED_WELL
    if finished or not succeeded:
        push(NightlyTelemetry(success=succeeded, duration_seconds=duration_s))
    return succeeded
