"""One X-ray with all that scoring says of it: what rows, report and DICOM results are made of."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexradinet.config.nightly import ResultSettings
from chexradinet.records import Box, Geometry, Region
from chexradinet.regions.tables import FeatureRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NightFinding:
    """What the model says of one finding in one X-ray."""

    finding: str
    """Canonical name."""
    raw_score: float
    """Logit."""
    probability: float
    """Calibrated, in [0, 1]; the plain sigmoid where the finding is not calibrated."""
    calibration: str
    """`platt` or `not_calibrated`."""
    threshold: float | None
    """Operating threshold on the probability; None where there is none."""
    flagged: bool
    """Whether the probability reaches the threshold; never without one."""
    region: Region
    """Where the map looked, in model pixels."""
    original_box: Box | None
    """The region in original pixels, clipped to the image; None where there is no region."""
    heatmap: npt.NDArray[np.float32]
    """Class activation map, shape (h, w)."""
    features: FeatureRow | None
    """Radiomics of the region, in model pixels; None where the finding is not flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NightCase:
    """One X-ray of a night."""

    image_key: str
    """SHA-256 of the SOP Instance UID, or of the content where there is none."""
    object_key: str
    """Name below the inbox."""
    study_uid: str
    """Study Instance UID, or the image key where there is none."""
    sop_uid: str
    """SOP Instance UID; empty where there is none."""
    view: str
    """`PA`, `AP` or empty."""
    quality: tuple[str, ...]
    """Oddities that the quality gate let pass."""
    pixels: npt.NDArray[np.uint8]
    """Model pixels, shape (S, S)."""
    geometry: Geometry
    """From model pixels to original pixels, with spacing where known."""
    findings: tuple[NightFinding, ...]
    """In the model's order."""
    ood_score: float | None
    """Distance from the reference; None where the model has none."""
    out_of_distribution: bool | None
    """Whether the model was not made for X-rays like this one; None where it cannot tell."""
    model_digest: str
    """Of the bundle."""
    preprocessing_digest: str

    @property
    def flagged(self) -> tuple[NightFinding, ...]:
        """The findings at or above their operating threshold."""
        return tuple(found for found in self.findings if found.flagged)


def urgency(case: NightCase, settings: ResultSettings) -> tuple[float, NightFinding] | None:
    """Return how urgent a flagged X-ray is, and its most urgent finding; None without a flag."""
    products = [
        (settings.worklist.urgency_of(found.finding) * found.probability, found)
        for found in case.flagged
    ]
    return min(products, key=lambda pair: (-pair[0], pair[1].finding), default=None)
