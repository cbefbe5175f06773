"""What is written to the ledger is read back, and nothing else."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chexradinet.errors import ArtifactError
from chexradinet.nightly import (
    EXCLUDED,
    IMAGES,
    SCORES,
    ShardResult,
    pack,
    unpack,
)
from chexradinet.nightly.ledger import Plan, PlannedImage, create_plan, open_ledger, read_plan


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    arrived = datetime(2026, 2, 1, 3, 4, 5, 678, tzinfo=UTC)
    image = PlannedImage(key="ä/1.dcm", etag="e", size_bytes=7, arrived=arrived)
    made = Plan(
        number=1,
        date="2026-02-01",
        planned_at=arrived,
        inbox_uri="s3://inbox",
        bundle_digest="b" * 64,
        preprocessing_digest="p",
        findings=("Mass",),
        calibrated=(),
        settings={"batch_size": 4},
        shard_size=10,
        images=(image,),
    )
    ledger = open_ledger(str(tmp_path))
    assert create_plan(ledger, made)
    assert not create_plan(ledger, made)
    assert read_plan(ledger, 1) == made
    assert made.image("ä/1.dcm") == image


def test_a_plan_of_another_schema_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path))
    document = json.dumps({"kind": "nightly-plan", "schema": 99}).encode()
    ledger.store.create(ledger.plan_key(1, "plan.json"), document)
    with pytest.raises(ArtifactError, match="schema 99"):
        read_plan(ledger, 1)


def test_a_shard_is_packed_into_equal_bytes_and_read_back() -> None:
    result = ShardResult(
        plan_sha256="ab" * 32,
        scores=SCORES.empty_table(),
        rejected=EXCLUDED.empty_table(),
        images=IMAGES.empty_table(),
        wall_s=1.5,
        pictures={"b": b"2", "a": b"1"},
    )
    packed = pack(result)
    assert packed == pack(result)
    assert unpack(packed, "here") == result
    with pytest.raises(ArtifactError, match="here is not a whole shard"):
        unpack(packed[:-30], "here")
