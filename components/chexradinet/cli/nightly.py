"""`chexradinet plan | score | collect | nightly | upload`: the nightly run from a shell."""

import os
from typing import Annotated

import typer

from chexradinet.cli.progress import bar, console

Inbox = Annotated[str, typer.Option(help="Folder or s3:// prefix that X-rays arrive in.")]
Models = Annotated[str, typer.Option(help="Folder or s3:// prefix of published models.")]
Results = Annotated[str, typer.Option(help="Folder or s3:// prefix of results and ledger.")]
Work = Annotated[str, typer.Option(help="What `plan` printed, such as 3:1,4:20.")]
RunId = Annotated[str, typer.Option(help="The same for all stages of a run; else your name.")]
ShardSize = Annotated[int, typer.Option(min=1, help="X-rays a shard.")]
Settle = Annotated[float, typer.Option(min=0, help="Seconds that an object must be old.")]
Since = Annotated[str, typer.Option(help="YYYY-MM-DD: score again what another model scored.")]
MinAge = Annotated[float, typer.Option(help="Youngest patient; 0 takes every age.")]
MaxWait = Annotated[float, typer.Option(help="Hours that no study is kept waiting beyond.")]
DicomResults = Annotated[bool, typer.Option(help="Also write DICOM results.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Decoders = Annotated[int, typer.Option(min=1, help="Processes that decode ahead.")]
SHELL_RUN = f"shell-{os.getuid()}"
"""Two people who plan at once are two runs."""


def plan_command(
    inbox: Inbox,
    models: Models,
    results: Results,
    shard_size: ShardSize = 500,
    settle_s: Settle = 60.0,
    rescore_since: Since = "",
    min_age_years: MinAge = 18.0,
    max_wait_h: MaxWait = 72.0,
    dicom_results: DicomResults = False,
    run_id: RunId = SHELL_RUN,
) -> None:
    """Plan what arrived since the last run, and print the work for `score` and `collect`."""
    from chexradinet.config.nightly import PlanConfig, Run, night_settings
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import plan_stage

    config = PlanConfig(
        shard_size=shard_size,
        settle_s=settle_s,
        rescore_since=rescore_since,
        results=night_settings(min_age_years, max_wait_h, dicom_results),
    )
    addresses = Addresses(inbox_uri=inbox, models_uri=models, results_uri=results)
    outcome = plan_stage(addresses, config, Run(run_id=run_id))
    console.print(outcome.as_text(), highlight=False)
    typer.echo(outcome.work)


def score_command(
    inbox: Inbox,
    models: Models,
    results: Results,
    work: Work,
    shard: Annotated[int, typer.Option(min=0, help="Position in the work, from 0.")] = 0,
    device: Device = "auto",
    num_decoders: Decoders = 2,
    run_id: RunId = SHELL_RUN,
) -> None:
    """Score one shard of the planned X-rays, unless it was done before."""
    from chexradinet.config.nightly import Run, ScoreConfig
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import score_stage

    addresses = Addresses(inbox_uri=inbox, models_uri=models, results_uri=results)
    config = ScoreConfig(device=device, num_decoders=num_decoders)
    outcome = score_stage(addresses, work, shard, config, Run(run_id=run_id))
    said = f"{outcome.num_scored} scored, {outcome.num_excluded} not"
    console.print(f"{outcome.status.replace('_', ' ')}: {said}", highlight=False)


def collect_command(
    inbox: Inbox, models: Models, results: Results, work: Work, run_id: RunId = SHELL_RUN
) -> None:
    """Write scores, worklist and report of the planned X-rays."""
    from chexradinet.config.nightly import Run
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import collect_stage

    addresses = Addresses(inbox_uri=inbox, models_uri=models, results_uri=results)
    console.print(collect_stage(addresses, work, Run(run_id=run_id)).as_text(), highlight=False)


def nightly_command(
    inbox: Inbox,
    models: Models,
    results: Results,
    shard_size: ShardSize = 500,
    settle_s: Settle = 60.0,
    rescore_since: Since = "",
    min_age_years: MinAge = 18.0,
    max_wait_h: MaxWait = 72.0,
    dicom_results: DicomResults = False,
    device: Device = "auto",
    num_decoders: Decoders = 2,
) -> None:
    """Plan, score and collect in one go; after a failure, run it again and it goes on."""
    from chexradinet.config.nightly import PlanConfig, ScoreConfig, night_settings
    from chexradinet.nightly.records import Addresses
    from chexradinet.nightly.run import nightly

    config = PlanConfig(
        shard_size=shard_size,
        settle_s=settle_s,
        rescore_since=rescore_since,
        results=night_settings(min_age_years, max_wait_h, dicom_results),
    )
    addresses = Addresses(inbox_uri=inbox, models_uri=models, results_uri=results)
    scoring = ScoreConfig(device=device, num_decoders=num_decoders)
    with bar("nightly", "shards") as progress:
        outcome, night = nightly(addresses, config, scoring, progress=progress)
    console.print(night.as_text() if night else outcome.as_text(), highlight=False)


def upload_command(
    results: Annotated[str, typer.Option(help="Folder of a night's DICOM results.")],
    archive: Annotated[str, typer.Option(help="dicomweb://host[:port]/path of the archive.")],
) -> None:
    """Send a night's DICOM results to an archive by STOW-RS; sending again is no error."""
    from chexradinet.dicom_results.upload import upload_results

    outcome = upload_results(results, archive)
    console.print(f"{outcome.stored} stored, {outcome.already_there} already there")


def register(app: typer.Typer) -> None:
    """Add the commands of the nightly run to a command line."""
    app.command("plan")(plan_command)
    app.command("score")(score_command)
    app.command("collect")(collect_command)
    app.command("nightly")(nightly_command)
    app.command("upload")(upload_command)
