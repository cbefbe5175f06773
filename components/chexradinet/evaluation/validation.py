"""What a round is judged by while the loop runs: mean AUROC on the validation split (ADR 0006)."""

from typing import Any

from chexradinet.dataset.dataset import Dataset
from chexradinet.errors import SourceError
from chexradinet.evaluation.classification import classification_metrics
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.records import Split


def validate(network: ChexRadiNet, dataset: Dataset) -> dict[str, Any]:
    """Return the ranking metrics of a network on the validation split, ready for JSON.

    Returns:
        Of `classification_metrics`, and `num_images`. `mean_auroc`, by which rounds are chosen, is
        None where no finding has both classes.

    Raises:
        SourceError: the data set has no validation image.
    """
    rows = dataset.rows(Split.VALIDATION)
    if not len(rows):
        raise SourceError(
            "the data set has no validation image, so rounds cannot be compared; "
            "ingest it again with a validation fraction above 0"
        )
    logits = predict(network, dataset.images, rows, maps=False).logits
    metrics = classification_metrics(dataset.labels[rows], logits, dataset.info.findings)
    return {**metrics, "num_images": len(rows)}
