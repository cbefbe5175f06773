"""The nightly pipeline: plan what arrived, score it shard by shard, collect the results.

The loop is alone in a sub-pipeline: only there does all that its body needs reach it, and a loop
directly in an exit handler fails on the backend. Nothing here is served from the cache.
"""

from collections.abc import Callable
from typing import Any, List  # noqa: UP035 - kfp reads this annotation by name

from kfp import dsl

from chexradinet.steps.collect import collect
from chexradinet.steps.plan import plan
from chexradinet.steps.report_outcome import report_outcome
from chexradinet.steps.score import score
from chexradinet.steps.worker import WORKER_IMAGE
from pipelines.describe import description_of
from pipelines.resources import (
    NIGHTLY,
    Placement,
    on_accelerator,
    on_processor,
    with_store,
)

PIPELINE_NAME = NIGHTLY
EVERY_NODE: dict[str, str] = {}
NO_TOLERATION: list[dict[str, str]] = []


@dsl.pipeline(name="score-shards", description="Scores of the planned X-rays, shard by shard.")
def score_shards(
    shards: List[int],  # noqa: UP006
    work: str,
    active: bool,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    num_decoders: int,
    worker_image: str,
    accelerator_type: str,
    accelerators: str,
    node_selector: dict,  # type: ignore[type-arg]
    tolerations: list,  # type: ignore[type-arg]
    scoring_memory: str,
) -> None:
    """Fan the score stage out over shards."""
    placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
    with dsl.ParallelFor(shards, parallelism=4) as shard:
        scored = score(
            shard=shard,
            work=work,
            active=active,
            inbox_uri=inbox_uri,
            models_uri=models_uri,
            results_uri=results_uri,
            run_id=run_id,
            lease_ttl_s=lease_ttl_s,
            num_decoders=num_decoders,
            accelerator_type=accelerator_type,
            accelerators=accelerators,
        )
        on_accelerator(scored, placement, scoring_memory, accelerators)
        with_store(scored)
        scored.set_caching_options(enable_caching=False)


def nightly_pipeline() -> Callable[..., Any]:
    """Return the nightly pipeline."""

    def nightly(
        inbox_uri: str,
        models_uri: str,
        results_uri: str,
        shard_size: int = 500,
        max_images: int = 50000,
        settle_s: float = 60.0,
        rescore_since: str = "",
        min_age_years: float = 18.0,
        region_threshold: float = 0.6,
        bin_width: float = 8.0,
        batch_size: int = 16,
        max_wait_h: float = 72.0,
        dicom_results: bool = False,
        num_decoders: int = 2,
        lease_ttl_s: float = 600.0,
        worker_image: str = WORKER_IMAGE,
        accelerator_type: str = "",
        accelerator_count: int = 0,
        node_selector: dict = EVERY_NODE,  # type: ignore[type-arg]
        tolerations: list = NO_TOLERATION,  # type: ignore[type-arg]
        scoring_memory: str = "8Gi",
    ) -> None:
        """Score the chest X-rays that arrived since the last run, each exactly once.

        Args:
            inbox_uri: Folder or s3:// prefix that X-rays arrive in: DICOM, PNG or JPEG.
            models_uri: Folder or s3:// prefix that models are published under.
            results_uri: Folder or s3:// prefix of the results and their ledger.
            shard_size: X-rays a shard: what a killed run does again at most.
            max_images: X-rays of a night at most; the rest is scored the next time.
            settle_s: Seconds an object must be old: a younger one may still be written.
            rescore_since: YYYY-MM-DD: score again what another model scored since; empty for none.
            min_age_years: Youngest patient to score; 0 takes every age.
            region_threshold: Fraction of a map's maximum that its region reaches.
            bin_width: Width of a radiomics grey-level bin.
            batch_size: Images a forward pass.
            max_wait_h: Hours that no study is kept waiting beyond by its priority.
            dicom_results: Also write a structured report and an overlay for each DICOM X-ray.
            num_decoders: Processes that read and decode ahead of the network.
            lease_ttl_s: Seconds without a sign of life after which another run takes over.
            worker_image: Image that every step runs in.
            accelerator_type: Kubernetes resource of an accelerator, such as nvidia.com/gpu.
            accelerator_count: Accelerators a scoring step; 0 scores on the processor.
            node_selector: Labels of the nodes that score.
            tolerations: Taints that scoring tolerates.
            scoring_memory: Memory of each scoring shard.
        """
        placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
        run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        last = report_outcome(results_uri=results_uri, run_id=run_id)
        with_store(on_processor(last, placement, "1Gi"))
        last.set_caching_options(enable_caching=False)
        with dsl.ExitHandler(last, name="night"):
            planned = plan(
                inbox_uri=inbox_uri,
                models_uri=models_uri,
                results_uri=results_uri,
                run_id=run_id,
                lease_ttl_s=lease_ttl_s,
                shard_size=shard_size,
                max_images=max_images,
                settle_s=settle_s,
                rescore_since=rescore_since,
                min_age_years=min_age_years,
                region_threshold=region_threshold,
                bin_width=bin_width,
                batch_size=batch_size,
                max_wait_h=max_wait_h,
                dicom_results=dicom_results,
                accelerator_count=accelerator_count,
            )
            with_store(on_processor(planned, placement, "4Gi"))
            planned.set_caching_options(enable_caching=False)
            scored = score_shards(
                shards=planned.outputs["shards"],
                work=planned.outputs["work"],
                active=planned.outputs["active"],
                inbox_uri=inbox_uri,
                models_uri=models_uri,
                results_uri=results_uri,
                run_id=run_id,
                lease_ttl_s=lease_ttl_s,
                num_decoders=num_decoders,
                worker_image=worker_image,
                accelerator_type=accelerator_type,
                accelerators=planned.outputs["accelerators"],
                node_selector=node_selector,
                tolerations=tolerations,
                scoring_memory=scoring_memory,
            )
            scored.set_caching_options(enable_caching=False)
            collected = collect(
                work=planned.outputs["work"],
                active=planned.outputs["active"],
                status=planned.outputs["status"],
                inbox_uri=inbox_uri,
                models_uri=models_uri,
                results_uri=results_uri,
                run_id=run_id,
                lease_ttl_s=lease_ttl_s,
            ).after(scored)
            with_store(on_processor(collected, placement, "8Gi"))
            collected.set_caching_options(enable_caching=False)

    described = dsl.pipeline(
        name=PIPELINE_NAME,
        display_name="ChexRadiNet nightly",
        description=description_of(nightly),
    )
    return described(nightly)  # type: ignore[no-any-return]
