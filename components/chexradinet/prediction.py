"""A published model in three lines, for one X-ray at a time.

    import chexradinet
    model = chexradinet.load("models")
    prediction = model.predict("chest.dcm")

What it says of an X-ray is what the nightly run says of it: the same reading, quality rules,
calibration and regions. Research software; not for diagnostic use.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config.nightly import ResultSettings
from chexradinet.dataset.images import reject_on_error
from chexradinet.errors import RejectedImageError, SourceError, StoreNotFoundError
from chexradinet.evaluation.calibration import apply_calibration
from chexradinet.model import INFO_FILE, read_bundle_info
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import choose_device, folded, predict_folded
from chexradinet.nightly import NightFinding, XRay
from chexradinet.nightly.model import cases_of, finite_rows, model_of
from chexradinet.nightly.read import Reading, decode_xray
from chexradinet.nightly.score import NOT_FINITE_DETAIL, Scorer
from chexradinet.records import Box, RejectReason
from chexradinet.registry import fetch_champion
from chexradinet.reports.pictures import overlay, png_bytes
from chexradinet.store import download_directory, open_store

PICTURE_SIDE_PX = 512
"""Shortest side of a heatmap picture."""


@dataclass(frozen=True, kw_only=True)
class FindingPrediction:
    """What a model says about one finding."""

    finding: str
    probability: float | None
    """Calibrated, in [0, 1]; None if the finding is not calibrated."""
    score: float
    """Logit of the network."""
    threshold: float | None
    """Operating threshold on the probability; None if the finding has none."""
    flagged: bool | None
    """Whether the probability reaches the threshold; None means not assessed."""
    region: Box | None
    """Where the model looked, half-open, in original pixels; None for a degenerate heatmap."""
    region_mm: Box | None
    """The region in millimetres, if the header gives the pixel spacing."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one X-ray."""

    findings: tuple[FindingPrediction, ...]
    """In the model's order."""
    quality: tuple[str, ...]
    """Quality codes of docs/datasets.md; empty if nothing is odd."""
    out_of_distribution: bool | None
    """Whether the X-ray is unlike those that the model was made for; None if unknown."""
    model_digest: str
    _xray: XRay
    _found: tuple[NightFinding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without pixels."""
        return {
            "model_digest": self.model_digest,
            "quality": list(self.quality),
            "out_of_distribution": self.out_of_distribution,
            "findings": [asdict(one) for one in self.findings],
        }

    def heatmap(self, finding: str) -> npt.NDArray[np.uint8]:
        """Return the X-ray with a finding's heatmap and region, shape (H, W, 3), RGB.

        Raises:
            SourceError: the model does not know this finding.
        """
        for one in self._found:
            if one.name == finding:
                box = one.model_region.box
                return overlay(self._xray.pixels, one.heatmap, box, min_side_px=PICTURE_SIDE_PX)
        known = ", ".join(one.finding for one in self.findings)
        raise SourceError(f"the model does not know {finding!r}; it knows {known}")

    def save_heatmap(self, finding: str, path: str | Path) -> None:
        """Write `heatmap` as PNG.

        Raises:
            SourceError: the model does not know this finding, or the file cannot be written.
        """
        picture = png_bytes(self.heatmap(finding))
        try:
            Path(path).write_bytes(picture)
        except OSError as error:
            raise SourceError(f"{path} cannot be written: {error.strerror}") from error


class Model:
    """A calibrated model, ready to predict."""

    def __init__(self, bundle: Path, device: str = "auto") -> None:
        info, _ = read_bundle_info(bundle)
        network = load_bundle(bundle, device=str(choose_device(device))).network
        night = model_of(bundle, ResultSettings())
        self._scorer = Scorer(**vars(night), network=folded(network))
        self.findings: tuple[str, ...] = info.findings
        """Findings in the order of the predictions."""
        self.digest: str = night.digest
        """SHA-256 of the bundle, in hex."""

    def predict(self, source: str | Path | bytes) -> Prediction:
        """Return what the model says about one X-ray.

        Args:
            source: Path or bytes of a DICOM, PNG or JPEG file.

        Raises:
            SourceError: the file cannot be read.
            RejectedImageError: it is not an X-ray that the model was made for; `reason` is a code
                of docs/datasets.md.
        """
        content = source if isinstance(source, bytes) else _read(Path(source))
        scorer = self._scorer
        reading = Reading("", scorer.info.preprocessing, scorer.settings, b"")
        with reject_on_error():
            xray = decode_xray(reading, "", content)
        found = predict_folded(
            scorer.network, xray.pixels[None], np.arange(1), precision=scorer.precision
        )
        probabilities = apply_calibration(
            scorer.info.calibration or {}, self.findings, found.logits
        )
        if not finite_rows(found, probabilities).all():
            raise RejectedImageError(RejectReason.NOT_FINITE, NOT_FINITE_DETAIL)
        (case,) = cases_of(scorer, [xray], found, probabilities)
        return Prediction(
            findings=tuple(_finding(one, xray) for one in case.findings),
            quality=tuple(xray.quality),
            out_of_distribution=case.out_of_distribution,
            model_digest=self.digest,
            _xray=xray,
            _found=case.findings,
        )


def load(uri: str | Path, device: str = "auto") -> Model:
    """Return a model from a bundle, or the champion from a folder of published models.

    Args:
        uri: Path or s3:// prefix, of a bundle or of the folder that `publish` writes to.
        device: auto, cpu or cuda.

    Raises:
        ArtifactError: the bundle is damaged, not calibrated, or of another release.
        StoreError: nothing is there, or it cannot be read.
    """
    store, prefix = open_store(str(uri))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "bundle"
        try:
            store.stat(f"{prefix}{INFO_FILE}")
        except StoreNotFoundError:
            fetch_champion(str(uri), target)
        else:
            download_directory(str(uri), target)
        return Model(target, device)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; give an X-ray file") from error


def _finding(found: NightFinding, xray: XRay) -> FindingPrediction:
    box = found.region
    return FindingPrediction(
        finding=found.name,
        probability=found.probability if found.calibrated else None,
        score=found.raw_score,
        threshold=found.threshold,
        flagged=None if found.threshold is None else bool(found.flagged),
        region=box,
        region_mm=None if box is None else xray.geometry.in_mm(box),
    )
