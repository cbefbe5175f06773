"""Kubeflow component that opens or closes a round; plain Python, no flow behind it."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from chexradinet.steps.worker import worker


@worker
def gate(
    round_number: int,
    rounds: int,
    go_on: bool,
    num_shards: int,
    compare_arms: bool,
    accelerator_count: int,
) -> NamedTuple(  # type: ignore[valid-type]
    "Gate",
    [
        ("active", bool),
        ("shards", List[int]),  # noqa: UP006
        ("accelerators", str),
        ("arms_active", bool),
        ("arm_accelerators", str),
    ],
):
    """Tell a round's steps whether it runs, over which shards, and with how many accelerators.

    A closed round keeps one shard, because no runner accepts an empty loop, and asks for no
    accelerator: its steps pass their input on.
    """
    active = bool(go_on) and round_number <= rounds
    arms_active = active and bool(compare_arms)
    return (
        active,
        list(range(int(num_shards))) if active else [0],
        str(int(accelerator_count) if active else 0),
        arms_active,
        str(int(accelerator_count) if arms_active else 0),
    )
