"""A study: arms by number of labelled images by seed, on one data set and one test split.

The labelled images of a seed are the same in all arms, and fewer are part of more, so that
differences are paired. A cell, one training, is kept as soon as it is done: an interrupted study
continues with the next one, and parts that ran apart are read as one. A cell is read out twice:
the encoder frozen, with a ridge regression on its features; and the network fine-tuned, with the
arm's guided rounds after it.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import nn

from chexradinet.artifacts import read_document, sha256_of, write_document, writing_file
from chexradinet.config import (
    Freeze,
    GuidanceConfig,
    GuidanceRecipe,
    Pretext,
    RadiomicsConfig,
    RegionConfig,
    require,
)
from chexradinet.config.training import Arm, StudyPlan
from chexradinet.dataset import Dataset
from chexradinet.errors import ArtifactError, MismatchError, TrainingError
from chexradinet.evaluation import LOCALIZATION_KEYS
from chexradinet.evaluation.calibration import PLATT, apply_calibration, fit_calibration
from chexradinet.evaluation.classification import classification_metrics
from chexradinet.evaluation.evaluator import maps_of
from chexradinet.evaluation.localization import boxed_cases, localization_hits
from chexradinet.model.batches import Regions, TrainingData
from chexradinet.model.bundle import environment
from chexradinet.model.inference import predict
from chexradinet.model.losses import build_heads
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.model.training import fit
from chexradinet.parallel import available_processors
from chexradinet.records import Split
from chexradinet.regions.extract import extract_regions
from chexradinet.regions.radiomics import extract_features
from chexradinet.training.pretrain import pretrain, start_from
from chexradinet.training.rounds import look
from chexradinet.training.train import (
    SEED_STRIDE,
    improved,
    usable_regions,
    without_contrast,
)

KIND = "study-cell"
SCHEMA = 2
_PLAN_FILE = "plan.json"
READOUTS = ("frozen", "fine-tuned")
_LABELLED = 6  # stream of random numbers
_POOLED = 3
_RIDGES = np.logspace(0, 5, 11)
_BATCH = 64
_FEW_REGIONS = 1000
"""Regions below which starting processes takes longer than measuring them here."""


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one cell came to, on the N test images."""

    cell: Cell
    scores: dict[str, NDArray[np.float32]]
    """By read-out, shape (N, F)."""
    probabilities: dict[str, NDArray[np.float32]]
    """Calibrated on the validation split, by read-out; NaN for findings with too few cases."""
    hits: NDArray[np.bool_]
    """Whether the fine-tuned network locates each boxed case, shape (cases, measures)."""
    rounds: list[dict[str, float | None]]
    """Mean AUROC on `validation` and `test` after fine-tuning and after each guided round."""
    chosen: int
    """The round that everything else is of."""
    environment: dict[str, Any] | None
    """Code, packages and hardware that trained it; None for a cell of an earlier release."""


def cells_of(data: Dataset, plan: StudyPlan) -> list[Cell]:
    """Return the cells of a plan, those of one seed together.

    Raises:
        ConfigError: there are fewer training images than the plan asks for.
        TrainingError: the data set has no test image.
    """
    labelled = len(data.rows(Split.TRAIN))
    most = max(plan.labels)
    require(most <= labelled, "labels", most, f"at most {labelled}, the training images")
    if not len(data.rows(Split.TEST)):
        raise TrainingError(
            "the data set has no test image; ingest it with a test fraction above 0"
        )
    return [
        Cell(arm, number or labelled, seed)
        for seed, arm, number in product(plan.seeds, plan.arms, plan.labels)
    ]


def run_study(
    data: Dataset,
    plan: StudyPlan,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    cells: Sequence[Cell] | None = None,
) -> list[Outcome]:
    """Run the cells of a plan that are not done yet; return all.

    Args:
        data: Data set with a training and a test split.
        plan: Arms, numbers of labels, seeds.
        folder: Folder of the study; one of the same plan and data set is continued.
        progress: Called with the number of cells done and of all.
        cells: Part of the plan to run; None for all of it.

    Raises:
        ConfigError: there are fewer training images than asked for.
        MismatchError: the folder holds a study of another plan or data set.
        TrainingError: the data set has no test image.
    """
    chosen = cells_of(data, plan) if cells is None else cells
    claim(folder, plan, data)
    for done, cell in enumerate(chosen, 1):
        if not (folder / f"{cell.name}.json").exists():
            rows = labelled_rows(data, cell.labels, cell.seed)
            _keep(_train_cell(cell, rows, data, plan, folder), folder)
        if progress:
            progress(done, len(chosen))
    return [_kept(cell, folder) for cell in chosen]


