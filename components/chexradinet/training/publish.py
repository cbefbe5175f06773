"""Publication: a model becomes the champion if a gate lets it pass.

A candidate is held against the champion on the same test patients. The mean AUROC must rise; no
finding, the localisation nor the calibration may lose more than the settings allow. What rests on
too few cases is listed and not judged (ADR 0023).

The decision with its figures is kept beside the evaluation, as `decision.json` and in a copy of the
model card: the card inside the bundle is part of its digest and cannot know what came after.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chexradinet.artifacts import write_document
from chexradinet.config import PublishConfig, RegionConfig
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.errors import ArtifactError, StoreConflictError
from chexradinet.evaluation import interval, read_metrics, signed
from chexradinet.evaluation.calibration import apply_calibration, calibration_metrics
from chexradinet.evaluation.classification import auroc, mean_or_none, paired_bootstrap_difference
from chexradinet.evaluation.localization import BoxedCases, boxed_cases, localization_metrics
from chexradinet.model import CARD_FILE, BundleInfo, read_bundle_info, verify_bundle
from chexradinet.monitoring import TrainingTelemetry, push
from chexradinet.records import Split
from chexradinet.regions.extract import extract_regions
from chexradinet.registry import POINTER, fetch_bundle, move_pointer, read_pointer, register_model
from chexradinet.store import add_directory

DECISION_FILE = "decision.json"
DECISION_SCHEMA = 1

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measure of both models, and whether the candidate may be published for all it says."""

    measure: str
    """Name, such as `AUROC of Effusion`."""
    candidate: float | None
    """Value of the candidate; None if it is not defined."""
    champion: float | None
    """Value of the champion."""
    cases: int
    """Positive or boxed test cases that it rests on; test patients for means."""
    passed: bool | None
    """None if it was not judged: not defined, or too few cases."""
    refusal: str = ""
    """Why it did not pass, with the numbers and the setting."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate and a champion on the same test patients."""

    checks: tuple[Check, ...]
    """Every measure, the mean AUROC first."""
    sentence: str
    """Difference of the mean AUROC, with its interval and on what it was measured."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the candidate."""
        return all(check.passed is not False for check in self.checks)

    @property
    def reason(self) -> str:
        """The sentence, and each refusal."""
        return " ".join([self.sentence, *(check.refusal for check in self.checks if check.refusal)])


@dataclass(frozen=True, kw_only=True)
class _Measured:
    logits: np.ndarray[Any, Any]
    auroc: dict[str, float | None]
    pointing: float | None
    calibration_error: float | None
    training_data_digest: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What came of a candidate."""

    published: bool
    """Whether it is the champion now."""
    candidate_digest: str
    """Digest of the candidate."""
    champion_digest: str
    """Digest of the champion after this stage; empty if there is none."""
    reason: str
    """Why, with the numbers."""
    checks: tuple[Check, ...] = ()
    """Every measure against the champion before; empty without one."""
    without_threshold: tuple[str, ...] = ()
    """Findings that are never flagged."""

    def as_markdown(self) -> str:
        """Return the decision as the Kubeflow page and the model card show it."""
        lines = [
            f"**{'Published' if self.published else 'Not published'}.** {self.reason}",
            "",
            f"Champion: `{self.champion_digest or 'none'}`",
        ]
        if self.checks:
            lines += ["", "| measure | candidate | champion | cases | passed |"]
            lines += ["|---|--:|--:|--:|---|", *map(_row, self.checks)]
        return "\n".join([*lines, ""])

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as `decision.json` holds it."""
        return asdict(self)


def _row(check: Check) -> str:
    shown = ["n/d" if one is None else f"{one:.4f}" for one in (check.candidate, check.champion)]
    verdict = {True: "yes", False: "**no**", None: "not judged"}[check.passed]
    return f"| {check.measure} | {shown[0]} | {shown[1]} | {check.cases} | {verdict} |"


