"""One file that no reader foresaw ends as a rejection, not as the end of the batch."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from chexradinet.errors import ConfigError, StoreUnavailableError
from chexradinet.ingest import decoding as reading
from chexradinet.ingest.decoding import Refused, decode_file
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom, dicom_config

NAME = "DOE_JANE"


class OneFile:
    """A source that holds one file's bytes, or fails to give them."""

    def __init__(self, content: bytes | Exception) -> None:
        self._content = content

    def read(self, _: str) -> bytes:
        """Return the bytes of any file."""
        if isinstance(self._content, Exception):
            raise self._content
        return self._content


def outcome_of(content: bytes | Exception) -> object:
    source = OneFile(content)
    return decode_file(source, dicom_config(), None, "file")  # type: ignore[arg-type]


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_a_fault_of_the_reader_refuses_the_file_and_names_its_place(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)

    def fail(*_: object) -> None:
        raise ValueError(NAME)

    monkeypatch.setattr(reading, "pixel_digest", fail)
    with caplog.at_level(logging.WARNING):
        refused = outcome_of(dicom(1) if kind == "dicom" else png())
    assert isinstance(refused, Refused)
    assert refused.reason == "unreadable"
    assert refused.detail.startswith("a fault of the reader: ValueError at line ")
    assert refused.detail.endswith(" of test_decoding.py")
    assert NAME not in caplog.text + refused.detail


@pytest.mark.parametrize("error", [StoreUnavailableError("no answer"), ConfigError("bad")])
def test_what_is_no_fault_of_the_file_ends_the_batch(error: Exception) -> None:
    with pytest.raises(type(error)):
        outcome_of(error)


def test_a_missing_key_ends_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        outcome_of(dicom(1))
