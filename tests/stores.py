"""Reading a store by URI, as tests look at what was written."""

from chexradinet.store import open_object, open_store
from chexradinet.store.protocol import ObjectInfo


def listed(uri: str) -> list[ObjectInfo]:
    """Return the objects below a folder, in key order."""
    store, prefix = open_store(uri)
    return list(store.list(prefix))


def content(uri: str) -> bytes:
    """Return an object's bytes."""
    store, key = open_object(uri)
    return store.get(key)
