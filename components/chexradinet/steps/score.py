"""Kubeflow component of `nightly.score`."""

from chexradinet.steps import worker


@worker
def score(
    shard: int,
    num_shards: int,
    max_loop: int,
    work: str,
    active: bool,
    inbox_uri: str,
    models_uri: str,
    results_uri: str,
    run_id: str,
    lease_ttl_s: float,
    num_decoders: int,
    decode_timeout_s: float,
    accelerator_type: str,
    accelerators: str,
) -> None:
    """Score a shard of the planned X-rays and each `max_loop`-th after it, unless it is done."""
    if not active:
        return

    from chexradinet.config.nightly import Run, ScoreConfig
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import score_stage
    from chexradinet.training.processes import check_accelerator

    check_accelerator(accelerator_type, accelerators)
    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    config = ScoreConfig(num_decoders=num_decoders, decode_timeout_s=decode_timeout_s)
    run = Run(run_id=run_id, lease_ttl_s=lease_ttl_s)
    for index in range(int(shard), num_shards, max_loop):
        score_stage(addresses, work, index, config, run)
