"""One model on the test split: scores of every image, and maps of the images that readers boxed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import EvaluationConfig, RegionConfig
from chexradinet.dataset.dataset import Dataset
from chexradinet.errors import MismatchError
from chexradinet.evaluation.classification import classification_metrics
from chexradinet.evaluation.localize import BoxedCases, Localization, localize
from chexradinet.evaluation.metrics import RoundMetrics
from chexradinet.model.bundle import BundleInfo, load_bundle, require_match
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one model came to on the test split."""

    info: BundleInfo
    """Description of the model."""
    network: ChexRadiNet
    """The model."""
    logits: npt.NDArray[np.float32]
    """Logits of the test images, shape (T, F)."""
    classification: dict[str, Any]
    """Of `classification_metrics`."""
    localization: Localization
    """Of the boxed test images."""

    def as_round(self) -> RoundMetrics:
        """Return the entry of metrics.json."""
        return RoundMetrics(
            round=self.info.round,
            guidance=self.info.guidance,
            classification={
                **self.classification,
                "validation": {"mean_auroc": self.info.metrics["validation"]["mean_auroc"]},
            },
            localization=self.localization.metrics,
        )


def judge(
    bundle: Path,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    cases: BoxedCases,
    regions: RegionConfig,
    config: EvaluationConfig,
) -> Judged:
    """Judge a model on the test images.

    Args:
        bundle: Directory of the model.
        data: The data set it was trained on.
        rows: Its test rows, shape (T,).
        cases: The boxed cases among them.
        regions: How a map becomes a region.
        config: How to judge.

    Raises:
        MismatchError: the model was trained on another data set, whose patients may be in this
            test split.
    """
    loaded = load_bundle(bundle)
    require_match(
        loaded.info,
        findings=data.info.findings,
        preprocessing_digest=data.info.preprocessing_digest,
    )
    trained_on = loaded.info.training_data_digest
    if trained_on != data.digest:
        raise MismatchError(
            f"the model was trained on data set {trained_on[:12]}, but {data.digest[:12]} was "
            "given; evaluate it on the data set it was trained on, whose test patients it never saw"
        )
    logits = predict(loaded.network, data.images, rows, maps=False).logits
    return Judged(
        info=loaded.info,
        network=loaded.network,
        logits=logits,
        classification=classification_metrics(data.labels[rows], logits, data.info.findings),
        localization=localize(
            cases,
            maps_of(loaded.network, data, cases.rows, cases.columns),
            data.info.preprocessing.image_side,
            regions,
            config,
        ),
    )


def maps_of(
    network: ChexRadiNet,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return the map of one finding of each image, shape (N, h, w); a row may come repeatedly."""
    wanted, position = np.unique(rows, return_inverse=True)
    maps = predict(network, data.images, wanted, maps=True).maps
    if not len(wanted):
        side = data.info.preprocessing.image_side // network.config.map_stride
        return np.zeros((0, side, side), dtype=np.float32)
    return maps[position, columns]
