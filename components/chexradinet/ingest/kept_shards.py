"""Finished shards of an ingest, kept where they outlive its machine.

Below the URI in `CHEXRADINET_CHECKPOINT_URI`, in a folder named by the digest of the work, lies a
copy of each full shard and of the document that says what became of its files. An ingest of equal
work fetches them instead of decoding again: the retry of a pod that was evicted, and a run that is
submitted again for a source that has not changed. So they are not removed at the end; a lifecycle
rule expires them.
"""

import logging
from pathlib import Path

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreBucketError, StoreError, StoreIntegrityError, StoreNotFoundError
from chexradinet.store import open_store
from chexradinet.store.environment import checkpoint_folder

_logger = logging.getLogger(__name__)


class KeptShards:
    """The store's copy of one work folder; without a URI in the environment, nothing."""

    def __init__(self, work: Path, digest: str, config: StoreConfig) -> None:
        self._work = work
        self._config = config
        self._uri = checkpoint_folder(f"ingest-{digest}")

    def fetch(self, names: tuple[str, ...]) -> bool:
        """Copy files into the work folder; return whether all are there now.

        Args:
            names: Relative to the work folder, the one that stands for the others last.

        Raises:
            StoreError: the store cannot be read.
        """
        if not self._uri:
            return False
        store, prefix = open_store(self._uri, self._config)
        try:
            for name in names:
                store.get_file(prefix + name, self._work / name)
        except StoreBucketError:
            raise
        except StoreNotFoundError:
            return False
        except StoreIntegrityError as error:
            _logger.warning("a kept shard is decoded anew: %s", error)
            return False
        _logger.info("%s was taken from %s", names[0], self._uri)
        return True

    def keep(self, names: tuple[str, ...]) -> None:
        """Copy files from the work folder; a store that fails costs the copy, not the run.

        Args:
            names: As `fetch` takes them.
        """
        if not self._uri:
            return
        try:
            store, prefix = open_store(self._uri, self._config)
            for name in names:
                store.put_file(prefix + name, self._work / name)
        except StoreError as error:
            _logger.warning("%s is not kept in %s: %s", names[0], self._uri, error)
