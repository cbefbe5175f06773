"""Kubeflow component that plans a night."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from chexradinet.steps import worker


# fmt: off
@worker
def plan(
    inbox_uri: str, models_uri: str, results_uri: str,
    shard_size: int, max_images: int, settle_s: float, rescore_since: str, min_age_years: float,
    min_side_px: int, check_inversion: bool, region_threshold: float, bin_width: float,
    max_wait_h: float, batch_size: int, dicom_results: bool, num_decoders: int, lease_ttl_s: float,
    worker_image: str, accelerator_type: str, accelerator_count: int,
    node_selector: dict, tolerations: list, scoring_memory: str,  # type: ignore[type-arg]
    run_id: str, max_loop: int,
) -> NamedTuple("Planned", [  # type: ignore[valid-type]
    ("work", str), ("shards", List[int]), ("num_shards", int),  # noqa: UP006
    ("active", bool), ("accelerators", str), ("status", str),
]):
    # fmt: on
    """Check all settings, and plan what arrived since the last run; the other steps pass if none.

    An empty night keeps one shard, because no runner accepts an empty loop, and asks for no
    accelerator.
    """
    given = dict(locals())

    from chexradinet.config.nightly import Run
    from chexradinet.config.parameters import NightlySettings, nested
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import plan_stage

    for name in ("run_id", "max_loop"):
        del given[name]
    settings = nested(NightlySettings, given)
    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    outcome = plan_stage(addresses, settings.plan, Run(run_id=run_id, lease_ttl_s=lease_ttl_s))
    active = bool(outcome.parts)
    return (
        outcome.work,
        list(range(min(outcome.num_shards, max_loop))) if active else [0],
        outcome.num_shards,
        active,
        str(settings.placement.accelerator_count if active else 0),
        outcome.status,
    )
