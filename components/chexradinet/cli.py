"""`chexradinet <stage>`: every stage from a shell, on local files, with progress bars."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chexradinet.cli_nightly import register
from chexradinet.config import (
    Backbone,
    DicomConfig,
    EvaluationConfig,
    GeometryMode,
    GuidanceConfig,
    GuidanceRecipe,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    QualityConfig,
    RadiomicsConfig,
    RegionConfig,
    SourceFormat,
    TrainConfig,
)
from chexradinet.errors import ChexRadiNetError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)

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


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields what a flow calls with done, total and maybe a loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)

        def advance(done: int, total: int, loss: float | None = None) -> None:
            note = f"{label} {unit}" if loss is None else f"{label} {unit}, loss {loss:.3f}"
            progress.update(task, completed=done, total=total, description=note)

        yield advance


@app.command()
def phantom(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    images: Annotated[int, typer.Option(min=1, help="How many X-rays.")] = 900,
    side: Annotated[int, typer.Option(min=64, help="Height and width, in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal X-rays.")] = 7,
    shortcut: Annotated[
        float, typer.Option(min=0, max=1, help="How far the view gives Consolidation away.")
    ] = 0.0,
) -> None:
    """Generate X-ray-like images with planted findings, and their label table."""
    from chexradinet.dataset.phantom import write_phantom

    write_phantom(out, images, side, seed, shortcut=shortcut)
    console.print(f"wrote {images} X-rays and labels.csv to {out}", highlight=False)


@app.command()
def ingest(
    source: Annotated[
        str, typer.Argument(help="Folder, s3:// prefix, or dicomweb://host/path?study_date=.")
    ],
    out: Annotated[str, typer.Option("--out", help="Directory or s3:// prefix to make.")],
    data_format: Annotated[SourceFormat, typer.Option("--format")] = SourceFormat.CSV,
    findings: Annotated[str, typer.Option(help="Comma separated; empty takes all.")] = "",
    side: Annotated[int, typer.Option(help="Side of the model's input, in pixels.")] = 224,
    geometry: Annotated[GeometryMode, typer.Option()] = GeometryMode.SQUASH,
    uncertain: Annotated[str, typer.Option(help="Of -1 labels: ignore, ones, zeros.")] = "ignore",
    validation_fraction: Annotated[float, typer.Option()] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Where no split is given.")] = 0.1,
    split_seed: Annotated[int, typer.Option()] = 0,
    max_reject_fraction: Annotated[float, typer.Option(help="More rejects fail the run.")] = 0.5,
    labels: Annotated[str, typer.Option(help="Folder of the label tables, if elsewhere.")] = "",
    report: Annotated[str, typer.Option(help="HTML file to write the ingest report to.")] = "",
    voi_index: Annotated[int, typer.Option(min=0, help="Which DICOM window of several.")] = 0,
    prefer_voi_lut: Annotated[bool, typer.Option(help="A VOI LUT goes before a window.")] = True,
    min_age_years: Annotated[
        float, typer.Option(help="Youngest patient of a DICOM file; 0 takes all, as pictures do.")
    ] = 18,
    min_side_px: Annotated[int, typer.Option(help="Shortest side of a DICOM image.")] = 32,
    check_inversion: Annotated[
        bool, typer.Option(help="Reject DICOM images that contradict their polarity.")
    ] = True,
    shard_size: Annotated[int, typer.Option(min=1, help="Images a file; also of a resume.")] = 4096,
    num_workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0 uses what cores and memory allow.")
    ] = 0,
) -> None:
    """Decode X-rays once into a data set; a killed run goes on where it was."""
    from chexradinet.flows.ingest_upload import ingest_to
    from chexradinet.flows.tallying import told

    config = IngestConfig(
        format=data_format,
        findings=tuple(name for name in findings.split(",") if name),
        preprocessing=PreprocessingConfig(
            image_side=side,
            geometry=geometry,
            dicom=DicomConfig(voi_index=voi_index, prefer_voi_lut=prefer_voi_lut),
        ),
        quality=QualityConfig(
            min_age_years=min_age_years, min_side_px=min_side_px, check_inversion=check_inversion
        ),
        uncertain=uncertain,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        max_reject_fraction=max_reject_fraction,
        shard_size=shard_size,
        num_workers=num_workers,
    )
    with _bar("ingest", "files") as progress:
        info = ingest_to(source, out, config, progress, labels=labels, report=report)
    console.print(f"{info.counts['images']} images in {out}", highlight=False)
    if info.counts["rejected"]:
        console.print(f"rejected: {told(info.counts['rejected'])}", highlight=False)


@app.command()
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
    from chexradinet.flows.train import train as run

    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        num_threads=num_threads,
    )
    network = NetworkConfig(backbone=backbone, map_stride=map_stride)
    with _bar("train", "steps") as progress:
        info = run(dataset, out, network, config, initial_weights, progress)
    _say_validation(info.metrics["validation"])


@app.command()
def heatmap(model: Model, dataset: Dataset, out: Out, region_threshold: Threshold = 0.6) -> None:
    """Find the regions that a model looked at in the training images."""
    from chexradinet.flows.heatmap import heatmap as run

    count = run(model, dataset, out, RegionConfig(threshold=region_threshold))
    console.print(f"{count} regions in {out}", highlight=False)


@app.command()
def radiomics(
    dataset: Dataset,
    regions: Annotated[Path, typer.Option(help="Regions that `heatmap` wrote.")],
    out: Out,
    bin_width: BinWidth = 8.0,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes; 0 uses all cores.")] = 0,
) -> None:
    """Measure the 102 radiomics features of regions."""
    from chexradinet.flows.radiomics import radiomics as run

    config = RadiomicsConfig(bin_width=bin_width)
    with _bar("radiomics", "regions") as progress:
        count = run(dataset, regions, out, config, num_workers=num_workers, progress=progress)
    console.print(f"{count} rows of features in {out}", highlight=False)


@app.command()
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
    from chexradinet.flows.retrain import retrain as run

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
    with _bar(f"round {round_number}", "steps") as progress:
        outcome = run(
            model,
            dataset,
            features,
            out,
            round_number=round_number,
            guidance=recipe,
            config=config,
            progress=progress,
        )
    _say_validation(outcome.info.metrics["validation"])


@app.command()
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
    from chexradinet.flows.evaluate import Arms
    from chexradinet.flows.evaluate import evaluate as run

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


@app.command()
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
    from chexradinet.flows.publish import publish as run

    outcome = run(model, evaluation, dataset, models, replace_incomparable=replace_incomparable)
    console.print(outcome.as_markdown(), highlight=False, markup=False)


def _say_validation(metrics: dict[str, float | None]) -> None:
    mean = metrics["mean_auroc"]
    shown = "not defined" if mean is None else f"{mean:.3f}"
    console.print(f"validation: mean AUROC {shown}", highlight=False)


register(app)


def main() -> None:
    """Run a stage; a deliberate error is printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except ChexRadiNetError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(1) from None
