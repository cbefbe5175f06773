"""A study: arms by number of labelled images by seed, on one data set and one test split.

Each cell (arm, number, seed) is two read-outs of one start: the encoder frozen, with a ridge
regression on its features, and the network fine-tuned. The labelled images of a seed are the same
in all arms, and fewer are part of more, so that differences are paired. A cell is kept as soon as
it is done; a study that was interrupted continues with the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import nn

from chexradinet.artifacts import read_document, sha256_of, write_document, writing_file
from chexradinet.config import (
    GuidanceConfig,
    GuidanceRecipe,
    Pretext,
    require,
)
from chexradinet.config.study import Arm, StudyPlan
from chexradinet.dataset.dataset import Dataset
from chexradinet.errors import MismatchError, TrainingError
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.model.training import TrainingData, fit
from chexradinet.records import Split
from chexradinet.training.pretrain import pretrain
from chexradinet.training.train import start_from

KIND = "study-cell"
SCHEMA = 1
READOUTS = ("frozen", "fine-tuned")
_LABELLED = 6  # stream of random numbers
_POOLED = 3
_RIDGES = np.logspace(0, 5, 11)
_BATCH = 64


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    arm: str
    labels: int
    """Number of labelled images."""
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.arm}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """Scores of the test images in one cell, by read-out."""

    cell: Cell
    scores: dict[str, NDArray[np.float32]]
    """Shape (N, F) each."""


def run_study(
    data: Dataset,
    plan: StudyPlan,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run the cells of a plan that are not done yet; return all.

    Args:
        data: Data set with a training and a test split.
        plan: Arms, numbers of labels, seeds.
        folder: Folder of the study; one of the same plan and data set is continued.
        progress: Called with the number of cells done and of all.

    Raises:
        MismatchError: the folder holds a study of another plan or data set.
        TrainingError: there are fewer training images than asked for.
    """
    labelled = data.rows(Split.TRAIN)
    most = max(plan.labels)
    require(most <= len(labelled), "labels", most, f"at most {len(labelled)}, the training images")
    if not len(data.rows(Split.TEST)):
        raise TrainingError(
            "the data set has no test image; ingest it with a test fraction above 0"
        )
    claim(folder, plan, data)
    cells = [
        Cell(arm, number or len(labelled), seed)
        for seed, arm, number in product(plan.seeds, plan.arms, plan.labels)
    ]
    outcomes = []
    for done, cell in enumerate(cells, 1):
        outcomes.append(_outcome(cell, data, plan, folder))
        if progress:
            progress(done, len(cells))
    return outcomes


def labelled_rows(data: Dataset, number: int, seed: int) -> NDArray[np.int64]:
    """Return the labelled images of a seed: the first of an order that is the same in all arms."""
    rows = data.rows(Split.TRAIN)
    chosen = np.random.default_rng((seed, _LABELLED)).permutation(rows)[:number]
    return np.sort(chosen)


def claim(folder: Path, plan: StudyPlan, data: Dataset) -> None:
    """Write the plan before anything runs, or refuse a folder of another one.

    Raises:
        MismatchError: the folder holds a study of another plan or data set.
    """
    head = folder / "plan.json"
    content = {"dataset_digest": data.digest, "plan": plan.record()}
    if head.exists():
        found = read_document(head, "study-plan", SCHEMA)
        if {name: found[name] for name in content} != content:
            raise MismatchError(
                f"{folder} holds a study of another plan or data set, and a plan is not changed "
                "after it was fixed; give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_document(head, "study-plan", SCHEMA, content)


def _outcome(cell: Cell, data: Dataset, plan: StudyPlan, folder: Path) -> Outcome:
    head = folder / f"{cell.name}.json"
    paths = {readout: folder / f"{cell.name}-{readout}.npy" for readout in READOUTS}
    if not head.exists():
        made = _train(cell, data, plan, folder)
        for readout, path in paths.items():
            with writing_file(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, made[readout])
        files = {path.name: sha256_of(path) for path in paths.values()}
        write_document(head, KIND, SCHEMA, {"files": files})
    scores = {readout: np.load(path, allow_pickle=False) for readout, path in paths.items()}
    return Outcome(cell, scores)


def _train(
    cell: Cell, data: Dataset, plan: StudyPlan, folder: Path
) -> dict[str, NDArray[np.float32]]:
    arm, rows = plan.arms[cell.arm], labelled_rows(data, cell.labels, cell.seed)
    network = _network(arm, cell.seed, data, plan, folder)
    test = data.rows(Split.TEST)
    frozen = _ridge(
        _features(network, data, rows), data.labels[rows], _features(network, data, test)
    )
    config = plan.training.changed(
        seed=cell.seed, freeze=arm.freeze, epochs=arm.epochs or plan.training.epochs
    )
    network.freeze(config.freeze)
    known = TrainingData(images=data.images, labels=data.labels, rows=rows)
    fit(network, None, known, config, GuidanceConfig(guidance=GuidanceRecipe.NONE))
    logits = predict(network, data.images, test, maps=False).logits
    return {"frozen": frozen, "fine-tuned": logits}


def _network(arm: Arm, seed: int, data: Dataset, plan: StudyPlan, folder: Path) -> ChexRadiNet:
    """Return an arm's start; the encoder of a pretext and seed is made once for all numbers."""
    network = build_network(plan.network, len(data.info.findings), seed=seed)
    start = arm.initial_weights
    if arm.pretext is not Pretext.NONE:
        encoder = folder / f"encoder-{arm.pretext.value}-{seed}"
        if not encoder.exists():
            config = plan.pretrain.changed(pretext=arm.pretext, seed=seed)
            pretrain(data.path, encoder, plan.network, config, cache=folder / "targets")
        start = str(encoder)
    if start:
        start_from(network, start, data)
    network.eval()
    return network


def _features(network: ChexRadiNet, data: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return global and 3x3 means of the last feature map, (n, 10 C)."""
    place = next(network.parameters()).device
    parts = []
    for start in range(0, len(rows), _BATCH):
        images = torch.from_numpy(data.images(rows[start : start + _BATCH])).to(place)
        with torch.inference_mode():
            found = network.features(normalise(images)).float()
            pooled = nn.functional.adaptive_avg_pool2d(found, _POOLED).flatten(1)
            parts.append(torch.cat([found.mean((2, 3)), pooled], 1).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def _ridge(
    features: NDArray[np.float64], labels: NDArray[np.float32], wanted: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return scores of a ridge regression per finding; 0 if only one class is known."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    known, asked = (features - mean) / spread, (wanted - mean) / spread
    scores = np.zeros((len(wanted), labels.shape[1]), np.float32)
    for column, values in enumerate(labels.T):
        given = np.isfinite(values)
        if len(np.unique(values[given])) == 2:
            model = RidgeCV(alphas=_RIDGES).fit(known[given], values[given])
            scores[:, column] = model.predict(asked)
    return scores


def facts_of(data: Dataset) -> dict[str, Any]:
    """Return what a report says of the data."""
    test = data.manifest.iloc[data.rows(Split.TEST)]
    return {
        "dataset_digest": data.digest,
        "training_images": len(data.rows(Split.TRAIN)),
        "test_images": len(test),
        "test_patients": int(test["patient_id"].nunique()),
        "findings": list(data.info.findings),
    }
