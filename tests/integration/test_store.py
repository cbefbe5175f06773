"""One suite over both stores: a local directory and a bucket of a real MinIO server."""

import hashlib
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from chexradinet.errors import (
    ConfigError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.store import exists, open_object, open_store
from chexradinet.store.protocol import ObjectStore, require_conditional_create
from chexradinet.store.uri import join_uri
from tests.stores import content, listed

MEBIBYTE = 1 << 20
AWKWARD_KEYS = [
    "plain.dcm",
    "with space/and+plus.dcm",
    "per%20cent#hash?query&amp=1.dcm",
    "Größe/胸部/صدر.dcm",
    "a'quote\"s;semi,comma.dcm",
    "date=2026-01-31/part~1.parquet",
]


def test_empty_folder_lists_nothing_and_holds_nothing(folder_uri: str) -> None:
    store, prefix = open_store(folder_uri)
    assert list(store.list(prefix)) == []
    assert not store.exists(f"{prefix}a")
    assert not exists(folder_uri)


def test_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(StoreNotFoundError, match="no/such"):
        store.get("no/such")
    with pytest.raises(StoreNotFoundError, match="no/such"):
        store.stat("no/such")


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 8192], ids=len)
def test_bytes_come_back_as_they_were(store: ObjectStore, data: bytes) -> None:
    etag = store.put("folder/object", data)
    info = store.stat("folder/object")
    assert store.get("folder/object") == data
    assert (info.etag, info.size_bytes) == (etag, len(data))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=1)


def test_awkward_keys_are_stored_listed_and_read_by_uri(folder_uri: str) -> None:
    store, prefix = open_store(folder_uri)
    for key in AWKWARD_KEYS:
        store.put(prefix + key, key.encode())
    found = listed(folder_uri)
    expected = sorted((prefix + key for key in AWKWARD_KEYS), key=str.encode)
    assert [info.key for info in found] == expected
    assert [content(info.uri).decode() for info in found] == [
        key.removeprefix(prefix) for key in expected
    ]


def test_listing_of_2500_keys_is_complete_and_in_order_of_bytes(store: ObjectStore) -> None:
    keys = [f"many/{number % 7}/x{number:05d}" for number in range(2490)]
    keys += [
        "many/0.a",
        "many/0/",
        "many/0-a",
        "many-not",
        "manyfold",
        "many/é",
        "many/z",
        "many/Z",
    ]
    keys.remove("many/0/")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    expected = sorted((key for key in keys if key.startswith("many/")), key=str.encode)
    assert [info.key for info in store.list("many/")] == expected
    assert [info.key for info in store.list("many/0")] == [
        key for key in expected if key.startswith("many/0")
    ]
    assert [info.key for info in store.list("manyf")] == ["manyfold"]


def test_listing_tells_what_stat_tells(store: ObjectStore) -> None:
    store.put("a/b", b"four")
    (listed,) = store.list("a/")
    stated = store.stat("a/b")
    assert (listed.key, listed.uri, listed.size_bytes, listed.etag) == (
        (stated.key, stated.uri, stated.size_bytes, stated.etag)
    )
    assert abs(listed.modified - stated.modified) < timedelta(seconds=1)


def test_put_replaces_and_changes_the_etag(store: ObjectStore) -> None:
    first = store.put("a", b"one")
    second = store.put("a", b"two")
    assert store.get("a") == b"two"
    assert first != second


def test_delete_removes_and_is_silent_where_nothing_is(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_create_refuses_an_existing_object_and_leaves_it(store: ObjectStore) -> None:
    store.create("ledger/x", b"first")
    with pytest.raises(StoreConflictError, match="ledger/x"):
        store.create("ledger/x", b"second")
    assert store.get("ledger/x") == b"first"
    require_conditional_create(store, "ledger/")
    assert [info.key for info in store.list("ledger/")] == ["ledger/conditional-create", "ledger/x"]


@pytest.mark.parametrize("same_bytes", [True, False])
def test_of_eight_racing_creators_exactly_one_wins(store: ObjectStore, same_bytes: bool) -> None:
    barrier = Barrier(8)

    def create(number: int, key: str) -> bytes | None:
        data = b"same" if same_bytes else f"by {number}".encode()
        barrier.wait()
        try:
            store.create(key, data)
        except StoreConflictError:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(5):
            key = f"race/{attempt}"
            won = [data for data in pool.map(create, range(8), [key] * 8) if data is not None]
            assert len(won) == 1
            assert store.get(key) == won[0]


def test_compare_and_swap_lets_no_update_be_lost(store: ObjectStore) -> None:
    store.put("champion", b"0")

    def add_one(_: int) -> None:
        while True:
            etag = store.stat("champion").etag
            value = int(store.get("champion"))
            try:
                store.put("champion", str(value + 1).encode(), if_match=etag)
            except StoreConflictError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(20)))
    assert store.get("champion") == b"20"


def test_compare_and_swap_refuses_an_object_that_is_gone(store: ObjectStore) -> None:
    etag = store.put("champion", b"0")
    store.delete("champion")
    with pytest.raises(StoreConflictError, match="champion"):
        store.put("champion", b"1", if_match=etag)
    assert not store.exists("champion")


def test_large_file_goes_there_and_back_with_bounded_memory(
    store: ObjectStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    block = random.Random(0).randbytes(MEBIBYTE)
    with source.open("wb") as stream:
        for number in range(70):
            stream.write(number.to_bytes(4, "big") + block)
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    tracemalloc.start()
    store.put_file("large", source)
    store.get_file("large", tmp_path / "target")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.stat("large").sha256 == expected
    assert hashlib.sha256((tmp_path / "target").read_bytes()).hexdigest() == expected
    assert peak < 40 * MEBIBYTE


def test_file_of_a_failed_download_does_not_appear(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        store.get_file("no/such", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "key", ["../a", "a/../../b", "/etc/passwd", "", "a//b", "./a", "a/", "a\0"]
)
def test_keys_that_would_leave_the_folder_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ConfigError, match="key"):
        store.put(key, b"")
    with pytest.raises(ConfigError, match="key"):
        store.create(key, b"")


def test_an_object_and_a_folder_exist_by_their_whole_name(folder_uri: str) -> None:
    uri = join_uri(folder_uri, "one.dcm")
    store, key = open_object(uri)
    store.put(key, b"x")
    assert content(uri) == b"x"
    assert exists(uri)
    assert exists(folder_uri)
    assert not exists(join_uri(folder_uri, "one"))
