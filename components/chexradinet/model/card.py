"""The model card that travels with the weights: what the model is for, how it was made, its limits.

Its sections follow Mitchell et al. 2019, arXiv:1810.03993; the front matter is that of the Hugging
Face Hub, so that a bundle can be uploaded there as it is.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chexradinet.model import BundleInfo

_PURPOSE = """\
## Intended use

Research, and support in ordering a reading worklist, by people who know its measured limits. It is
not a medical device and **not for diagnosis**: a score is not a diagnosis; a low score does not
rule out disease. Scoring runs nightly in batches, so it is **not emergency triage**: what must be
seen tonight must not wait for it. Frontal chest radiographs (PA or AP) of adults only.
"""

_METHOD = """\
## Method

A residual network with triplet attention is trained on image labels alone. Where its class
activation map looks becomes a box, the box becomes 102 radiomics features, and the features guide
further rounds of training (ChexRadiNet, Han et al., AMIA 2021, arXiv:2011.12506). Only the abstract
of that paper is public to this project: backbone, loss weights, thresholds, recipes and schedule
are this project's own choices, and its results are not the paper's.
"""

GUIDANCE_EVIDENCE = (
    "Shown: with few labels, a frozen encoder that was pre-trained to predict local radiomics "
    "separates findings better than one pre-trained on permuted radiomics or on HOG (a subset of "
    "NIH, 96 px, a small network).",
    "Not shown: that the contrast between image and radiomics in the guided rounds helps; on real "
    "X-rays it did no better than permuted radiomics, and at a high weight it did harm.",
    "Not shown: that radiomics improve a fully fine-tuned classifier, or anything clinical.",
)
"""What may and what may not be claimed about radiomics guidance, whatever one run measures."""

_LIMITS = """\
## Limits

- Labels of the public data sets were read from reports by machine and are often wrong, so a score
  against them is not accuracy against disease.
- Heatmaps and boxes show where the score came from, not where the disease is. No box was used in
  training.
- A gain from guidance is due to radiomics only as far as it exceeds the control arm and the arm
  with permuted radiomics.
- Probabilities hold for populations like the one they were calibrated on; prevalence elsewhere
  differs.
- Nothing is known about children, lateral views, other body parts, or devices unlike those trained
  on.
