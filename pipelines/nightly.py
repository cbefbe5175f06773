"""The nightly pipeline: plan what arrived, score it shard by shard, collect and send the results.

The loop is alone in a sub-pipeline: only there does all that its body needs reach it, and a loop
directly in an exit handler fails on the backend. Nothing here is served from the cache.
"""

from collections.abc import Callable
from typing import Any, List  # noqa: UP035 - kfp reads this annotation by name

from kfp import dsl

from chexradinet.config.parameters import NightlySettings
from chexradinet.steps.nightly import collect, plan, report_outcome, score, upload
from pipelines.describe import described_pipeline
from pipelines.parameters import NIGHTLY
from pipelines.resources import (
    RESULTS_ARCHIVE_SECRET,
    Placement,
    on_accelerator,
    on_processor,
    with_archive,
    with_store,
)

MAX_PODS = 40
"""Most scoring pods of a night; each takes several shards of a large one, one after another."""


@dsl.pipeline(name="score-shards", description="Scores of the planned X-rays, shard by shard.")
def score_shards(
    shards: List[int],  # noqa: UP006
    num_shards: int,
    work: str,
    active: bool,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    num_decoders: int,
    decode_timeout_s: float,
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
            num_shards=num_shards,
            max_loop=MAX_PODS,
            work=work,
            active=active,
            inbox_uri=inbox_uri,
            models_uri=models_uri,
            results_uri=results_uri,
            run_id=run_id,
            lease_ttl_s=lease_ttl_s,
            num_decoders=num_decoders,
            decode_timeout_s=decode_timeout_s,
            accelerator_type=accelerator_type,
            accelerators=accelerators,
        )
        on_accelerator(scored, placement, scoring_memory, accelerators)
        with_archive(with_store(scored))
        scored.set_caching_options(enable_caching=False)


def nightly_pipeline() -> Callable[..., Any]:
    """Return the nightly pipeline."""

    def nightly(given: Any) -> None:  # noqa: ANN401 - pipeline channels
        """Score the chest X-rays that arrived since the last run, each exactly once."""
        place = Placement(
            given.worker_image, given.accelerator_type, given.node_selector, given.tolerations
        )
        run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        addresses = {
            "inbox_uri": given.inbox_uri,
            "models_uri": given.models_uri,
            "results_uri": given.results_uri,
            "run_id": run_id,
            "lease_ttl_s": given.lease_ttl_s,
        }
        last = report_outcome(results_uri=given.results_uri, run_id=run_id)
        with_store(on_processor(last, place, "1Gi"))
        last.set_caching_options(enable_caching=False)
        with dsl.ExitHandler(last, name="night"):
            planned = plan(**vars(given), run_id=run_id, max_loop=MAX_PODS)
            with_archive(with_store(on_processor(planned, place, "4Gi")))
            planned.set_caching_options(enable_caching=False)
            scored = score_shards(
                shards=planned.outputs["shards"],
                num_shards=planned.outputs["num_shards"],
                work=planned.outputs["work"],
                active=planned.outputs["active"],
                num_decoders=given.num_decoders,
                decode_timeout_s=given.decode_timeout_s,
                worker_image=given.worker_image,
                accelerator_type=given.accelerator_type,
                accelerators=planned.outputs["accelerators"],
                node_selector=given.node_selector,
                tolerations=given.tolerations,
                scoring_memory=given.scoring_memory,
                **addresses,
            )
            scored.set_caching_options(enable_caching=False)
            collected = collect(
                work=planned.outputs["work"],
                active=planned.outputs["active"],
                status=planned.outputs["status"],
                **addresses,
            ).after(scored)
            with_archive(with_store(on_processor(collected, place, "4Gi")))
            collected.set_caching_options(enable_caching=False)
            with dsl.If(given.archive_uri != "", name="archive"):
                sent = upload(results_uri=given.results_uri, archive_uri=given.archive_uri).after(
                    collected
                )
                with_archive(with_store(on_processor(sent, place, "2Gi")), RESULTS_ARCHIVE_SECRET)
                sent.set_caching_options(enable_caching=False)

    return described_pipeline(
        nightly, NightlySettings, name=NIGHTLY, display_name="ChexRadiNet nightly"
    )
