"""The commands: training on local files, the nightly run, and operating an installation."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexradinet.cli import bar, console, show, with_settings
from chexradinet.config import (
    IngestConfig,
    Pretext,
    PublishConfig,
    RadiomicsConfig,
    RegionConfig,
    RetrainConfig,
    Settings,
)
from chexradinet.config.nightly import Device, PlanConfig, Run, ScoreConfig
from chexradinet.config.parameters import Assessment, Pretraining, RoundZero
from chexradinet.errors import RejectedImageError, SourceError

if TYPE_CHECKING:
    from chexradinet.dicom_results.upload import UploadOutcome
    from chexradinet.nightly.summary import Night

Source = Annotated[
    str, typer.Argument(help="Folder, s3:// prefix, or dicomweb://host/path?study_date=…")
]
Dataset = Annotated[Path, typer.Option(help="Data set that `ingest` wrote.")]
Model = Annotated[Path, typer.Option(help="Bundle of a trained model.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to make; appears when complete.")]
Threads = Annotated[int, typer.Option(min=0, help="Torch threads; 0 leaves torch's choice.")]
ModelsUri = Annotated[str, typer.Option(help="Folder or s3:// prefix of published models.")]
InboxUri = Annotated[str, typer.Option(help="Folder or s3:// prefix that X-rays arrive in.")]
ResultsUri = Annotated[str, typer.Option(help="Folder or s3:// prefix of results and ledger.")]
Work = Annotated[str, typer.Option(help="What `plan` printed, such as 3:1,4:20.")]
SHELL_RUN = f"shell-{os.getuid()}"
"""Two people who plan at once are two runs."""


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
    from chexradinet.ingest.output import ingest_to

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


class PlanCommand(Settings):
    """Options of `chexradinet plan`."""

    plan: PlanConfig = PlanConfig()
    run: Run = Run(run_id=SHELL_RUN)


class ScoreCommand(Settings):
    """Options of `chexradinet score`."""

    score: ScoreConfig = ScoreConfig()
    run: Run = Run(run_id=SHELL_RUN)


class NightlyCommand(Settings):
    """Options of `chexradinet nightly`."""

    plan: PlanConfig = PlanConfig()
    score: ScoreConfig = ScoreConfig()


@with_settings(PlanCommand)
def plan(
    inbox_uri: InboxUri, models_uri: ModelsUri, results_uri: ResultsUri, *, settings: PlanCommand
) -> None:
    """Plan what arrived; print the work for `score` and `collect`."""
    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import plan_stage

    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    outcome = plan_stage(addresses, settings.plan, settings.run)
    console.print(outcome.as_text(), highlight=False)
    typer.echo(outcome.work)


@with_settings(ScoreCommand)
def score(
    inbox_uri: InboxUri,
    models_uri: ModelsUri,
    results_uri: ResultsUri,
    work: Work,
    shard: Annotated[int, typer.Option(min=0, help="Position in the work, from 0.")] = 0,
    *,
    settings: ScoreCommand,
) -> None:
    """Score one shard of the planned X-rays, unless it was done before."""
    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import score_stage

    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    outcome = score_stage(addresses, work, shard, settings.score, settings.run)
    counts = f"{outcome.num_scored} scored, {outcome.num_excluded} not"
    show(f"{outcome.status.replace('_', ' ')}: {counts}", status=outcome.status,
         scored=outcome.num_scored, not_scored=outcome.num_excluded)  # fmt: skip


@with_settings(Run, run_id=SHELL_RUN)
def collect(
    inbox_uri: InboxUri,
    models_uri: ModelsUri,
    results_uri: ResultsUri,
    work: Work,
    *,
    settings: Run,
) -> None:
    """Write scores, worklist and report of the planned X-rays."""
    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import collect_stage

    addresses = Addresses(inbox_uri=inbox_uri, models_uri=models_uri, results_uri=results_uri)
    _show_night(collect_stage(addresses, work, settings))


@with_settings(NightlyCommand)
def nightly(
    inbox_uri: InboxUri,
    models_uri: ModelsUri,
    results_uri: ResultsUri,
    archive_uri: Annotated[
        str, typer.Option(help="Archive that DICOM results are sent to; empty sends none.")
    ] = "",
    *,
    settings: NightlyCommand,
) -> None:
    """Plan, score, collect and send in one go; running it again continues it."""
    from chexradinet.nightly import Addresses
    from chexradinet.nightly.run import archive_results
    from chexradinet.nightly.run import nightly as run

    addresses = Addresses(
        inbox_uri=inbox_uri,
        models_uri=models_uri,
        results_uri=results_uri,
        archive_uri=archive_uri,
    )
    with bar("nightly", "shards") as progress:
        outcome, night = run(addresses, settings.plan, settings.score, progress=progress)
    if night is None:
        show(outcome.as_text(), status=outcome.status, scored=0, not_scored={})
    else:
        _show_night(night)
    if archive_uri:
        _show_upload(archive_results(results_uri, archive_uri))


def upload(
    results_uri: Annotated[str, typer.Option(help="Folder of a night's DICOM results.")],
    archive_uri: Annotated[str, typer.Option(help="dicomweb://host[:port]/path of the archive.")],
) -> None:
    """Send a night's DICOM results to an archive by STOW-RS.

    The exit code is 3 if there are none.
    """
    from chexradinet.dicom_results.upload import upload_results

    outcome = upload_results(results_uri, archive_uri)
    outcome.require_all()
    if not outcome.stored + outcome.already_there:
        show(f"nothing to send: no DICOM results below {results_uri}", stored=0, already_there=0)
        raise typer.Exit(3)
    _show_upload(outcome)


def predict(
    files: Annotated[list[Path], typer.Argument(help="X-rays: DICOM, PNG or JPEG.")],
    model: Annotated[str, typer.Option(help="Bundle, or folder of published models.")],
    heatmaps: Annotated[
        Path | None, typer.Option(help="Folder for a heatmap picture of each flagged finding.")
    ] = None,
    device: Device = Device.AUTO,
) -> None:
    """Print a model's predictions for X-rays, one line of JSON each."""
    from chexradinet.prediction import load

    opened = load(model, device.value)
    num_failed = 0
    for path in files:
        try:
            said = opened.predict(path)
        except (RejectedImageError, SourceError) as error:
            num_failed += 1
            reason = str(getattr(error, "reason", "unreadable"))
            typer.echo(json.dumps({"file": str(path), "rejected": reason, "detail": str(error)}))
            continue
        typer.echo(json.dumps({"file": str(path), **said.as_dict()}, default=float))
        if heatmaps is not None:
            heatmaps.mkdir(parents=True, exist_ok=True)
            for one in said.findings:
                if one.flagged:
                    said.save_heatmap(one.finding, heatmaps / f"{path.stem}-{one.finding}.png")
    if num_failed:
        raise typer.Exit(4)


