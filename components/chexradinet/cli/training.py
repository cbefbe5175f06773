"""`chexradinet train | heatmap | radiomics | retrain | evaluate | publish`, on local files."""

from pathlib import Path
from typing import Annotated

import typer

from chexradinet.cli.progress import bar, console
from chexradinet.config import (
    Backbone,
    EvaluationConfig,
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)

Dataset = Annotated[Path, typer.Option(help="Data set that `ingest` wrote.")]
Model = Annotated[Path, typer.Option(help="Bundle of a trained model.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to make; appears when complete.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Images a step.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of order and augmentation.")]
Threads = Annotated[int, typer.Option(min=0, help="Torch threads; 0 leaves torch's choice.")]
Threshold = Annotated[float, typer.Option(help="Fraction of a map's maximum in its region.")]
BinWidth = Annotated[float, typer.Option(help="Width of a radiomics grey-level bin.")]


def train(
    dataset: Dataset,
    out: Out,
    backbone: Annotated[Backbone, typer.Option()] = Backbone.RESNET50,
    map_stride: Annotated[int, typer.Option(help="Input pixels a map cell covers.")] = 16,
    initial_weights: Annotated[str, typer.Option(help="torchvision state dict, path or URI.")] = "",
    epochs: Epochs = 10,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 2e-3,
    seed: Seed = 0,
    num_threads: Threads = 0,
) -> None:
    """Train round 0 on image labels alone."""
    from chexradinet.training.train import train as run

    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        num_threads=num_threads,
    )
    network = NetworkConfig(backbone=backbone, map_stride=map_stride)
    with bar("train", "steps") as progress:
        info = run(dataset, out, network, config, initial_weights, progress)
    _say_validation(info.metrics["validation"])


def heatmap(model: Model, dataset: Dataset, out: Out, region_threshold: Threshold = 0.6) -> None:
    """Find the regions that a model looked at in the training images."""
    from chexradinet.training.heatmap import heatmap as run

    count = run(model, dataset, out, RegionConfig(threshold=region_threshold))
    console.print(f"{count} regions in {out}", highlight=False)


def radiomics(
    dataset: Dataset,
    regions: Annotated[Path, typer.Option(help="Regions that `heatmap` wrote.")],
    out: Out,
    bin_width: BinWidth = 8.0,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes; 0 uses all cores.")] = 0,
) -> None:
    """Measure the 102 radiomics features of regions."""
    from chexradinet.training.radiomics import radiomics as run

    config = RadiomicsConfig(bin_width=bin_width)
    with bar("radiomics", "regions") as progress:
        count = run(dataset, regions, out, config, num_workers=num_workers, progress=progress)
    console.print(f"{count} rows of features in {out}", highlight=False)


def retrain(
    model: Model,
    dataset: Dataset,
    features: Annotated[Path, typer.Option(help="Features that `radiomics` wrote.")],
    out: Out,
    round_number: Annotated[int, typer.Option(min=1, help="Number of the round.")] = 1,
    guidance: Annotated[GuidanceRecipe, typer.Option()] = GuidanceRecipe.SHARPEN_CONTRASTIVE,
    permute_radiomics: Annotated[bool, typer.Option(help="Shuffle features over images.")] = False,
    sharpen_weight: Annotated[float, typer.Option()] = 0.10,
    contrastive_weight: Annotated[float, typer.Option()] = 0.05,
    epochs: Epochs = 3,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1e-3,
    seed: Seed = 0,
    num_threads: Threads = 0,
) -> None:
    """Train one guided round."""
    from chexradinet.training.retrain import retrain as run

    recipe = GuidanceConfig(
        recipe=guidance,
        permute_radiomics=permute_radiomics,
        sharpen_weight=sharpen_weight,
        contrastive_weight=contrastive_weight,
    )
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        num_threads=num_threads,
    )
    with bar(f"round {round_number}", "steps") as progress:
        outcome = run(
            model,
            dataset,
            [features],
            out,
            round_number=round_number,
            guidance=recipe,
            config=config,
            progress=progress,
        )
    _say_validation(outcome.info.metrics["validation"])


def evaluate(
    dataset: Dataset,
    models: Annotated[list[Path], typer.Argument(help="Bundles of the rounds, round 0 first.")],
    best: Annotated[Path, typer.Option(help="Bundle directory to make: the best, calibrated.")],
    out: Out,
    control: Annotated[Path | None, typer.Option(help="Last round without guidance.")] = None,
    permuted: Annotated[Path | None, typer.Option(help="Last round, features shuffled.")] = None,
    bootstrap_samples: Annotated[int, typer.Option(min=100)] = 1000,
    sensitivity: Annotated[float, typer.Option(help="Of the operating thresholds.")] = 0.9,
    seed: Seed = 0,
    region_threshold: Threshold = 0.6,
    bin_width: BinWidth = 8.0,
) -> None:
    """Choose the best round, calibrate it, and judge every round on the test split."""
    from chexradinet.training.evaluate import Arms
    from chexradinet.training.evaluate import evaluate as run

    outcome = run(
        dataset,
        Arms(rounds=models, control=control, permuted=permuted),
        best=best,
        target=out,
        config=EvaluationConfig(
            bootstrap_samples=bootstrap_samples, sensitivity=sensitivity, seed=seed
        ),
        regions=RegionConfig(threshold=region_threshold),
        radiomics=RadiomicsConfig(bin_width=bin_width),
    )
    console.print(f"best round {outcome.best_round}; report in {out / 'report.html'}")


def publish(
    model: Model,
    evaluation: Annotated[Path, typer.Option(help="Evaluation that `evaluate` wrote.")],
    dataset: Dataset,
    models: Annotated[str, typer.Option(help="Folder or s3:// prefix of published models.")],
    replace_incomparable: Annotated[
        bool, typer.Option(help="Also replace a champion with other findings.")
    ] = False,
) -> None:
    """Publish a model if it beats the champion."""
    from chexradinet.training.publish import publish as run

    outcome = run(model, evaluation, dataset, models, replace_incomparable=replace_incomparable)
    console.print(outcome.as_markdown(), highlight=False, markup=False)


def _say_validation(metrics: dict[str, float | None]) -> None:
    mean = metrics["mean_auroc"]
    shown = "not defined" if mean is None else f"{mean:.3f}"
    console.print(f"validation: mean AUROC {shown}", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the commands of the training pipeline's later stages."""
    for command in (train, heatmap, radiomics, retrain, evaluate, publish):
        app.command()(command)
