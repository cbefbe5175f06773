"""Which guided round runs and over how many shards, and what a closed round leaves.

Each training stage opens or closes the round after it: no step of its own is started for that.
"""

from pathlib import Path
from typing import NamedTuple

from chexradinet.artifacts import Head, write_document, writing_directory

IMAGES_PER_SHARD = 2500
"""Training images of a shard: minutes of work for one core, so that a pod's start is worth it."""


class Opening(NamedTuple):
    """What the steps of a round are given."""

    active: bool
    """Whether the round runs; the steps of a closed round pass their input on."""
    shards: list[int]
    """Parts of the training images; a closed round has one, as no runner accepts an empty loop."""
    accelerators: str
    """Accelerators of a training step, as the text that Kubeflow reads; "0" for a closed round."""
    single_accelerator: str
    """Accelerators of a step that cannot use several, in the same way."""


def open_round(
    number: int,
    rounds: int,
    improved: bool,
    num_shards: int,
    accelerators: str,
    node_accelerators: str = "",
) -> Opening:
    """Tell a round's steps whether it runs, over which shards, and with how many accelerators.

    Args:
        number: Number of the round to open, from 1.
        rounds: Guided rounds that were asked for.
        improved: Whether the round before ran and improved validation.
        num_shards: Number of shards of a round.
        accelerators: Accelerators of a training step in a round that runs.
        node_accelerators: Accelerators of a node, if a training has several nodes.
    """
    if not improved or number > rounds:
        return Opening(active=False, shards=[0], accelerators="0", single_accelerator="0")
    return Opening(
        active=True,
        shards=list(range(num_shards)),
        accelerators=accelerators,
        single_accelerator=single_accelerator(node_accelerators or accelerators),
    )


def single_accelerator(accelerators: str) -> str:
    """Return what a step that cannot use several accelerators reserves: at most one."""
    return str(min(1, int(accelerators)))


def shards_for(num_images: int, wanted: int, at_most: int) -> int:
    """Return the number of shards: the wanted one, or one per `IMAGES_PER_SHARD` images.

    Args:
        num_images: Number of training images.
        wanted: Number of shards; 0 chooses by the number of images.
        at_most: Largest number to choose.
    """
    return wanted or min(at_most, max(1, -(-num_images // IMAGES_PER_SHARD)))


def skip(target: Path) -> None:
    """Write what a stage leaves in a closed round: a directory that says that it was skipped."""
    with writing_directory(target, Head("skipped.json", "skipped")) as folder:
        write_document(folder / "skipped.json", "skipped", 1, {})
