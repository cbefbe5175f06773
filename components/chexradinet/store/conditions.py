"""Whether a store keeps the promise that exactly-once processing is built on."""

from chexradinet.errors import StoreConflictError, StoreError
from chexradinet.store.protocol import ObjectStore


def require_conditional_create(store: ObjectStore, prefix: str) -> None:
    """Refuse a store that would let two writers create the same object.

    Older servers ignore the header `If-None-Match` and overwrite. An empty probe is created twice
    and stays: the right to delete is not needed.

    Args:
        store: Store to try.
        prefix: Start of the probe's key; empty or ending in `/`.

    Raises:
        StoreError: the second creation was let through.
    """
    for _ in range(2):
        try:
            store.create(f"{prefix}conditional-create", b"")
        except StoreConflictError:
            return
    raise StoreError(
        f"the store of {store.uri_of(prefix)} overwrites what must only be created; it needs "
        "conditional writes (If-None-Match on PutObject): use a newer release of it"
    )