def outcomes_of(data: Dataset, plan: StudyPlan, folders: Iterable[Path]) -> list[Outcome]:
    """Return what is done of a plan, from the folders of its parts.

    Raises:
        MismatchError: a folder holds a study of another plan or data set.
        ArtifactError: no cell is done.
    """
    found = []
    for folder in folders:
        claim(folder, plan, data)
        done = [cell for cell in cells_of(data, plan) if (folder / f"{cell.name}.json").exists()]
        found += [_kept(cell, folder) for cell in done]
    if not found:
        raise ArtifactError("no cell of the study is done; run it first")
    return found


def run_part(data: Dataset, plan: StudyPlan, part: int, count: int, target: Path) -> None:
    """Train all numbers of labels of some arms and seeds, and leave the cells at `target`.

    An arm and a seed stay together, as their encoder is the same for all numbers of labels.

    Args:
        data: Data set.
        plan: Plan of the whole study.
        part: Number of the part, in [0, count).
        count: Number of parts.
        target: Folder to make; the encoders are not in it.
    """
    mine = set(list(product(plan.seeds, plan.arms))[part::count])
    cells = [cell for cell in cells_of(data, plan) if (cell.seed, cell.arm) in mine]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        run_study(data, plan, folder, cells=cells)
        kept = shutil.ignore_patterns("encoder-*", "targets")
        shutil.copytree(folder, target, ignore=kept, dirs_exist_ok=True)


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
    head = folder / _PLAN_FILE
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


def _keep(outcome: Outcome, folder: Path) -> None:
    path = folder / f"{outcome.cell.name}.npz"
    named = {"": outcome.scores, "-probabilities": outcome.probabilities}
    arrays = {f"{key}{end}": value for end, part in named.items() for key, value in part.items()}
    with writing_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays, hits=outcome.hits)
    content = {
        "sha256": sha256_of(path),
        "rounds": outcome.rounds,
        "chosen": outcome.chosen,
        "environment": outcome.environment,
    }
    write_document(folder / f"{outcome.cell.name}.json", KIND, SCHEMA, content)


def _kept(cell: Cell, folder: Path) -> Outcome:
    head, path = folder / f"{cell.name}.json", folder / f"{cell.name}.npz"
    document = read_document(head, KIND, SCHEMA)
    if sha256_of(path) != document["sha256"]:
        raise ArtifactError(f"{path} was changed; remove it and {head}, and run the study again")
    with np.load(path, allow_pickle=False) as arrays:
        return Outcome(
            cell=cell,
            scores={readout: arrays[readout] for readout in READOUTS},
            probabilities={readout: arrays[f"{readout}-probabilities"] for readout in READOUTS},
            hits=arrays["hits"],
            rounds=document["rounds"],
            chosen=document["chosen"],
            environment=document.get("environment"),
        )


def _train_cell(
    cell: Cell, rows: NDArray[np.int64], data: Dataset, plan: StudyPlan, folder: Path
) -> Outcome:
    """Train a cell on its labelled images and read it out; encoders are kept for other cells."""
    arm = plan.arms[cell.arm]
    network = _network(arm, cell.seed, data, plan, folder)
    held = {split: data.rows(split) for split in (Split.VALIDATION, Split.TEST)}
    frozen = {split: _read_out(network, data, rows, wanted) for split, wanted in held.items()}
    config = plan.training.changed(
        seed=cell.seed, freeze=arm.freeze, epochs=arm.epochs or plan.training.epochs
    )
    network.freeze(config.freeze)
    known = TrainingData(images=data.images, labels=data.labels, rows=rows)
    fit(network, None, known, config, GuidanceConfig(guidance=GuidanceRecipe.NONE))
    rounds, chosen = _guided(network, known, data, arm, plan, cell.seed)
    tuned = {
        split: predict(network, data.images, wanted, maps=False).logits
        for split, wanted in held.items()
    }
    made = dict(zip(READOUTS, (frozen, tuned), strict=True))
    return Outcome(
        cell=cell,
        scores={readout: found[Split.TEST] for readout, found in made.items()},
        probabilities={readout: _calibrated(data, found) for readout, found in made.items()},
        hits=_hits(network, data),
        rounds=rounds,
        chosen=chosen,
        environment=environment(),
    )


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
    start_from(network, start, data)
    network.eval()
    return network