def publish(
    candidate: Path,
    evaluation: Path,
    dataset: Path,
    models_uri: str,
    config: PublishConfig | None = None,
) -> Publication:
    """Upload a candidate and make it the champion if it beats the present one.

    Both are measured on the test split of this data set (`gate`). Running it again changes nothing.
    If another publication is faster, the candidate is compared again with the new champion.

    Args:
        candidate: Calibrated bundle that `evaluate` wrote.
        evaluation: Directory with its `metrics.json` and report.
        dataset: Directory that `ingest` wrote.
        models_uri: Folder of published models: a path or `s3://bucket/prefix`.
        config: What may be lost, and what is published all the same; None for the defaults.

    Raises:
        ArtifactError: the candidate is not calibrated, gives numbers that are not finite, or the
            evaluation is of another model.
        StoreError: the models' folder cannot be read or written.
    """
    # Here, so that importing this costs no torch. Opening refuses a model that gives no numbers.
    from chexradinet.model.bundle import load_bundle

    started, config = time.monotonic(), config or PublishConfig()
    digest = verify_bundle(candidate)
    _check_evaluated(candidate, digest, evaluation)
    info, data = load_bundle(candidate, verify=False).info, open_dataset(dataset)
    note = ""
    for _ in range(_ATTEMPTS):
        pointer, tag = read_pointer(models_uri)
        decision = _decide(candidate, (info, digest), pointer, data, models_uri, config)
        decision = replace(decision, reason=decision.reason + note)
        try:
            if decision.published:
                _promote(candidate, evaluation, models_uri, pointer, tag, decision)
        except StoreConflictError:
            note = " Another model was published meanwhile, and this was decided against it."
            continue
        _log.info("%s", decision.reason)
        registered = _register(candidate, evaluation, models_uri, decision, config)
        _report_success(info, digest, started, registered)
        return decision
    raise StoreConflictError(
        f"{POINTER} changed {_ATTEMPTS} times while this candidate was compared with it; "
        "let the other publications end and run this stage again"
    )


def _promote(
    candidate: Path,
    evaluation: Path,
    models_uri: str,
    pointer: Mapping[str, Any],
    tag: str,
    decision: Publication,
) -> None:
    digest = decision.candidate_digest
    add_directory(candidate, f"{models_uri}/{digest}")
    if pointer.get("digest") == digest:
        return
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(shutil.copytree(evaluation, Path(folder) / "evaluation"))
        write_document(shown / DECISION_FILE, "publication", DECISION_SCHEMA, decision.as_dict())
        card = (candidate / CARD_FILE).read_text(encoding="utf-8")
        text = f"{card.rstrip()}\n\n## Publication\n\n{decision.as_markdown()}"
        (shown / CARD_FILE).write_text(text, encoding="utf-8")
        add_directory(shown, f"{models_uri}/evaluations/{digest}")
    move_pointer(models_uri, pointer, tag, digest, decision.reason)


def _register(
    candidate: Path, evaluation: Path, models_uri: str, decision: Publication, config: PublishConfig
) -> bool | None:
    """Tell the Model Registry of a published model; None if there is nothing to tell, or nobody."""
    if not decision.published:
        return None
    test = read_metrics(evaluation / "metrics.json")["test"]
    found = {"test_mean_auroc": test["mean_auroc"], "test_ece": test["ece"]}
    found |= {name: test["localization"][name] for name in ("iou_0.1", "iou_0.3")}
    digest = decision.candidate_digest
    return register_model(
        config.model_name,
        digest,
        f"{models_uri}/{digest}",
        {name: float(value) for name, value in found.items() if value is not None},
        (candidate / CARD_FILE).read_text(encoding="utf-8"),
    )


def _report_success(info: BundleInfo, digest: str, started: float, registered: bool | None) -> None:
    # Publication ends the training pipeline: a run that came here ended well.
    seconds = {"publish": time.monotonic() - started}
    push(
        TrainingTelemetry(
            success=True,
            model_digest=digest,
            model_round=info.round,
            stage_seconds=seconds,
            model_registered=registered,
        )
    )


