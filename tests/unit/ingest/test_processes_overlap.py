"""Decoding continues while the network works: neither waits for the other's whole time."""

import time

import pytest

from chexradinet.ingest.decoding import decode_in_order

NUM_FILES = 96
SECONDS_EACH = 0.05


def slow(file: int) -> int:
    """Stand where a decoder does: 50 ms, and no load on the processor."""
    time.sleep(SECONDS_EACH)
    return file


@pytest.mark.slow
def test_the_consumer_hardly_waits_where_decoding_keeps_up_with_it() -> None:
    outcomes = decode_in_order(range(NUM_FILES), slow, 2)
    assert next(outcomes) == 0  # the processes have started
    waited = 0.0
    for _ in range(NUM_FILES - 1):
        time.sleep(SECONDS_EACH)  # stands where the forward pass does
        asked = time.perf_counter()
        next(outcomes)
        waited += time.perf_counter() - asked
    # One after the other, it would wait for all that two processes decode: half of the sum.
    assert waited < 0.25 * NUM_FILES * SECONDS_EACH / 2