def buckets(
    folder: Annotated[Path, typer.Argument(help="Folder of buckets.json and policy-*.json.")],
) -> None:
    """Create buckets, policies and users as the store's administrator."""
    from chexradinet.store.administration import set_up_buckets

    has_users = set_up_buckets(folder)
    show("buckets are set up" + ("" if has_users else "; not MinIO, so create users yourself"),
         users=has_users)  # fmt: skip


def roll_back(
    models_uri: Annotated[str, typer.Argument(help="Folder or s3:// prefix of published models.")],
    digest: Annotated[str, typer.Argument(help="Digest of the model, or its first characters.")],
) -> None:
    """Make an earlier model the champion again."""
    from chexradinet.registry import roll_back as run

    champion = run(models_uri, digest)
    show(f"the champion is {champion}", champion=champion)


def export_onnx(
    bundle: Annotated[Path, typer.Argument(help="Model bundle.")],
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
) -> None:
    """Write a network as ONNX: logits, maps and embedding in one graph."""
    from chexradinet.model.bundle import export_onnx as run

    run(bundle, out)
    show(f"the network is in {out}", onnx=out)


def _show_validation(metrics: dict[str, Any]) -> None:
    mean = metrics["mean_auroc"]
    shown = "not defined" if mean is None else f"{mean:.3f}"
    show(f"validation: mean AUROC {shown}", validation=metrics)


def _show_upload(outcome: "UploadOutcome") -> None:
    show(outcome.as_text(), stored=outcome.stored, already_there=outcome.already_there)


def _show_night(night: "Night") -> None:
    show(night.as_text(), status="collected", scored=night.num_scored, not_scored=night.excluded)