def _check_evaluated(candidate: Path, digest: str, evaluation: Path) -> None:
    info, _ = read_bundle_info(candidate)
    judged = read_metrics(evaluation / "metrics.json").get("bundle_digest")
    if info.calibration is None or judged != digest:
        raise ArtifactError(
            f"the evaluation is of bundle {str(judged)[:12]}, the candidate is {digest[:12]}, "
            f"calibrated: {info.calibration is not None}; publish what `evaluate` wrote"
        )


def _decide(
    candidate: Path,
    own: tuple[BundleInfo, str],
    pointer: Mapping[str, Any],
    data: Dataset,
    models_uri: str,
    config: PublishConfig,
) -> Publication:
    """Return whether the candidate may be the champion, and why."""
    info, digest = own
    before = str(pointer.get("digest", ""))
    missing = tuple(name for name in info.findings if (info.thresholds or {}).get(name) is None)
    warning = _warning(missing)

    def decided(published: bool, reason: str, checks: tuple[Check, ...] = ()) -> Publication:
        return Publication(
            published=published,
            candidate_digest=digest,
            champion_digest=digest if published else before,
            reason=f"{reason}{warning}",
            checks=checks,
            without_threshold=missing,
        )

    if before == digest:
        return decided(True, "This model is the champion already.")
    if len(missing) == len(info.findings) and not config.allow_missing_thresholds:
        return decided(
            False,
            "No finding has an operating threshold, so nothing would ever be flagged; train on "
            "more positive cases, or set allow_missing_thresholds.",
        )
    if not before:
        return decided(True, "First model under this address.")
    with tempfile.TemporaryDirectory() as folder:
        champion = Path(folder) / "champion"
        fetch_bundle(models_uri, before, champion)
        theirs = read_bundle_info(champion)[0]
        alike = (info.findings, info.preprocessing_digest) == (
            theirs.findings,
            theirs.preprocessing_digest,
        )
        if not alike:
            reason = "The champion knows other findings or has another preprocessing"
            if config.replace_incomparable:
                return decided(True, f"{reason}; replaced as asked.")
            return decided(False, f"{reason}; set replace_incomparable to replace it.")
        found = compare(candidate, champion, data, config)
    return decided(found.passed, found.reason, found.checks)


def _warning(missing: tuple[str, ...]) -> str:
    if not missing:
        return ""
    _log.warning("no operating threshold, so never flagged: %s", ", ".join(missing))
    return f" Without an operating threshold, so never flagged: {', '.join(missing)}."


def compare(candidate: Path, champion: Path, data: Dataset, config: PublishConfig) -> Comparison:
    """Measure both models on the test split and hold one against the other.

    Args:
        candidate: Calibrated bundle.
        champion: Bundle with the same findings and preprocessing.
        data: Data set that the candidate was trained on.
        config: What may be lost.
    """
    rows = data.rows(Split.TEST)
    labels, cases = data.labels[rows], boxed_cases(data, rows)
    ours, theirs = (_measured(path, data, cases) for path in (candidate, champion))
    patients = data.column("patient_id")[rows]
    gain = paired_bootstrap_difference(labels, ours.logits, theirs.logits, patients)
    sentence = (
        f"Mean AUROC {signed(gain['difference'], 4)} {interval(gain['ci95'], 4)} against the "
        f"champion, over {gain['num_findings']} findings on the test split (data "
        f"{data.digest[:12]}, {gain['num_patients']} patients)."
    )
    if theirs.training_data_digest != data.digest:
        sentence += (
            " The champion was trained on other data, which may hold these patients: its figures "
            "may be too good."
        )
    found = _checks(ours, theirs, labels, cases, gain, config)
    return Comparison(checks=tuple(found), sentence=sentence)


