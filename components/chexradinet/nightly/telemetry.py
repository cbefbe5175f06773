"""A night's figures for the Pushgateway: counts and ages, nothing that names an X-ray."""

from collections.abc import Mapping
from typing import Any

from chexradinet.evaluation.drift import FALSE_ALARMS_PER_NIGHT
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.inbox import inbox_images, taken_images
from chexradinet.nightly.lease import store_time
from chexradinet.nightly.ledger import completions, open_ledger, plan_numbers
from chexradinet.nightly.outcome import Night
from chexradinet.records import RejectReason
from chexradinet.run_figures import NightlyTelemetry, drift_ratios


def night_telemetry(addresses: Addresses, night: Night | None) -> NightlyTelemetry:
    """Return the figures of a run that goes on.

    Args:
        addresses: Inbox and results.
        night: What was collected last; None where there was nothing new.
    """
    age_s = oldest_unscored_age_s(addresses)
    if night is None:
        return NightlyTelemetry(images_scored=0, rejected={}, oldest_unscored_age_seconds=age_s)
    return NightlyTelemetry(
        stage_seconds={"score": night.score_s, "collect": night.collect_s},
        model_digest=night.model_digest,
        model_round=night.model_round,
        images_scored=night.num_scored,
        rejected=_rejected(night.excluded),
        flagged=dict(night.flagged),
        oldest_unscored_age_seconds=age_s,
        drift=_drift(night.drift),
        out_of_distribution_ratio=night.ood_fraction,
    )


def oldest_unscored_age_s(addresses: Addresses) -> float:
    """Return the age of the oldest object that no complete plan has done, in seconds; 0 for none.

    By the store's clock; an object with a time ahead of it is 0 seconds old.
    """
    ledger = open_ledger(addresses.results_uri)
    listed = {image.key: image for image in inbox_images(addresses.inbox_uri)}
    past = list(completions(ledger, plan_numbers(ledger)[1]))
    done = taken_images(ledger, past, [], listed, ("", ""))
    waiting = [i.arrived for i in listed.values() if (i.key, i.etag) not in done]
    if not waiting:
        return 0.0
    return max(0.0, (store_time(ledger) - min(waiting)).total_seconds())


def _rejected(excluded: Mapping[str, Mapping[str, int]]) -> dict[RejectReason, int]:
    """Return rejected and duplicate objects by reason; what is tried again is not rejected."""
    counted: dict[RejectReason, int] = {}
    for status in ("rejected", "duplicate"):
        for reason, num in excluded.get(status, {}).items():
            counted[RejectReason(reason)] = counted.get(RejectReason(reason), 0) + num
    return counted


def _drift(found: Mapping[str, Any] | None) -> dict[str, float]:
    if found is None or found["status"] != "ok":
        return {}
    p_values = {name: values["p_value"] for name, values in found["comparisons"].items()}
    return drift_ratios(p_values, FALSE_ALARMS_PER_NIGHT / len(p_values))
