"""Commands of whoever operates an installation: the nightly run, its store and its models."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexradinet.cli import bar, console, show, with_settings
from chexradinet.config import Settings
from chexradinet.config.nightly import Device, PlanConfig, Run, ScoreConfig
from chexradinet.errors import RejectedImageError, SourceError

if TYPE_CHECKING:
    from chexradinet.dicom_results.upload import UploadOutcome
    from chexradinet.nightly.outcome import Night

InboxUri = Annotated[str, typer.Option(help="Folder or s3:// prefix that X-rays arrive in.")]
ModelsUri = Annotated[str, typer.Option(help="Folder or s3:// prefix of published models.")]
ResultsUri = Annotated[str, typer.Option(help="Folder or s3:// prefix of results and ledger.")]
Work = Annotated[str, typer.Option(help="What `plan` printed, such as 3:1,4:20.")]
SHELL_RUN = f"shell-{os.getuid()}"
"""Two people who plan at once are two runs."""


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
    from chexradinet.nightly.records import Addresses
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
    from chexradinet.nightly.records import Addresses
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
    from chexradinet.nightly.records import Addresses
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
    from chexradinet.nightly.archive import archive_results
    from chexradinet.nightly.records import Addresses
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
    from chexradinet.registry.champion import roll_back as run

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


def _show_upload(outcome: "UploadOutcome") -> None:
    show(outcome.as_text(), stored=outcome.stored, already_there=outcome.already_there)


def _show_night(night: "Night") -> None:
    show(night.as_text(), status="collected", scored=night.num_scored, not_scored=night.excluded)