def _guided(
    network: ChexRadiNet, known: TrainingData, data: Dataset, arm: Arm, plan: StudyPlan, seed: int
) -> tuple[list[dict[str, float | None]], int]:
    """Run an arm's guided rounds in place, as the stage `retrain` does; return their record.

    Returns:
        A record per round, that of fine-tuning first, and the round whose weights were left.
    """
    heads = build_heads(network.num_channels, seed=seed)
    network.requires_grad_(True)
    network.freeze(Freeze.NONE)
    records, states = [_ranked(network, data)], [deepcopy(network.state_dict())]
    for number in range(1, arm.rounds + 1):
        values = [record["validation"] for record in records]
        if arm.stops and not improved(values, plan.retrain.min_improvement):
            break
        config = plan.retrain.training().changed(seed=seed + SEED_STRIDE * number)
        regions = _regions(network, known, data) if arm.guidance.contrasts else None
        guidance = arm.guidance if regions is not None else without_contrast(arm.guidance)
        fit(network, heads, known, config, guidance, regions=regions)
        records.append(_ranked(network, data))
        states.append(deepcopy(network.state_dict()))
    ranked = [-np.inf if one["validation"] is None else one["validation"] for one in records]
    chosen = int(np.argmax(ranked)) if arm.stops else len(records) - 1
    network.load_state_dict(states[chosen])
    return records, chosen


def _regions(network: ChexRadiNet, known: TrainingData, data: Dataset) -> Regions | None:
    table, _ = look(network, data, known.rows, RegionConfig())
    rows = data.row_of(table["image_id"].to_numpy())
    workers = 1 if len(table) < _FEW_REGIONS else available_processors()
    parts = extract_features(data.images, table, rows, RadiomicsConfig(), workers)
    return usable_regions(data, pd.concat(parts, ignore_index=True))


def _ranked(network: ChexRadiNet, data: Dataset) -> dict[str, float | None]:
    found = {}
    for split in (Split.VALIDATION, Split.TEST):
        rows = data.rows(split)
        logits = predict(network, data.images, rows, maps=False).logits
        metrics = classification_metrics(data.labels[rows], logits, data.info.findings)
        found[split.value] = metrics["mean_auroc"]
    return found


def _hits(network: ChexRadiNet, data: Dataset) -> NDArray[np.bool_]:
    cases = boxed_cases(data, data.rows(Split.TEST))
    maps = maps_of(network, data, cases.rows, cases.columns)
    regions = extract_regions(maps, data.info.preprocessing.image_side, RegionConfig())
    hits = localization_hits(regions, cases.boxes)
    return np.stack([hits[key] for key in LOCALIZATION_KEYS], axis=1)


def _calibrated(data: Dataset, scores: Mapping[Split, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return probabilities of the test images, calibrated on the validation split."""
    findings, rows = data.info.findings, data.rows(Split.VALIDATION)
    fitted = fit_calibration(data.labels[rows], scores[Split.VALIDATION], findings)
    made = apply_calibration(fitted.as_dict(), findings, scores[Split.TEST])
    made[:, [fitted.findings[name].status != PLATT for name in findings]] = np.nan
    return made.astype(np.float32)


def _read_out(
    network: ChexRadiNet, data: Dataset, rows: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return scores of a ridge regression per finding; 0 if only one class is known."""
    features, labels = _features(network, data, rows), data.labels[rows]
    mean, spread = features.mean(0), features.std(0) + 1e-6
    scores = np.zeros((len(wanted), labels.shape[1]), np.float32)
    if not len(wanted):
        return scores
    asked = (_features(network, data, wanted) - mean) / spread
    for column, values in enumerate(labels.T):
        given = np.isfinite(values)
        if len(np.unique(values[given])) == 2:
            known = (features[given] - mean) / spread
            scores[:, column] = RidgeCV(alphas=_RIDGES).fit(known, values[given]).predict(asked)
    return scores


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
