"""The evaluation report shows what metrics.json holds, and nothing else."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexradinet.evaluation import gain_sentences, metrics_document, round_entry, verdict
from chexradinet.evaluation.calibration import calibration_line
from chexradinet.evaluation.subgroups import decision_curve, subgroup_metrics
from chexradinet.model.bundle import GUIDANCE_EVIDENCE
from chexradinet.records import Box
from chexradinet.reports.evaluation import (
    PanelCase,
    ReportFigures,
    feature_contrast,
    learning_curves,
    write_report,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)


def _text(path: Path) -> str:
    """Return what a reader sees and hears: text and alternatives, without markup and images."""
    raw = path.read_text()
    alternatives = " ".join(re.findall(r'alt="([^"]*)"', raw))
    body = re.sub(r"<style>.*?</style>", " ", raw, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", body) + " " + alternatives)


def _numbers(values: Any) -> list[float]:  # noqa: ANN401
    if isinstance(values, Mapping):
        return [number for inner in values.values() for number in _numbers(inner)]
    if isinstance(values, list):
        return [number for inner in values for number in _numbers(inner)]
    return [float(values)] if isinstance(values, float) else []


def _bare_metrics() -> dict[str, Any]:
    nothing = {"mean_auroc": None, "auroc": {"Hernia": None}}
    return metrics_document(
        rounds=[round_entry(number=0, guidance="none", classification=nothing)],
        best_round=0,
        test={**nothing, "ci95": {}, "ece": None, "by_view": {}},
        protocol="an empty data set",
    )


def test_a_report_without_any_defined_number_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, _bare_metrics())
    text = _text(path)
    assert "No case of this split has a true box" in text
    assert "Not defined on this split" in text
    assert "Hernia" in text
    assert "No control arm was trained" in text
    assert "None" not in text
    assert "nan" not in text.lower()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, Any]) -> Path:
    """Return the report of the full document, with one radiograph."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    case = PanelCase(
        image=IMAGE,
        heatmap=np.ones((4, 4)),
        region=None,
        image_id="abc",
        finding="Mass",
        probability=0.5,
    )
    write_report(path, metrics, ReportFigures(panel=[case]))
    return path


def _located(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if "by_finding" not in key}


def test_every_number_of_the_metrics_is_in_the_report(
    report: Path, metrics: dict[str, Any]
) -> None:
    text, test = _text(report), metrics["test"]
    arms = metrics["arms"].values()
    shown = [
        [[entry["mean_auroc"], _located(entry["localization"])] for entry in metrics["rounds"]],
        [arm["difference"][key]["ci95"] for arm in arms for key in ("mean_auroc", "iou_0.3")],
        [_located(arm["rounds"][0]["localization"]) for arm in arms],
        {key: test[key] for key in ("auroc", "auprc", "ece_by_finding", "ece", "mean_auroc")},
        [_located(test["localization"]), test["localization"]["by_finding"]],
        [test["localization"][f"{control}_by_finding"] for control in ("random", "swapped")],
        test["operating_points"],
        {key: test["ci95"][key] for key in ("auroc", "auprc", "mean_auroc")},
        [{key: view[key] for key in ("mean_auroc", "auroc")} for view in test["by_view"].values()],
    ]
    numbers = _numbers(shown)
    assert len(numbers) > 150
    missing = [number for number in numbers if f"{number:.3f}" not in text]
    assert not missing


def test_the_report_asks_nothing_of_the_network_and_runs_no_script(report: Path) -> None:
    raw = report.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', raw)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for forbidden in ("<script", "http://", "https://", "@import", "url(", ">None<"):
        assert forbidden not in raw
    assert "NaN" not in _text(report)
    assert "None" not in _text(report)


def test_every_image_has_an_alternative_and_every_table_a_caption_with_its_protocol(
    report: Path,
) -> None:
    raw = report.read_text()
    assert raw.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', raw)) > 0
    assert raw.count("<table>") == raw.count("<table><caption><strong>") == 6
    assert len(re.findall(r"<caption><strong>[^<]+</strong><span>[^<]{20,}</span>", raw)) == 6


