"""Which shards of a stage belong together, and in what order."""

from collections.abc import Mapping, Sequence
from typing import Any

from chexradinet.config import canonical_json
from chexradinet.errors import ArtifactError, MismatchError

MAPS_DIGEST = "maps_sha256"
"""Key of the provenance that holds the digest of `maps.npy`: each shard has its own."""

SHARD_INDEX, SHARD_COUNT = "shard_index", "shard_count"
"""Keys of the provenance that tell shards apart; after merging they are 0 and 1."""

_OWN_KEYS = {SHARD_INDEX, SHARD_COUNT, MAPS_DIGEST}


def arranged(provenances: Sequence[Mapping[str, Any]]) -> tuple[list[int], dict[str, Any]]:
    """Return the positions in shard order and what all shards share.

    Raises:
        ArtifactError: a shard is missing, given twice, or there is none at all.
        MismatchError: the shards disagree in anything but their index.
    """
    if not provenances:
        raise ArtifactError("no shard was given; name the outputs of all shards of the stage")
    shared = [
        {key: value for key, value in provenance.items() if key not in _OWN_KEYS}
        for provenance in provenances
    ]
    for other in shared[1:]:
        _require_equal(shared[0], other)
    counts = {provenance.get(SHARD_COUNT, 1) for provenance in provenances}
    indices = [int(provenance.get(SHARD_INDEX, 0)) for provenance in provenances]
    if len(counts) != 1 or sorted(indices) != list(range(int(next(iter(counts))))):
        raise ArtifactError(
            f"shards {sorted(indices)} of {sorted(counts)} were given; needed is each shard of one "
            "run exactly once: check the list of inputs, and run what is missing"
        )
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return order, {**shared[0], SHARD_INDEX: 0, SHARD_COUNT: 1}


def _require_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    differing = sorted(
        key
        for key in one.keys() | other.keys()
        if canonical_json(one.get(key)) != canonical_json(other.get(key))
    )
    if differing:
        raise MismatchError(
            f"the shards differ in {differing}; merge only what one stage made in one run from the "
            "same inputs and settings"
        )