"""


def model_card(info: "BundleInfo") -> str:
    """Render the card of a bundle as Markdown; it claims nothing that `info` does not hold."""
    parts = [_front_matter(info), _head(info), _PURPOSE, _METHOD, _data(info), _calibration(info)]
    evidence = [f"- {line}" for line in GUIDANCE_EVIDENCE]
    return "\n".join([*parts, _results(info), "## Radiomics guidance", "", *evidence, "", _LIMITS])


def _front_matter(info: "BundleInfo") -> str:
    """Return the metadata that the Hub reads; JSON is YAML as well."""
    metadata: dict[str, Any] = {
        "license": "other",
        "license_name": "as-the-training-data-allows",
        "library_name": "chexradinet",
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "radiology", "heatmap", "radiomics", info.network.backbone.value],
    }
    test = (info.metrics or {}).get("test")
    if test and test["mean_auroc"] is not None:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": info.training_data_digest, "name": test["protocol"]},
            "metrics": [{"type": "roc_auc", "name": "mean AUROC", "value": test["mean_auroc"]}],
        }
        metadata["model-index"] = [{"name": "ChexRadiNet", "results": [result]}]
    lines = [f"{name}: {json.dumps(value)}" for name, value in metadata.items()]
    return "\n".join(["---", *lines, "---", ""])


def _head(info: "BundleInfo") -> str:
    rows = {
        "Backbone": info.network.backbone.value,
        "Map stride": f"{info.network.map_stride} px",
        "Input": f"{info.preprocessing.image_side} px square, 8 bits, one channel "
        f"({info.preprocessing.geometry.value})",
        "Round": str(info.round),
        "Guidance": info.guidance,
        "Findings": ", ".join(info.findings),
        "Calibrated": "yes" if info.calibration else "no: scores are not probabilities",
        "Operating thresholds": "set" if info.thresholds else "not set",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["# Model card: ChexRadiNet", "", "| | |", "|---|---|", *lines, ""])


def _data(info: "BundleInfo") -> str:
    return "\n".join(
        [
            "## Training data",
            "",
            f"- Data set: `{info.training_data_digest or 'not recorded'}`",
            f"- Preprocessing: `{info.preprocessing_digest}`",
            f"- Settings: `{json.dumps(info.settings, sort_keys=True)}`",
            "",
        ]
    )


def _calibration(info: "BundleInfo") -> str:
    head = ["## Calibration and thresholds", ""]
    found = info.calibration
    if not found:
        said = "Not calibrated: scores are not probabilities, and nothing is flagged."
        return "\n".join([*head, said, ""])
    where = f"{_shown(found.get('num_images'))} images of the {_shown(found.get('split'))} split"
    lines = [
        f"- Probabilities: {found.get('method', 'not recorded')}; fitted on {where}.",
        f"- Operating thresholds: {found.get('rule', 'not recorded')}{_target(found)}, "
        "on the same images.",
    ]
    for name, one in (found.get("findings") or {}).items():
        if one.get("status") == "not_calibrated":
            reason = one.get("reason") or "reason not recorded"
            lines.append(f"- {name} is not calibrated ({reason}): a plain sigmoid, never flagged.")
    outside = ((info.reference or {}).get("ood") or {}).get("rule")
    if outside:
        lines.append(f"- Unlike the training data: {outside}")
    return "\n".join([*head, *lines, ""])


def _target(calibration: dict[str, Any]) -> str:
    target = calibration.get("target_sensitivity")
    return "" if target is None else f"; the target is {_shown(target)}"


def _results(info: "BundleInfo") -> str:
    head = ["## Results", ""]
    if not info.metrics:
        return "\n".join([*head, "Not evaluated: nothing is known about how well it works.", ""])
    test = info.metrics.get("test") or {}
    validation = info.metrics.get("validation") or {}
    lines = [
        f"Validation split: mean AUROC {_shown(validation.get('mean_auroc'))}, "
        f"over {_shown(validation.get('mean_auroc_num_findings'))} findings.",
        "",
    ]
    if not test:
        return "\n".join([*head, *lines, "Not evaluated on a test split.", ""])
    lines += [
        f"Test split: mean AUROC {_shown(test['mean_auroc'])} "
        f"(95% {_shown(test['ci95_mean_auroc'])}) over {test['mean_auroc_num_findings']} findings, "
        f"calibration error {_shown(test['ece'])}.",
        "",
        f"Protocol: {test['protocol']}.",
        "",
        *_findings_table(info, test),
        "",
        *_localization_table(test.get("localization") or {}),
    ]
    return "\n".join([*head, *lines, ""])


def _findings_table(info: "BundleInfo", test: dict[str, Any]) -> list[str]:
    calibrated = (info.calibration or {}).get("findings") or {}
    thresholds = info.thresholds or {}
    rows = [
        f"| {name} | {_shown(test['auroc'].get(name))} | {_shown(thresholds.get(name))} "
        f"| {calibrated.get(name, {}).get('status', 'not_calibrated')} |"
        for name in info.findings
    ]
    return ["| finding | AUROC, test | threshold | calibration |", "|---|---|---|---|", *rows]


def _localization_table(found: dict[str, Any]) -> list[str]:
    measures = ("iou_0.1", "iou_0.3", "iou_0.5", "pointing")
    rows = [
        f"| {name} | {_shown(found.get(name))} | {_shown(found.get(f'swapped_{name}'))} "
        f"| {_shown(found.get(f'random_{name}'))} |"
        for name in measures
    ]
    note = (
        "Swapped: the map of another patient with the same finding, which knows the usual place "
        "and nothing else. Random: a smooth random map."
    )
    return ["| localisation | own map | swapped | random |", "|---|---|---|---|", *rows, "", note]


def _shown(value: object) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, list):
        return " to ".join(_shown(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
