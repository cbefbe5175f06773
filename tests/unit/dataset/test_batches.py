import numpy as np
import pytest

from chexradinet.dataset.batches import iter_batches
from chexradinet.errors import ConfigError


def test_no_rows_give_no_batches() -> None:
    assert list(iter_batches(np.array([], dtype=np.int64), 4)) == []


def test_rows_keep_their_order_without_a_seed() -> None:
    batches = [batch.tolist() for batch in iter_batches(np.array([9, 3, 5, 1, 2]), 2)]
    assert batches == [[9, 3], [5, 1], [2]]


def test_last_batch_is_dropped_only_when_it_is_not_full() -> None:
    assert [len(batch) for batch in iter_batches(np.arange(5), 2, drop_last=True)] == [2, 2]
    assert [len(batch) for batch in iter_batches(np.arange(4), 2, drop_last=True)] == [2, 2]


def test_seed_fixes_the_order_and_every_row_comes_once() -> None:
    rows = np.arange(100, 150)
    first = np.concatenate(list(iter_batches(rows, 8, seed=3)))
    again = np.concatenate(list(iter_batches(rows, 8, seed=3)))
    other = np.concatenate(list(iter_batches(rows, 8, seed=4)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.sort(first), rows)
    assert (first != rows).any()


def test_batch_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        list(iter_batches(np.arange(3), 0))
