"""Commands of whoever operates an installation: buckets, and going back to an earlier model."""

from pathlib import Path
from typing import Annotated

import typer

from chexradinet.cli.progress import show


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
