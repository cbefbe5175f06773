"""Commands of the training pipeline's stages, on local files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from chexradinet.cli import bar, show, with_settings
from chexradinet.config import (
    IngestConfig,
    Pretext,
    PublishConfig,
    RadiomicsConfig,
    RegionConfig,
    RetrainConfig,
)
from chexradinet.config.parameters import Assessment, Pretraining, RoundZero

Source = Annotated[
    str, typer.Argument(help="Folder, s3:// prefix, or dicomweb://host/path?study_date=…")
]
Dataset = Annotated[Path, typer.Option(help="Data set that `ingest` wrote.")]
Model = Annotated[Path, typer.Option(help="Bundle of a trained model.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to make; appears when complete.")]
Threads = Annotated[int, typer.Option(min=0, help="Torch threads; 0 leaves torch's choice.")]
ModelsUri = Annotated[str, typer.Option(help="Folder or s3:// prefix of published models.")]


def phantom(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    images: Annotated[int, typer.Option(min=1, help="Number of X-rays.")] = 900,
    side: Annotated[int, typer.Option(min=64, help="Height and width, in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 7,
    shortcut: Annotated[
        float,
        typer.Option(min=0, max=1, help="Correlation between view and Consolidation."),
    ] = 0.0,
) -> None:
    """Generate X-ray-like images with planted findings and a label table."""
    from chexradinet.phantom import write_phantom

    write_phantom(out, images, side, seed, shortcut=shortcut)
    show(f"wrote {images} X-rays and labels.csv to {out}", images=images, out=out)


@with_settings(IngestConfig)
def ingest(
    source: Source,
    out: Annotated[str, typer.Option("--out", help="Directory or s3:// prefix to make.")],
    labels: Annotated[str, typer.Option(help="Folder of the label tables, if elsewhere.")] = "",
    report: Annotated[str, typer.Option(help="HTML file to write the ingest report to.")] = "",
    *,
    settings: IngestConfig,
) -> None:
    """Decode X-rays into a data set; a killed run continues where it stopped."""
    from chexradinet.ingest.ingest import format_counts
    from chexradinet.ingest.upload import ingest_to

    with bar("ingest", "files") as progress:
        info = ingest_to(source, out, settings, progress, labels=labels, report=report)
    rejected = info.counts["rejected"]
    text = f"; rejected: {format_counts(rejected)}" if rejected else ""
    show(f"{info.counts['images']} images in {out}{text}", counts=info.counts, digest=info.digest)


@with_settings(Pretraining, pretext=Pretext.RADIOMICS)
def pretrain(
    dataset: Dataset,
    out: Out,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Another data set of unlabelled images.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the targets.")] = None,
    num_threads: Threads = 0,
    *,
    settings: Pretraining,
) -> None:
    """Pre-train an encoder on the training images without labels."""
    from chexradinet.training.pretrain import pretrain as run

    config = settings.pretrain.changed(num_threads=num_threads)
    with bar("pretrain", "steps") as progress:
        record = run(
            dataset,
            out,
            settings.network,
            config,
            unlabelled=unlabelled,
            cache=cache,
            progress=progress,
        )
    images = sum(source["images"] for source in record["sources"])
    refused = sum(sum(source["refused"].values()) for source in record["sources"])
    show(f"encoder of {images} images in {out}; refused: {refused}", encoder=record)


@with_settings(RoundZero)
def train(dataset: Dataset, out: Out, num_threads: Threads = 0, *, settings: RoundZero) -> None:
    """Train round 0 on image labels alone."""
    from chexradinet.training.train import train as run

    config = settings.training.changed(num_threads=num_threads)
    with bar("train", "steps") as progress:
        info = run(
            dataset,
            out,
            settings.network,
            config,
            settings.initial_weights,
            progress,
            reuse=settings.reuse,
            pretext=settings.pretrain.changed(num_threads=num_threads),
        )
    _show_validation(info.metrics["validation"])


@with_settings(RegionConfig)
def heatmap(model: Model, dataset: Dataset, out: Out, *, settings: RegionConfig) -> None:
    """Find the regions that a model looked at in the training images."""
    from chexradinet.training.rounds import heatmap as run

    count = run(model, dataset, out, settings)
    show(f"{count} regions in {out}", regions=count)


@with_settings(RadiomicsConfig)
def radiomics(
    dataset: Dataset,
    regions: Annotated[Path, typer.Option(help="Regions that `heatmap` wrote.")],
    out: Out,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes; 0 uses all cores.")] = 0,
    *,
    settings: RadiomicsConfig,
) -> None:
    """Measure the 102 radiomics features of regions."""
    from chexradinet.training.rounds import radiomics as run

    with bar("radiomics", "regions") as progress:
        count = run(dataset, regions, out, settings, num_workers=num_workers, progress=progress)
    show(f"{count} rows of features in {out}", rows=count)


@with_settings(RetrainConfig)
def retrain(
    model: Model,
    dataset: Dataset,
    features: Annotated[Path, typer.Option(help="Features that `radiomics` wrote.")],
    out: Out,
    round_number: Annotated[int, typer.Option(min=1, help="Number of the round.")] = 1,
    permute_radiomics: Annotated[
        bool, typer.Option(help="Shuffle features across images.")
    ] = False,
    num_threads: Threads = 0,
    *,
    settings: RetrainConfig,
) -> None:
    """Train one guided round."""
    from chexradinet.training.train import retrain as run

    with bar(f"round {round_number}", "steps") as progress:
        outcome = run(
            model,
            dataset,
            [features],
            out,
            round_number=round_number,
            guidance=settings.guidance.changed(permute_radiomics=permute_radiomics),
            config=settings.training().changed(num_threads=num_threads),
            min_improvement=settings.min_improvement,
            progress=progress,
            reuse=settings.reuse,
        )
    _show_validation(outcome.info.metrics["validation"])


@with_settings(Assessment)
def evaluate(
    dataset: Dataset,
    models: Annotated[list[Path], typer.Argument(help="Bundles of the rounds, round 0 first.")],
    best: Annotated[Path, typer.Option(help="Bundle directory to make: the best, calibrated.")],
    out: Out,
    control: Annotated[Path | None, typer.Option(help="Last round without guidance.")] = None,
    permuted: Annotated[Path | None, typer.Option(help="Last round, features shuffled.")] = None,
    *,
    settings: Assessment,
) -> None:
    """Choose and calibrate the best round; evaluate all on the test split."""
    from chexradinet.training.evaluate import Arms
    from chexradinet.training.evaluate import evaluate as run

    outcome = run(
        dataset,
        Arms(rounds=models, control=control, permuted=permuted),
        best=best,
        target=out,
        config=settings.evaluation,
        regions=settings.regions,
        radiomics=settings.radiomics,
    )
    report = out / "report.html"
    text = f"best round {outcome.best_round}; report in {report}"
    show(text, **{**outcome.headline(), "best_round": outcome.best_round, "report": report})


@with_settings(PublishConfig)
def publish(
    model: Model,
    evaluation: Annotated[Path, typer.Option(help="Evaluation that `evaluate` wrote.")],
    dataset: Dataset,
    models_uri: ModelsUri,
    *,
    settings: PublishConfig,
) -> None:
    """Publish a model if it beats the champion."""
    from chexradinet.training.publish import publish as run

    outcome = run(model, evaluation, dataset, models_uri, settings)
    show(outcome.as_markdown(), champion=outcome.champion_digest)


def _show_validation(metrics: dict[str, Any]) -> None:
    mean = metrics["mean_auroc"]
    shown = "not defined" if mean is None else f"{mean:.3f}"
    show(f"validation: mean AUROC {shown}", validation=metrics)
