"""The index of a plan is what the plan was completed with, or it is refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from chexradinet.artifacts import table_bytes
from chexradinet.errors import ArtifactError
from chexradinet.nightly import INDEX, table_from
from chexradinet.nightly.collect import collect
from chexradinet.nightly.history import read_index, write_index
from chexradinet.nightly.ledger import Ledger, open_ledger, read_completion
from tests.nightly_world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a night of one X-ray."""
    made = make_world(tmp_path, num_png=1)
    made.run()
    return made


def put_other_index(ledger: Ledger) -> None:
    """Put a sound index of nothing in the place of the first plan's."""
    data = table_bytes(table_from([], INDEX), "nightly-index", 1)
    ledger.store.put(ledger.plan_key(1, "index.parquet"), data)


def index_of(ledger: Ledger) -> pa.Table:
    """Return the index of the first plan, as it was completed with."""
    completion = read_completion(ledger, 1)
    assert completion is not None
    return read_index(ledger, 1, completion["index_sha256"])


def test_an_index_that_is_gone_is_named_with_what_to_restore(world: World) -> None:
    ledger = open_ledger(world.results_uri)
    ledger.store.delete(ledger.plan_key(1, "index.parquet"))
    with pytest.raises(ArtifactError, match=r"000001/index\.parquet is missing; restore it"):
        index_of(ledger)


def test_an_index_that_was_changed_is_refused_instead_of_scoring_again(world: World) -> None:
    ledger = open_ledger(world.results_uri)
    assert index_of(ledger).num_rows == 1
    put_other_index(ledger)
    with pytest.raises(ArtifactError, match=r"index\.parquet has SHA-256 .* restore it"):
        index_of(ledger)
    with pytest.raises(ArtifactError, match="restore it"):
        world.run()
    assert world.scored_keys() == ["x0000.png"]


def test_collecting_again_leaves_the_index_that_the_plan_was_completed_with(world: World) -> None:
    ledger = open_ledger(world.results_uri)
    before = ledger.store.get(ledger.plan_key(1, "index.parquet"))
    # As a release does whose Parquet writes the same rows in other bytes.
    write_index(ledger, 1, table_from([], INDEX))
    assert index_of(ledger).num_rows == 1
    collect(world.addresses, 1)
    assert ledger.store.get(ledger.plan_key(1, "index.parquet")) == before
