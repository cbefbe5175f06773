"""docs/datasets.md says what a user meets: every reason code, format and column."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from chexradinet.config import SourceFormat
from chexradinet.dataset import quality
from chexradinet.dataset.labels import generic
from chexradinet.dicom import header as dicom_header
from chexradinet.dicom import pixels, reader
from chexradinet.ingest.output import SHOWN_FLAGS
from chexradinet.records import RejectReason

PAGE = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
ROWS = {row.strip("`") for row in re.findall(r"^[|-] (`\w+`)", PAGE, flags=re.MULTILINE)}


@pytest.mark.parametrize("reason", list(RejectReason))
def test_every_reason_code_has_a_row(reason: RejectReason) -> None:
    assert reason.value in ROWS


@pytest.mark.parametrize("convention", list(SourceFormat))
def test_every_format_has_a_row(convention: SourceFormat) -> None:
    assert convention.value in ROWS


def source_of(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def test_every_flag_has_a_row() -> None:
    found = re.findall(r'^ +"(\w+)": header', source_of(quality), flags=re.MULTILINE)
    modules = (dicom_header, reader, pixels)
    noted = re.findall(r'notes\.append\("(\w+)"\)', "".join(map(source_of, modules)))
    assert len(found) >= 5
    assert len(noted) >= 9
    assert {*found, *noted, *SHOWN_FLAGS} <= ROWS


def test_every_column_of_the_own_table_is_there() -> None:
    described = set(re.findall(r"`(\w+)`", str(generic.__doc__).partition("A finding")[0]))
    assert described - {"generic"} <= set(re.findall(r"`([\w.]+)`", PAGE))
