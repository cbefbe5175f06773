"""Identifiers become codes that only the key can make, dates keep their intervals."""

from datetime import date, timedelta

import numpy as np
import pytest
from pydicom import uid

from chexradinet.config import DicomConfig
from chexradinet.dataset.deidentification import (
    KEY_VARIABLE,
    MAX_SHIFT_DAYS,
    DeidentificationKey,
    coarse_age,
    coded,
    deidentification_key,
    deidentified_ids,
    shifted,
)
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import ConfigError
from chexradinet.phantom import encode_radiograph
from chexradinet.records import RadiographHeader

KEY = DeidentificationKey(secret=b"0123456789abcdef0123456789abcdef")
OTHER = DeidentificationKey(secret=b"fedcba9876543210fedcba9876543210")


def header_with(**attributes: object) -> RadiographHeader:
    stored = np.zeros((4, 4), dtype=np.uint8)
    content = encode_radiograph(stored, uid.ExplicitVRLittleEndian, attributes)
    return read_radiograph(content, DicomConfig()).header


@pytest.mark.parametrize("environment", [{}, {KEY_VARIABLE: ""}, {KEY_VARIABLE: "short"}])
def test_a_missing_or_short_key_names_the_variable_and_the_page(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        deidentification_key()
    assert KEY_VARIABLE in str(caught.value)
    assert "docs/deidentification.md" in str(caught.value)
    assert "short" not in str(caught.value).split(";")[0].split("has")[-1]


def test_the_key_is_read_from_the_environment_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY.secret.decode())
    assert deidentification_key() == KEY
    assert "0123" not in repr(KEY)


def test_a_code_is_the_hmac_of_its_kind_and_identifier() -> None:
    # printf 'patient\0P-17' | openssl dgst -sha256 -hmac "$key" | cut -c1-32
    assert coded(KEY, "patient", " P-17 ") == "3d894a62b01e5ee4c9b379305a830f59"


def test_codes_differ_by_identifier_kind_and_key() -> None:
    codes = {
        coded(KEY, "patient", "P-17"),
        coded(KEY, "patient", "P-18"),
        coded(KEY, "study", "P-17"),
        coded(OTHER, "patient", "P-17"),
    }
    assert len(codes) == 4


def test_dates_of_a_patient_keep_their_interval_and_move_into_the_past() -> None:
    first, second = date(2020, 2, 1), date(2021, 3, 4)
    moved = shifted(KEY, "P-17", first), shifted(KEY, "P-17", second)
    assert moved[0] is not None
    assert moved[1] is not None
    assert moved[1] - moved[0] == second - first
    assert timedelta(days=1) <= first - moved[0] <= timedelta(days=MAX_SHIFT_DAYS)
    assert shifted(KEY, "P-18", first) != moved[0]


def test_no_date_and_a_date_before_time_stay_empty() -> None:
    assert shifted(KEY, "P-17", None) is None
    assert shifted(KEY, "P-17", date(1, 1, 1)) is None


def test_no_identifier_of_the_header_survives() -> None:
    header = header_with(
        PatientID="4711-secret", StudyDate="20200102", StudyInstanceUID="1.2.3.4.5"
    )
    ids = deidentified_ids(header, KEY)
    written = repr(ids)
    for planted in ("4711", "1.2.3.4.5", header.sop_instance_uid, "2020, 1, 2"):
        assert planted not in written
    assert ids == deidentified_ids(header, KEY)
    assert ids.patient_id == coded(KEY, "patient", "4711-secret")


def test_unnamed_patients_are_not_thrown_together() -> None:
    first = deidentified_ids(header_with(PatientID=None), KEY)
    second = deidentified_ids(header_with(PatientID=None), KEY)
    assert first.patient_id != second.patient_id


@pytest.mark.parametrize(
    ("age", "kept"), [(None, None), (0.5, 0), (45.9, 45), (90, 90), (101.2, 90)]
)
def test_ages_are_whole_and_capped(age: float | None, kept: float | None) -> None:
    assert coarse_age(age) == kept
