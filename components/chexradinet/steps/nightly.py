"""Kubeflow component that plans a night."""

import functools
from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from chexradinet.config.parameters import NightlySettings
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
    from chexradinet.config.nightly import Run
    from chexradinet.config.parameters import NightlySettings, nested
    from chexradinet.nightly.records import Addresses
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
