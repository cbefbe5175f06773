"""`chexradinet <stage>`: every stage from a shell, on local files, with progress bars."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from chexradinet.cli import nightly, training
from chexradinet.cli.progress import bar, console
from chexradinet.config import (
    DicomConfig,
    GeometryMode,
    IngestConfig,
    PreprocessingConfig,
    QualityConfig,
    SourceFormat,
)
from chexradinet.errors import ChexRadiNetError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
    from chexradinet.phantom import write_phantom

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
    from chexradinet.ingest.ingest import format_counts
    from chexradinet.ingest.upload import ingest_to

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
    with bar("ingest", "files") as progress:
        info = ingest_to(source, out, config, progress, labels=labels, report=report)
    console.print(f"{info.counts['images']} images in {out}", highlight=False)
    if info.counts["rejected"]:
        console.print(f"rejected: {format_counts(info.counts['rejected'])}", highlight=False)


training.register(app)
nightly.register(app)


def main() -> None:
    """Run a stage; a deliberate error is printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except ChexRadiNetError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(1) from None