def _measured(bundle: Path, data: Dataset, cases: BoxedCases) -> _Measured:
    # Here, since what plans, collects and publishes a first model runs without torch.
    from chexradinet.evaluation.evaluator import maps_of
    from chexradinet.model.bundle import load_bundle
    from chexradinet.model.inference import predict

    loaded, rows, findings = load_bundle(bundle), data.rows(Split.TEST), data.info.findings
    labels = data.labels[rows]
    logits = predict(loaded.network, data.images, rows, maps=False).logits
    maps = maps_of(loaded.network, data, cases.rows, cases.columns)
    regions = extract_regions(maps, data.info.preprocessing.image_side, RegionConfig())
    probabilities = apply_calibration(loaded.info.calibration or {}, findings, logits)
    return _Measured(
        logits=logits,
        auroc={name: auroc(labels[:, i], logits[:, i]) for i, name in enumerate(findings)},
        # The peak of a map, which no threshold of regions moves.
        pointing=localization_metrics(regions, cases.boxes, cases.findings)["pointing"],
        calibration_error=calibration_metrics(labels, probabilities, findings)["ece"],
        training_data_digest=loaded.info.training_data_digest,
    )


def _checks(
    ours: _Measured,
    theirs: _Measured,
    labels: np.ndarray[Any, Any],
    cases: BoxedCases,
    gain: dict[str, Any],
    config: PublishConfig,
) -> Iterator[Check]:
    yield _mean_check(ours, theirs, gain, config)
    for column, name in enumerate(ours.auroc):
        values, positives = (
            (ours.auroc[name], theirs.auroc[name]),
            int((labels[:, column] == 1).sum()),
        )
        yield _loss_check(f"AUROC of {name}", values, positives, "max_finding_loss", config)
    values = (ours.pointing, theirs.pointing)
    measure, setting = "share of peaks in a true box", "max_localization_loss"
    yield _loss_check(measure, values, len(cases.boxes), setting, config)
    yield _calibration_check(ours, theirs, gain["num_patients"], config)


def _check(
    measure: str,
    values: tuple[float | None, float | None],
    cases: int,
    passed: bool | None,
    refusal: str = "",
) -> Check:
    return Check(
        measure=measure,
        candidate=values[0],
        champion=values[1],
        cases=cases,
        passed=passed,
        refusal=refusal if passed is False else "",
    )


def _mean_check(
    ours: _Measured, theirs: _Measured, gain: dict[str, Any], config: PublishConfig
) -> Check:
    rise = gain["difference"]
    refusal = f"It must rise by more than {config.min_auroc_gain:.4f} (min_auroc_gain)."
    if rise is None:
        refusal = "No finding has both classes in the test split: nothing to compare."
    passed = rise is not None and rise > config.min_auroc_gain
    values = (
        mean_or_none(list(ours.auroc.values())),
        mean_or_none(list(theirs.auroc.values())),
    )
    return _check("mean AUROC", values, gain["num_patients"], passed, refusal)


def _loss_check(
    measure: str,
    values: tuple[float | None, float | None],
    cases: int,
    setting: str,
    config: PublishConfig,
) -> Check:
    own, other = values
    most = getattr(config, setting)
    if own is None or other is None or cases < config.min_cases:
        return _check(measure, values, cases, None)
    refusal = (
        f"The {measure} is {own:.4f}, {other - own:.4f} below the champion's {other:.4f}; "
        f"at most {most:.4f} is allowed ({setting})."
    )
    return _check(measure, values, cases, own >= other - most, refusal)


def _calibration_check(
    ours: _Measured, theirs: _Measured, num_patients: int, config: PublishConfig
) -> Check:
    values = own, other = ours.calibration_error, theirs.calibration_error
    if own is None:
        return _check("calibration error", values, num_patients, None)
    bound = max(config.max_calibration_error, other or 0.0)
    refusal = (
        f"The calibration error is {own:.4f}; at most {bound:.4f} is allowed "
        "(max_calibration_error, or the champion's)."
    )
    return _check("calibration error", values, num_patients, own <= bound, refusal)
