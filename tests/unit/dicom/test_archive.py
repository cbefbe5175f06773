"""Addresses of DICOMweb archives."""

from datetime import datetime, timedelta

import pytest

from chexradinet.dicom import HTTP_VARIABLE, parse_archive
from chexradinet.errors import ConfigError

DATES = "?study_date=20260101-20260131"


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("dicomweb://pacs.example.org/dicom-web/", "https://pacs.example.org/dicom-web"),
        ("dicomweb://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web"),
        ("dicomweb://localhost/x", "http://localhost/x"),
        ("dicomweb://[::1]:8042/x", "http://[::1]:8042/x"),
        ("dicomweb+http://pacs:8042/x", "http://pacs:8042/x"),
        ("dicomweb+https://127.0.0.1/x", "https://127.0.0.1/x"),
    ],
)
def test_tls_is_spoken_except_to_this_machine_or_when_told(
    uri: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_VARIABLE, "1")
    archive = parse_archive(uri + DATES, dates_needed=True)
    assert (archive.url, archive.study_date) == (url, "20260101-20260131")
    assert archive.uri == uri.rstrip("/")


@pytest.mark.parametrize("allowed", ["", "0", "yes"])
def test_plain_http_to_another_machine_needs_permission(
    allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_VARIABLE, allowed)
    with pytest.raises(ConfigError, match=f"unencrypted to another machine.*{HTTP_VARIABLE}=1"):
        parse_archive("dicomweb+http://pacs.example.org/x" + DATES, dates_needed=True)
    for host in ("127.0.0.1", "localhost", "[::1]"):
        archive = parse_archive(f"dicomweb+http://{host}/x" + DATES, dates_needed=True)
        assert archive.url == f"http://{host}/x"


@pytest.mark.parametrize("dates", ["20260131", "20260101-", "-20260131", "20240229-20240229"])
def test_day_and_open_ranges_are_dates(dates: str) -> None:
    archive = parse_archive(f"dicomweb://pacs/x?study_date={dates}", dates_needed=True)
    assert archive.study_date == dates


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("dicomweb://pacs/x", "study_date ''"),
        ("dicomweb://pacs/x?study_date=-", "study_date"),
        ("dicomweb://pacs/x?study_date=20260230", "20260230"),
        ("dicomweb://pacs/x?study_date=2026-01-31", "YYYYMMDD"),
        ("dicomweb://pacs/x?study_date=2026010120260131", "YYYYMMDD"),
        ("dicomweb://pacs/x?study_date=20260131-20260101", "ends before"),
        ("dicomweb://pacs/x?date=20260131", "unknown"),
        ("dicomweb://pacs/x?study_date=20260131&last_days=2", "both"),
        ("dicomweb://pacs/x?last_days=-1", "number of days"),
        ("dicomweb://pacs/x?last_days=", "number of days"),
        ("dicomweb:///x" + DATES, "no host"),
        ("https://pacs/x" + DATES, "'https'"),
        ("dicomweb://pacs:port/x" + DATES, "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_was_given(uri: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_archive(uri, dates_needed=True)


def test_credentials_in_the_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="DICOMWEB_PASSWORD") as caught:
        parse_archive(f"dicomweb://planted:planted@pacs/x{DATES}", dates_needed=True)
    assert "planted" not in str(caught.value)


def test_last_days_reach_from_then_to_tomorrow_so_that_no_time_zone_is_left_out() -> None:
    given = parse_archive("dicomweb://pacs/x?last_days=2", dates_needed=True).study_date
    first, last = (datetime.strptime(day, "%Y%m%d") for day in given.split("-"))
    assert last - first == timedelta(days=3)
    assert abs(last - datetime.now()) < timedelta(days=2)
