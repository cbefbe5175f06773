"""The order of the worklist: urgency times probability, and the cap."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chexradinet.config.nightly import DEFAULT_URGENCY, WorklistConfig, WorklistIdentifiers
from chexradinet.errors import ConfigError
from chexradinet.findings import KNOWN_FINDINGS
from chexradinet.reports.nightly import (
    COLUMNS,
    Entry,
    WaitingImage,
    viewer_link,
    worklist,
    worklist_csv,
    write_worklist_page,
)

UNTIL = datetime(2026, 2, 2, tzinfo=UTC)


def image(study: str, age_h: float = 1.0, **probabilities: float) -> WaitingImage:
    """Return an X-ray that arrived so many hours before the end of the day."""
    flagged = [finding for finding, value in probabilities.items() if value >= 0.5]
    return WaitingImage(
        study_uid=study,
        arrived=UNTIL - timedelta(hours=age_h),
        probabilities=probabilities,
        flagged=flagged,
    )


def page(folder: Path, entries: Sequence[Entry]) -> str:
    """Return the page of a list."""
    write_worklist_page(folder / "list.html", "2026-02-01", entries, WorklistConfig())
    return (folder / "list.html").read_text("utf-8")


def order(*images: WaitingImage, config: WorklistConfig | None = None) -> list[str]:
    """Return the studies in order."""
    entries = worklist(images, UNTIL, config or WorklistConfig())
    return [entry.study_uid for entry in entries]


def test_no_x_ray_gives_an_empty_list(tmp_path: Path) -> None:
    assert worklist([], UNTIL, WorklistConfig()) == ()
    assert worklist_csv(()) == ",".join(COLUMNS) + "\n"
    assert "No study was scored." in page(tmp_path, ())


def test_an_urgent_finding_goes_before_a_likelier_one_that_is_not() -> None:
    # 1.0 * 0.5 against 0.2 * 0.9.
    assert order(image("b", Fibrosis=0.9), image("a", Pneumothorax=0.5)) == ["a", "b"]


def test_the_most_urgent_image_of_a_study_counts() -> None:
    entries = worklist(
        [image("s", Mass=0.1), image("s", 5.0, Pneumothorax=0.4)], UNTIL, WorklistConfig()
    )
    assert [(e.num_images, e.top_finding, e.priority) for e in entries] == [
        (2, "Pneumothorax", 0.4)
    ]
    assert entries[0].arrived == UNTIL - timedelta(hours=5)


def test_no_study_is_kept_waiting_beyond_the_cap_by_its_priority() -> None:
    config = WorklistConfig(max_wait_h=72, interval_h=24)
    found = order(
        image("urgent", 1.0, Pneumothorax=0.99),
        image("old", 49.0, Fibrosis=0.01),
        image("older", 60.0, Fibrosis=0.01),
        image("not yet", 47.0, Fibrosis=0.02),
        config=config,
    )
    assert found == ["older", "old", "urgent", "not yet"]


def test_equal_priorities_are_read_in_order_of_arrival_then_of_identifier() -> None:
    images = [image("c", 2.0, Mass=0.3), image("b", 1.0, Mass=0.3), image("a", 1.0, Mass=0.3)]
    assert order(*images) == order(*reversed(images)) == ["c", "a", "b"]


def test_a_site_can_set_its_own_urgencies() -> None:
    config = WorklistConfig(urgency={"Hernia": 1.0})
    images = (image("a", Pneumothorax=0.5), image("b", Hernia=0.6))
    assert order(*images) == ["a", "b"]
    assert order(*images, config=config) == ["b", "a"]


def test_every_known_finding_has_an_urgency() -> None:
    assert set(DEFAULT_URGENCY) == set(KNOWN_FINDINGS)


def test_an_own_finding_has_the_urgency_that_is_set_and_none_out_of_bounds() -> None:
    assert WorklistConfig(urgency={"Tuberculosis": 0.9}).urgency_of("Tuberculosis") == 0.9
    with pytest.raises(ConfigError, match=r"Mass.*in \[0, 1\]"):
        WorklistConfig(urgency={"Mass": 1.5})


def test_csv_has_a_line_a_study_and_text_is_quoted() -> None:
    entries = worklist([image('1,"2', Mass=0.7)], UNTIL, WorklistConfig())
    row = next(csv.DictReader(io.StringIO(worklist_csv(entries))))
    assert (row["study_uid"], row["position"], row["flagged_findings"]) == ('1,"2', "1", "Mass")


def test_a_study_whose_scores_are_not_calibrated_is_not_assessed_and_has_no_priority(
    tmp_path: Path,
) -> None:
    waiting = WaitingImage(
        study_uid="1.2",
        arrived=UNTIL - timedelta(hours=1),
        probabilities={},
        flagged=[],
        not_assessed=["Mass", "Pleural_Thickening"],
    )
    entries = worklist([image("1.3", Fibrosis=0.01), waiting], UNTIL, WorklistConfig())
    assert [entry.study_uid for entry in entries] == ["1.3", "1.2"]
    found = page(tmp_path, entries)
    assert "<small>not assessed: Mass, Pleural Thickening</small>" in found
    assert '<td class="text" data-label="first finding">not assessed</td>' in found
    assert "0.00" not in found.partition("study-1.2")[2]
    row = list(csv.DictReader(io.StringIO(worklist_csv(entries))))[1]
    assert (row["priority"], row["top_finding"], row["top_probability"]) == ("", "", "")
    assert row["not_assessed"] == "Mass;Pleural_Thickening"


def test_a_flag_says_how_its_threshold_did_if_the_study_has_one_model(tmp_path: Path) -> None:
    ours = replace(image("1.2", Mass=0.7), model_digest="a")
    before = replace(image("1.3", Mass=0.6), model_digest="b")
    mixed = [replace(image("1.4", Mass=0.5), model_digest=digest) for digest in "ab"]
    entries = worklist([ours, before, *mixed], UNTIL, WorklistConfig())
    held = {"a": {"Mass": {"sensitivity": 0.871, "specificity": 0.423}}}
    path = tmp_path / "list.html"
    write_worklist_page(path, "2026-02-01", entries, WorklistConfig(), operating_points=held)
    of_study = path.read_text("utf-8").split('<tr id="study-')[1:]
    assert "<small>sens. 87%, spec. 42%</small>" in of_study[0]
    assert "Mass" in of_study[1]
    assert "sens." not in of_study[1] + of_study[2]


NAMED = replace(image("1.2", Mass=0.5), accession="A 1", patient_id="P7", study_date="2025-12-24")


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("none", ()), ("accession", ("A 1", "2025-12-24")), ("patient", ("A 1", "2025-12-24", "P7"))],
)
def test_a_study_is_named_by_what_the_setting_allows_in_page_and_csv(
    tmp_path: Path, setting: str, shown: tuple[str, ...]
) -> None:
    config = WorklistConfig(worklist_identifiers=WorklistIdentifiers(setting))
    entries = worklist([NAMED], UNTIL, config)
    write_worklist_page(tmp_path / "list.html", "2026-01-30", entries, config)
    outputs = ((tmp_path / "list.html").read_text(), worklist_csv(entries))
    for text in ("A 1", "2025-12-24", "P7"):
        assert all((text in output) == (text in shown) for output in outputs)


def test_the_viewer_link_has_the_study_escaped_or_there_is_none() -> None:
    entry = worklist([NAMED], UNTIL, WorklistConfig())[0]
    assert viewer_link(entry, "") == ""
    assert viewer_link(entry, "https://v/{study_uid}?a={accession}") == "https://v/1.2?a=A%201"
    nameless = replace(entry, accession="")
    assert viewer_link(nameless, "https://v/?a={accession}") == ""
    assert viewer_link(nameless, "https://v/{study_uid}") == "https://v/1.2"


@pytest.mark.parametrize(
    "setting",
    [
        {"viewer_url": "javascript:alert('{study_uid}')"},
        {"viewer_url": "https://v/"},
        {"viewer_url": "https://v/{study_uid}/{patient}"},
        {"viewer_url": "https://v/{study_uid"},
        {"timezone": "Berlin"},
        {"timezone": "../etc/passwd"},
        {"worklist_identifiers": "name"},
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        WorklistConfig(**setting)


def test_times_are_local_beside_utc(tmp_path: Path) -> None:
    config = WorklistConfig(timezone="Europe/Berlin")
    entries = worklist([image("1.2", 30.0, Mass=0.5)], UNTIL, config)
    write_worklist_page(tmp_path / "list.html", "2026-02-01", entries, config)
    found = (tmp_path / "list.html").read_text("utf-8")
    assert "2026-01-31 19:00<small>2026-01-31 18:00 UTC</small>" in found
    assert "arrived, Europe/Berlin" in found


def test_the_page_says_the_rule_and_escapes_what_comes_from_outside(tmp_path: Path) -> None:
    entries = worklist([image("<script>", 100.0, Mass=0.7)], UNTIL, WorklistConfig())
    found = page(tmp_path, entries)
    assert "72 h" in found
    assert "not emergency triage" in found
    assert "<script>" not in found
