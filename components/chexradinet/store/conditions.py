"""Whether a store keeps the promise that exactly-once processing is built on."""

import secrets

from chexradinet.errors import StoreConflictError, StoreError
from chexradinet.store.protocol import ObjectStore


def require_conditional_create(store: ObjectStore, prefix: str) -> None:
    """Refuse a store that would let two writers create the same object.

    Older servers ignore the header `If-None-Match` and overwrite. A probe is created twice and
    removed.

    Args:
        store: The store to try.
        prefix: What the probe's key starts with; empty or ending in `/`.

    Raises:
        StoreError: the second creation was let through.
    """
    key = f"{prefix}.probe-{secrets.token_hex(8)}"
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except StoreConflictError:
        return
    finally:
        store.delete(key)
    raise StoreError(
        f"the store of {store.uri_of(prefix)} overwrites what must only be created; it needs "
        "conditional writes (If-None-Match on PutObject): use a newer release of it"
    )
