"""Publication: a model becomes the champion if the gate lets it pass.

The decision with its figures is kept beside the evaluation, as `decision.json` and in a copy of the
model card: the card inside the bundle is part of its digest and cannot know what came after.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chexradinet.artifacts import write_document
from chexradinet.config import PublishConfig
from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.errors import ArtifactError, StoreConflictError
from chexradinet.evaluation.metrics import read_metrics
from chexradinet.model.bundle_info import CARD_FILE, BundleInfo, read_bundle_info, verify_bundle
from chexradinet.monitoring import TrainingTelemetry, push
from chexradinet.registry.champion import POINTER, fetch_bundle, move_pointer, read_pointer
from chexradinet.registry.model_registry import register_model
from chexradinet.store.transfer import add_directory
from chexradinet.training.gate import Check, compare

DECISION_FILE = "decision.json"
DECISION_SCHEMA = 1

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


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
