"""Alerts: promtool's unit tests, and a section of the operations guide behind each."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ALERTS = {
    "ChexRadiNetNoSuccess", "ChexRadiNetManyRejects", "ChexRadiNetDrift",
    "ChexRadiNetOutOfDistribution", "ChexRadiNetBacklog", "ChexRadiNetSlowNight",
    "ChexRadiNetIdleGpu", "ChexRadiNetArchiveBehind",
}  # fmt: skip


@pytest.fixture
def groups(
    overlays: dict[str, list[dict[str, Any]]], tool: Callable[[str, str], str]
) -> dict[str, Any]:
    """Return the rule groups as Prometheus itself reads them; promtool is there to read them."""
    tool("promtool", "install Debian's prometheus package")
    (rule,) = [o for o in overlays["production"] if o["kind"] == "PrometheusRule"]
    return dict(rule["spec"])


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_unit_tests(groups: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(yaml.safe_dump(groups))
    shutil.copy(HERE / "alerts_test.yaml", folder)
    return promtool("test", "rules", "alerts_test.yaml", folder=folder)


def test_the_rules_are_what_prometheus_accepts(groups: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    checked = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


def test_each_alert_fires_when_it_should_and_not_otherwise(
    groups: dict[str, Any], tmp_path: Path
) -> None:
    tested = run_unit_tests(groups, tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_is_tested_both_ways() -> None:
    document = yaml.safe_load((HERE / "alerts_test.yaml").read_text())
    outcomes = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in document["tests"]
        for case in test["alert_rule_test"]
    }
    assert outcomes == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("expression", ["vector(1)", "vector(1) > 2"])
def test_alerts_that_always_or_never_fire_are_found(
    groups: dict[str, Any], tmp_path: Path, expression: str
) -> None:
    for rule in groups["groups"][0]["rules"]:
        rule["expr"] = expression
    told = run_unit_tests(groups, tmp_path).stderr
    assert {alert for alert in ALERTS if alert in told} == ALERTS


def headings(text: str) -> set[str]:
    """Return the anchors that a Markdown renderer makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_each_alert_leads_to_its_section_of_the_guide(groups: dict[str, Any]) -> None:
    rules = groups["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == ALERTS
    links = [rule["annotations"]["runbook_url"] for rule in rules]
    assert len(set(links)) == len(links)
    for link in links:
        address, _, anchor = link.partition("#")
        # A browser must find it: the site's copy of the guide, set in one place of the overlay.
        assert address == "https://git.example.org/chexradinet/blob/main/docs/operations.md"
        assert anchor in headings((ROOT / "docs/operations.md").read_text(encoding="utf-8")), link


def test_the_operator_of_kube_prometheus_stack_picks_up_rules_and_scraping(
    overlays: dict[str, list[dict[str, Any]]],
) -> None:
    picked = [o for o in overlays["production"] if o["apiVersion"].startswith("monitoring.coreos")]
    assert {one["kind"] for one in picked} == {"PrometheusRule", "ServiceMonitor"}
    assert {one["metadata"]["labels"]["release"] for one in picked} == {"kube-prometheus-stack"}


def test_links_inside_the_guide_lead_somewhere() -> None:
    guide = ROOT / "docs" / "operations.md"
    text = guide.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        assert not path or (guide.parent / path).exists(), target
        assert not anchor or path or anchor in headings(text), target
