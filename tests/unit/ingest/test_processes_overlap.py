"""Decoding continues while the network works: neither waits for the other's whole time."""

import time
from pathlib import Path

from chexradinet.ingest.decoding import decode_in_order
from chexradinet.parallel import ITEMS_AHEAD


def mark(file: Path) -> Path:
    """Stand where a decoder does, and leave a mark."""
    file.touch()
    return file


def test_files_are_decoded_ahead_while_the_consumer_works_and_no_further(tmp_path: Path) -> None:
    files = [tmp_path / f"{number:03}" for number in range(2 * ITEMS_AHEAD + 40)]
    outcomes = decode_in_order(files, mark, 2)
    assert next(outcomes) == files[0]
    # The consumer asks for nothing here, as while a batch passes the network.
    ahead = files[: 2 * ITEMS_AHEAD]
    deadline = time.monotonic() + 120
    while not all(file.exists() for file in ahead):
        assert time.monotonic() < deadline, "decoding waits for the consumer"
        time.sleep(0.01)
    assert not any(file.exists() for file in files[2 * ITEMS_AHEAD :])
    assert list(outcomes) == files[1:]
