"""How the run at work goes: when it began, and whether it has done all it planned.

`ledger/run.json` speaks of the run that held the lease last. The exit task asks it, and not only
Kubeflow: that names the states of a run in several ways, and a run whose step was retried with
success may stay failed there.
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime

from chexradinet.errors import StoreNotFoundError
from chexradinet.nightly.lease import store_time
from chexradinet.nightly.ledger import Ledger, document_bytes, read_json

_KIND = "nightly-run"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of the nightly pipeline."""

    run_id: str
    began: str
    """By the store's clock, ISO 8601 in UTC; a stage that is retried does not change it."""
    finished: bool = False
    """Whether nothing of its work is left."""


def begin(ledger: Ledger, run_id: str) -> None:
    """Note that a run begins its work, unless it did so before."""
    if read_run(ledger, run_id) is None:
        _write(ledger, RunRecord(run_id=run_id, began=store_time(ledger).isoformat()))


def finish(ledger: Ledger, run_id: str) -> None:
    """Note that a run has done its work."""
    found = read_run(ledger, run_id)
    if found is not None:
        _write(ledger, replace(found, finished=True))


def read_run(ledger: Ledger, run_id: str) -> RunRecord | None:
    """Return what is noted of a run; None where it never began, or another one began since.

    Raises:
        ArtifactError: the note is damaged or of another schema.
    """
    try:
        document = read_json(ledger, _key(ledger), _KIND)
    except StoreNotFoundError:
        return None
    if document["run_id"] != run_id:
        return None
    return RunRecord(
        run_id=run_id, began=str(document["began"]), finished=document["finished"] is True
    )


def seconds_since(ledger: Ledger, record: RunRecord) -> float:
    """Return how long ago a run began, by the store's clock, at least 0."""
    passed = store_time(ledger) - datetime.fromisoformat(record.began)
    return max(0.0, passed.total_seconds())


def _write(ledger: Ledger, record: RunRecord) -> None:
    ledger.store.put(_key(ledger), document_bytes(_KIND, asdict(record)))


def _key(ledger: Ledger) -> str:
    return ledger.key("ledger", "run.json")