def test_the_chosen_round_is_marked_once(report: Path) -> None:
    assert _text(report).count("(chosen)") == 1


def test_what_comes_from_outside_is_escaped(tmp_path: Path, metrics: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    planted = {
        **metrics,
        "protocol": dict.fromkeys(metrics["protocol"], "<script>alert(1)</script>"),
    }
    write_report(path, planted)
    assert "<script" not in path.read_text()


def test_a_panel_case_says_what_it_shows(tmp_path: Path, metrics: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    cases = [
        PanelCase(
            image=IMAGE,
            heatmap=np.eye(4),
            region=region,
            true_boxes=[Box(1, 1, 9, 9)],
            image_id="0123456789abcdefXYZ",
            finding="Pleural_Thickening",
            probability=probability,
            label=label,
        )
        for region, probability, label in ((Box(2, 2, 30, 30), 0.25, 1.0), (None, None, np.nan))
    ]
    write_report(path, metrics, ReportFigures(panel=cases))
    text = _text(path)
    assert "Pleural Thickening, probability 0.25, labelled present, image 0123456789abcdef" in text
    assert "probability n/d, no region, image 0123456789abcdef" in text
    assert "XYZ" not in text
    assert "heatmap of Pleural Thickening; region drawn; 1 true boxes drawn" in text


def _epochs(*losses: float, **more: float) -> list[dict[str, Any]]:
    return [
        {"epoch": number, "loss": loss, "parts": {"entropy": loss / 2}, **more}
        for number, loss in enumerate(losses)
    ]


def test_learning_curves_run_over_all_rounds_with_each_arm_beside_its_round(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    assert learning_curves(metrics) == {}
    first, second, third = metrics["rounds"]
    rounds = [
        {**first, "history": _epochs(3, 2, learning_rate=0.1)},
        {**second, "history": _epochs(1, val_mean_auroc=0.8)},
        third,
    ]
    arm = {**metrics["arms"]["control"]["rounds"][0], "round": 1, "history": _epochs(9)}
    given = {**metrics, "rounds": rounds, "arms": {"control": {"rounds": [arm]}}}
    assert learning_curves(given) == {
        "loss": {"guided": [(1, 3), (2, 2), (3, 1)], "control": [(3, 9)]},
        "entropy": {"guided": [(1, 1.5), (2, 1), (3, 0.5)], "control": [(3, 4.5)]},
        "learning rate": {"guided": [(1, 0.1), (2, 0.1)]},
        "validation mean AUROC": {"guided": [(3, 0.8)]},
    }
    write_report(tmp_path / "report.html", given)
    assert "Learning curves" in _text(tmp_path / "report.html")


def test_equal_metrics_give_equal_bytes(tmp_path: Path) -> None:
    metrics = _bare_metrics()
    metrics["test"]["roc"] = {"Hernia": {"fpr": [0.0, 0.2, 1.0], "tpr": [0.0, 0.9, 1.0]}}
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, metrics)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ([0.01, 0.2], "gain"),
        ([-0.2, -0.01], "loss"),
        ([0.0, 0.1], "none shown"),
        (None, "not defined"),
    ],
)
def test_a_gain_is_claimed_only_above_zero(interval: list[float] | None, expected: str) -> None:
    assert verdict({"difference": 0.05, "ci95": interval}) == expected


def _arms(control: list[float], permuted: list[float]) -> dict[str, Any]:
    return {
        arm: {"difference": {"iou_0.3": {"difference": sum(bounds) / 2, "ci95": bounds}}}
        for arm, bounds in (("control", control), ("permuted", permuted))
    }


