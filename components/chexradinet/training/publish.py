"""Publication: a model becomes the champion if it beats the one before on equal terms."""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.errors import ArtifactError, StoreConflictError
from chexradinet.evaluation.classification import paired_bootstrap_difference
from chexradinet.evaluation.metrics import read_metrics
from chexradinet.model.bundle_info import read_bundle_info, verify_bundle
from chexradinet.monitoring import TrainingTelemetry, push
from chexradinet.records import Split
from chexradinet.registry.champion import POINTER, fetch_bundle, move_pointer, read_pointer
from chexradinet.store.transfer import add_directory

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What came of a candidate."""

    published: bool
    """Whether it is the champion now."""
    champion_digest: str
    """Digest of the champion after this stage."""
    reason: str
    """Why, with the numbers."""

    def as_markdown(self) -> str:
        """Return the decision as the Kubeflow page shows it."""
        verdict = "Published" if self.published else "Not published"
        return f"**{verdict}.** {self.reason}\n\nChampion: `{self.champion_digest}`\n"


def publish(
    candidate: Path,
    evaluation: Path,
    dataset: Path,
    models_uri: str,
    *,
    replace_incomparable: bool = False,
) -> Publication:
    """Upload a candidate and make it the champion if it beats the present one.

    Both are scored on the validation split of this data set; the candidate must have the higher
    mean AUROC there. Running it again changes nothing.

    Args:
        candidate: Calibrated bundle that `evaluate` wrote.
        evaluation: Directory with its `metrics.json` and report.
        dataset: Directory that `ingest` wrote.
        models_uri: Folder of published models: a path or `s3://bucket/prefix`.
        replace_incomparable: Publish also where the champion knows other findings or preprocessing.

    Raises:
        ArtifactError: the candidate is not calibrated, or the evaluation is of another model.
        StoreError: the models' folder cannot be read or written.
    """
    started = time.monotonic()
    digest = verify_bundle(candidate)
    _check_evaluated(candidate, digest, evaluation)
    data = open_dataset(dataset)
    for _ in range(_ATTEMPTS):
        pointer, tag = read_pointer(models_uri)
        reason, better = _compare(
            candidate, digest, pointer, data, models_uri, replace_incomparable
        )
        if not better:
            _log.info("not published: %s", reason)
            _report_success(candidate, digest, started)
            return Publication(published=False, champion_digest=pointer["digest"], reason=reason)
        add_directory(evaluation, f"{models_uri}/evaluations/{digest}")
        add_directory(candidate, f"{models_uri}/{digest}")
        if pointer.get("digest") != digest:
            try:
                move_pointer(models_uri, pointer, tag, digest, reason)
            except StoreConflictError:
                continue
        _log.info("champion is %s: %s", digest[:12], reason)
        _report_success(candidate, digest, started)
        return Publication(published=True, champion_digest=digest, reason=reason)
    raise StoreConflictError(
        f"{POINTER} changed {_ATTEMPTS} times while this candidate was compared with it; "
        "let the other publications end and run this stage again"
    )


def _report_success(candidate: Path, digest: str, started: float) -> None:
    # Publication ends the training pipeline: a run that came here ended well.
    number = read_bundle_info(candidate)[0].round
    seconds = {"publish": time.monotonic() - started}
    push(
        TrainingTelemetry(
            success=True, model_digest=digest, model_round=number, stage_seconds=seconds
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


def _compare(
    candidate: Path,
    digest: str,
    pointer: dict[str, Any],
    data: Dataset,
    models_uri: str,
    replace_incomparable: bool,
) -> tuple[str, bool]:
    """Return why, and whether the candidate may become the champion."""
    if not pointer:
        return "First model under this address.", True
    if pointer["digest"] == digest:
        return "This model is the champion already.", True
    with tempfile.TemporaryDirectory() as folder:
        champion = Path(folder) / "champion"
        fetch_bundle(models_uri, pointer["digest"], champion)
        ours, theirs = read_bundle_info(candidate)[0], read_bundle_info(champion)[0]
        if (ours.findings, ours.preprocessing_digest) != (
            theirs.findings,
            theirs.preprocessing_digest,
        ):
            reason = "The champion knows other findings or has another preprocessing"
            if replace_incomparable:
                return f"{reason}; replaced as asked.", True
            return f"{reason}; set replace_incomparable to replace it.", False
        gain = _gain(candidate, champion, data)
    if gain["difference"] is None:
        return "No finding has both classes in the validation split: nothing to compare.", False
    low, high = gain["ci95"] or (float("nan"), float("nan"))
    reason = (
        f"Mean AUROC {gain['difference']:+.4f} [95% {low:+.4f} to {high:+.4f}] against the "
        f"champion, over {gain['num_findings']} findings on the validation split (data "
        f"{data.digest[:12]}, {gain['num_patients']} patients)."
    )
    return reason, gain["difference"] > 0


def _gain(candidate: Path, champion: Path, data: Dataset) -> dict[str, Any]:
    # Here, as a first model, and the champion itself, are published without a forward pass.
    from chexradinet.model.bundle import load_bundle
    from chexradinet.model.inference import predict

    rows = data.rows(Split.VALIDATION)
    logits: list[np.ndarray[Any, Any]] = [
        predict(load_bundle(path, verify=False).network, data.images, rows, maps=False).logits
        for path in (candidate, champion)
    ]
    patients = data.manifest["patient_id"].to_numpy()[rows]
    return paired_bootstrap_difference(data.labels[rows], logits[0], logits[1], patients)
