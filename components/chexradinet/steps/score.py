"""Kubeflow component of `nightly.score`."""

from chexradinet.steps.worker import worker


@worker
def score(
    shard: int,
    work: str,
    active: bool,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    num_decoders: int,
    accelerator_type: str,
    accelerators: str,
) -> None:
    """Score one shard of the planned X-rays, unless it was done before."""
    if not active:
        return

    from chexradinet.config.nightly import Run, ScoreConfig
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import score_stage
    from chexradinet.training.device import check_accelerator

    check_accelerator(accelerator_type, accelerators)
    score_stage(
        Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri),
        work,
        int(shard),
        ScoreConfig(num_decoders=int(num_decoders)),
        Run(run_id=run_id, lease_ttl_s=lease_ttl_s),
    )