def test_radiomics_get_credit_only_where_both_arms_are_beaten() -> None:
    both = gain_sentences(_arms([0.1, 0.2], [0.05, 0.1]))
    assert "beats both arms in localisation at IoU 0.3" in both[-1]
    one = gain_sentences(_arms([0.1, 0.2], [-0.05, 0.1]))
    assert "higher in localisation at IoU 0.3 (+0.150 [0.100, 0.200])" in one[0]
    assert "no difference shown (the interval includes 0)" in one[1]
    assert "no gain is credited" in one[-1]
    alone = gain_sentences({"control": _arms([0.1, 0.2], [0, 0])["control"]})
    assert "Without the permuted arm" in alone[-1]


def test_the_report_says_what_is_and_is_not_shown_about_guidance(report: Path) -> None:
    text = _text(report)
    for line in GUIDANCE_EVIDENCE:
        assert line in text
    assert "Not shown: that radiomics improve a fully fine-tuned classifier" in text


def test_groups_gaps_lines_curves_and_marks_are_drawn_with_their_sizes(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (400, 1)).astype(float)
    weak = np.arange(400) % 2 == 0
    scores = labels * np.where(weak, 0, 3)[:, None] + np.random.default_rng(1).normal(size=(400, 1))
    groups = {"sex": np.where(weak, "F", "M").tolist(), "view": ["PA"] * 400}
    probabilities = 1 / (1 + np.exp(-scores))
    added = {
        **subgroup_metrics(labels, scores, list(range(400)), ["Mass"], groups),
        "calibration_line": {
            "Mass": calibration_line(labels[:, 0], probabilities[:, 0]),
            "Hernia": None,
        },
        "decision_curve": {"Mass": decision_curve(labels[:, 0], probabilities[:, 0])},
        "free_response": {
            "Mass": {
                "fp_at_sensitivity": {"0.3": 0.125, "0.5": 0.25, "0.7": None},
                "sensitivity_at_fp": {"0.05": 0.111, "0.1": 0.222, "0.25": 0.444},
                "num_images": 1500,
                "num_boxes": 77,
            }
        },
    }
    for attribute in added["by_group"].values():
        for entry in attribute.values():
            for key in ("auroc", "positives", "negatives"):
                entry[key] = dict.fromkeys(metrics["test"]["auroc"], entry[key]["Mass"])
    path = tmp_path / "report.html"
    write_report(path, {**metrics, "test": {**metrics["test"], **added}})
    text = _text(path)
    for shown in ("By sex", "200 patients", "sex F", "Bonferroni", "Decision curves", "1,500"):
        assert shown in text
    for value in _numbers([added["free_response"], added["by_group"]["sex"]["F"]["auroc"]]):
        assert f"{value:.3f}" in text
    assert "not reached" in text
    assert f"{added['calibration_line']['Mass']['slope']:.2f}" in text
    assert re.search(r"Hernia\s+(n/d\s+){5}", text)


def test_the_feature_that_differs_is_found_with_its_size() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([[0.0], [1.0]], 200, axis=0)
    features = generator.normal(size=(400, 3))
    features[:, 1] += 3 * labels[:, 0]
    features[:, 2] = 7
    features[0] = np.nan
    found = feature_contrast(features, ["plain", "moved", "constant"], labels, ["Mass"])
    assert [row.feature for row in found] == ["moved", "plain"]
    moved = found[0]
    assert moved.num_with + moved.num_without == 399
    assert moved.median_with - moved.median_without == pytest.approx(3, abs=0.3)
    # Two normal halves three apart: the median distance from the middle is about 1.5.
    assert moved.standardised == pytest.approx(3 / (1.4826 * 1.5), rel=0.15)


def test_a_finding_with_few_cases_and_images_without_features_are_not_compared() -> None:
    labels = np.zeros((20, 1))
    labels[:4] = 1
    features = np.random.default_rng(0).normal(size=(20, 2))
    assert feature_contrast(features, ["a", "b"], labels, ["Mass"]) == []
    assert feature_contrast(np.full((20, 2), np.nan), ["a", "b"], labels, ["Mass"]) == []
