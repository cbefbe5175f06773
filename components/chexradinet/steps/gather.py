"""Kubeflow component of `training.gather`."""

from typing import List  # noqa: UP035 - kfp reads this annotation by name

from kfp import dsl

from chexradinet.steps.worker import worker


@worker
def gather(
    active: bool,
    shards: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    gathered: dsl.Output[dsl.Dataset],
) -> None:
    """Join the shards of regions or of features into one artifact, in order."""
    from pathlib import Path

    from chexradinet.training.radiomics import gather, skip

    if not active:
        skip(Path(gathered.path))
        return
    gather([Path(shard.path) for shard in shards], Path(gathered.path))
