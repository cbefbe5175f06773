"""Kubeflow component that plans a night."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from chexradinet.steps.worker import worker


@worker
def plan(
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    shard_size: int,
    max_images: int,
    settle_s: float,
    rescore_since: str,
    min_age_years: float,
    region_threshold: float,
    bin_width: float,
    batch_size: int,
    max_wait_h: float,
    dicom_results: bool,
    accelerator_count: int,
) -> NamedTuple(  # type: ignore[valid-type]
    "Planned",
    [
        ("work", str),
        ("shards", List[int]),  # noqa: UP006
        ("active", bool),
        ("accelerators", str),
        ("status", str),
    ],
):
    """Plan what arrived since the last run; where nothing did, the other steps pass.

    An empty night keeps one shard, because no runner accepts an empty loop, and asks for no
    accelerator.
    """
    from chexradinet.config import QualityConfig, RadiomicsConfig, RegionConfig
    from chexradinet.config.nightly import PlanConfig, ResultSettings, Run, WorklistConfig
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import plan_stage

    results = ResultSettings(
        quality=QualityConfig(min_age_years=min_age_years),
        regions=RegionConfig(region_threshold=region_threshold),
        radiomics=RadiomicsConfig(bin_width=bin_width),
        worklist=WorklistConfig(max_wait_h=max_wait_h),
        batch_size=int(batch_size),
        dicom_results=dicom_results,
    )
    config = PlanConfig(
        shard_size=int(shard_size),
        max_images=int(max_images),
        settle_s=settle_s,
        rescore_since=rescore_since,
        results=results,
    )
    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    outcome = plan_stage(addresses, config, Run(run_id=run_id, lease_ttl_s=lease_ttl_s))
    active = bool(outcome.parts)
    return (
        outcome.work,
        list(range(outcome.num_shards)) if active else [0],
        active,
        str(int(accelerator_count) if active else 0),
        outcome.status,
    )
