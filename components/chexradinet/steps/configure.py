"""Kubeflow component that refuses a run which the compiled pipeline cannot do, before ingest."""

from typing import NamedTuple

from chexradinet.steps.worker import worker


@worker
def configure(
    rounds: int,
    compare_arms: bool,
    num_shards: int,
    max_rounds: int,
    has_arms: bool,
    max_shards: int,
    accelerator_count: int,
) -> NamedTuple("Configured", [("accelerators", str)]):  # type: ignore[valid-type]
    """Check what was asked for against what was compiled; return the accelerators as text.

    As text, because Kubeflow's driver reads a number in a resource setting as nothing.
    """
    from chexradinet.training.rounds import check_shape

    check_shape(
        rounds,
        compare_arms,
        num_shards,
        max_rounds=max_rounds,
        has_arms=has_arms,
        max_shards=max_shards,
    )
    return (str(int(accelerator_count)),)
