"""Whether a store keeps the promise of conditional creation."""

from pathlib import Path

import pytest

from chexradinet.errors import StoreError
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import require_conditional_create


class ForgetfulStore(LocalStore):
    """A store that ignores the condition, as older S3 servers do."""

    def create(self, key: str, data: bytes) -> str:
        """Overwrite."""
        return self.put(key, data)


def test_store_that_ignores_the_condition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="If-None-Match"):
        require_conditional_create(ForgetfulStore(tmp_path), "ledger/")


def test_store_that_heeds_the_condition_passes_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        require_conditional_create(LocalStore(tmp_path), "ledger/")
    assert [info.key for info in LocalStore(tmp_path).list()] == ["ledger/conditional-create"]
