"""Files of a night without a score: who reads by the worklist alone would never see them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from chexradinet.nightly.ledger import Ledger, Plan, read_index
from chexradinet.nightly.merge import DUPLICATE, SCORED, Merged, shards_of


def unscored_files(
    ledger: Ledger, earlier: Iterable[Plan], merged: Merged
) -> dict[tuple[str, str], int]:
    """Count the files that have no score, by status and reason.

    A file counts by what it came to last, so one that was postponed and then scored does not count;
    nor does a duplicate, as its scores are elsewhere.

    Args:
        ledger: Of the results.
        earlier: Complete plans whose X-rays are on the same worklist, in order of their numbers.
        merged: What became of the last plan.

    Raises:
        ArtifactError: a shard or an index is missing or damaged.
    """
    reasons: dict[str, tuple[str, str]] = {}
    for plan in earlier:
        rows = [row for result in shards_of(ledger, plan) for row in result.rejected.to_pylist()]
        index = read_index(ledger, plan.number).select(["key", "status"]).to_pylist()
        _add(reasons, rows, (row["key"] for row in index if row["status"] in (SCORED, DUPLICATE)))
    doubled = [row for row in merged.excluded if row["status"] == DUPLICATE]
    rows = [row for row in merged.excluded if row["status"] != DUPLICATE]
    scored = [image.object_key for image in merged.images]
    _add(reasons, rows, [*scored, *(str(row["object_key"]) for row in doubled)])
    return dict(sorted(Counter(reasons.values()).items()))


def _add(
    reasons: dict[str, tuple[str, str]], excluded: Iterable[dict[str, Any]], scored: Iterable[str]
) -> None:
    """Add a plan's files without a score, and take away those that it, or another, scored."""
    for row in excluded:
        reasons[str(row["object_key"])] = (str(row["status"]), str(row["reason"]))
    for key in scored:
        reasons.pop(key, None)
