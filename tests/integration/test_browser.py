"""The worklist in a real browser: it fits the screen of a desk and of a phone, and its links lead.

Chromium is driven by its DevTools protocol over a socket of this machine; the viewer is a server
that only notes what it is asked for.
"""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from chexradinet.config.nightly import WorklistConfig, WorklistIdentifiers
from chexradinet.reports.nightly import (
    FlaggedCase,
    NightReport,
    WaitingImage,
    worklist,
    write_night_report,
    write_worklist_page,
)
from chexradinet.reports.pictures import overlay, png_bytes

websocket = pytest.importorskip("websocket")

UNTIL = datetime(2026, 2, 2, tzinfo=UTC)
STUDY = "2.25.302943848394857201938475610293847561029"
_DEADLINE_S = 60
_TARGET = "document.querySelector(':target')"


class Tab:
    """One page of the browser."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(
            address, timeout=_DEADLINE_S, suppress_origin=True
        )
        self._last = 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Send a command and return its result."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._last:
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, script: str) -> Any:  # noqa: ANN401
        """Return what a script comes to."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def close(self) -> None:
        """Leave the page."""
        self._socket.close()

    def show(self, page: Path, width: int) -> None:
        """Open a file on a screen of this width."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.ask("Page.navigate", url=page.as_uri())
        wait_for(lambda: self.value("document.readyState") == "complete" and self.at(page))

    def at(self, page: Path) -> bool:
        """Tell whether this file is open."""
        return str(self.value("location.href")).startswith(page.as_uri())

    def reached(self, page: Path) -> bool:
        """Tell whether a place in this file is open."""
        return self.at(page) and bool(self.value(f"{_TARGET}?.id"))

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        self.value(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector('{selector}').getClientRects()[0]"
        place = {
            "x": self.value(f"{box}.x + {box}.width / 2"),
            "y": self.value(f"{box}.y + {box}.height / 2"),
            "button": "left",
            "clickCount": 1,
        }
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **place)


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fail after a minute."""
    deadline = time.monotonic() + _DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "the browser did not get there"
        time.sleep(0.05)


@pytest.fixture
def viewer() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a viewer, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: ANN401
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/viewer", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(
    tool: Callable[[str, str], str], tmp_path: Path, viewer: tuple[str, list[str]]
) -> Iterator[Tab]:
    """Return a page of a headless Chromium; it ends before the viewer, which it holds open."""
    program = tool("chromium", "apt-get install chromium")
    profile = tmp_path / "profile"
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-port=0",
        "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=127.0.0.1",
    ]  # fmt: skip
    with subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.DEVNULL) as browser:
        try:
            port_file = profile / "DevToolsActivePort"
            wait_for(lambda: port_file.exists() and "\n" in port_file.read_text())
            port = port_file.read_text().split()[0]
            with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            with closing(Tab(pages[0]["webSocketDebuggerUrl"])) as page:
                yield page
        finally:
            browser.terminate()
            browser.wait(_DEADLINE_S)
            shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def pages(tmp_path: Path, viewer: tuple[str, list[str]]) -> Path:
    """Return the folder of a night: a worklist of twenty studies, and its report."""
    config = WorklistConfig(
        worklist_identifiers=WorklistIdentifiers.PATIENT,
        viewer_url=f"{viewer[0]}?StudyInstanceUIDs={{study_uid}}",
        timezone="Europe/Berlin",
    )
    images = [
        WaitingImage(
            study_uid=f"{STUDY}{number}",
            arrived=UNTIL - timedelta(hours=1 + 3 * number),
            probabilities={"Pneumothorax": 1 - number / 25},
            flagged=["Enlarged_Cardiomediastinum", "Pleural_Thickening", "Pneumothorax"],
            not_assessed=["Hernia"],
            accession=f"ACC{number:09d}",
            patient_id=f"PATIENT{number}",
            study_date="2026-02-01",
        )
        for number in range(20)
    ]
    picture = png_bytes(overlay(np.zeros((200, 200), np.uint8), np.eye(4)))
    case = FlaggedCase(
        png=picture,
        study_uid=f"{STUDY}0",
        finding="Pneumothorax",
        probability=1.0,
        threshold=0.5,
    )
    entries = worklist(images, UNTIL, config)
    pictures = {case.study_uid: picture}
    write_worklist_page(tmp_path / "worklist.html", "2026-02-01", entries, config, None, pictures)
    report = NightReport(
        date="2026-02-01", plan=1, model_digest="a" * 64, num_planned=20, num_scored=20,
        num_studies=20, excluded=[], probabilities={"Pneumothorax": [0.5] * 20},
        num_flagged={"Pneumothorax": 20}, thresholds={"Pneumothorax": 0.5}, drift=None,
        cases=[case],
    )  # fmt: skip
    write_night_report(tmp_path / "report.html", report)
    return tmp_path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_fit_the_screen_and_nothing_is_cut_off(tab: Tab, pages: Path, width: int) -> None:
    for name in ("report.html", "worklist.html"):
        tab.show(pages / name, width)
        assert tab.value("innerWidth") == width
        assert tab.value("document.documentElement.scrollWidth") <= width
    # Tables of the report may scroll in their frames; the list to work from must not.
    boxes = "[...document.querySelectorAll('table, img')].map(e => e.getBoundingClientRect())"
    assert tab.value(f"Math.max(...{boxes}.map(box => box.right))") <= width
    shown = tab.value("document.querySelector('main').innerText")
    for text in ("ACC000000000", "PATIENT0", "Pneumothorax 1.00", "not assessed: Hernia", "UTC"):
        assert text in shown


def test_a_click_leads_to_the_viewer_with_the_study(
    tab: Tab, pages: Path, viewer: tuple[str, list[str]]
) -> None:
    tab.show(pages / "worklist.html", 1280)
    tab.click(f'tr[id="study-{STUDY}0"] td.uid a')
    wait_for(lambda: bool(viewer[1]))
    assert viewer[1][0] == f"/viewer?StudyInstanceUIDs={STUDY}0"


def test_list_and_report_lead_to_each_other_at_the_study(tab: Tab, pages: Path) -> None:
    tab.show(pages / "worklist.html", 1280)
    for link, page, shown in (
        ("td.thumbnail a", "report.html", "FIGURE"),
        ("figure a", "worklist.html", "TR"),
    ):
        tab.click(link)
        wait_for(partial(tab.reached, pages / page))
        assert tab.value(f"{_TARGET}.id") == f"study-{STUDY}0"
        assert tab.value(f"{_TARGET}.tagName") == shown
