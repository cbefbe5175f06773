"""Messages about a source whose identifiers are replaced quote nothing of it."""

import pytest

from chexradinet.dataset.deidentification import DeidentificationKey, redact
from chexradinet.errors import LabelTableError

KEY = DeidentificationKey(secret=b"0" * 32)


@pytest.mark.parametrize(
    "name", ["ZIEGENHAGEN", "d'ZIEGENHAGEN", "d'\"ZIEGENHAGEN", "\\'ZIEGENHAGEN\n"]
)
def test_quoted_values_are_not_shown_whatever_quotes_they_hold(name: str) -> None:
    with pytest.raises(LabelTableError) as told, redact(KEY):
        raise LabelTableError(f"row 2 has {name!r} and {name + '2'!r}; fix it")
    assert "ZIEGENHAGEN" not in str(told.value)
    assert str(told.value) == "row 2 has (not shown) and (not shown); fix it"
    with pytest.raises(LabelTableError, match="ZIEGENHAGEN"), redact(None):
        raise LabelTableError(f"row 2 has {name!r}")
