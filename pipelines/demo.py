"""The demonstration: phantom X-rays through the whole pipeline, on this machine, in minutes."""

import os
import time
from pathlib import Path

from rich.console import Console

from chexradinet.errors import ConfigError
from chexradinet.phantom import write_phantom, write_phantom_inbox
from pipelines.compile import compile_nightly, compile_training
from pipelines.ending import show_nightly, show_training
from pipelines.parameters import Value, asked_shape, load_compiled, parse_settings
from pipelines.run import run_locally

NUM_IMAGES = 1050
PHANTOM_SIDE_PX = 192

PRESET = Path(__file__).parent / "presets" / "quick.yaml"

INBOX_IMAGES = 40
_FIRST_INBOX_SEED = 1_000_000
NIGHTLY_SETTINGS = ("settle_s=0", "shard_size=25", "dicom_results=true", "num_decoders=1")
"""`settle_s=0`, because the inbox was written a moment ago; decoding processes of their own would
take longer to start than 40 X-rays take to decode."""

_Run = tuple[dict[str, Value], Path]
"""Parameters and folder of a finished run."""


def run_demo(folder: Path, seed: int, console: Console) -> None:
    """Train on generated X-rays with the compiled pipeline, then score an inbox with its champion.

    Args:
        folder: Folder for everything; a second run reuses the X-rays.
        seed: Random seed of the X-rays and the training.
        console: Where progress is shown.

    Raises:
        ConfigError: `folder` holds anything but an earlier demo.
        LocalRunError: a stage failed.
    """
    if any(folder.glob("*")) and not any(folder.glob("phantom-*")):
        raise ConfigError(
            f"{folder} is not empty and holds no earlier demo, so nothing is put there; give "
            "another path with --folder"
        )
    started = time.monotonic()
    run = time.strftime("%Y%m%d-%H%M%S")
    trained = _train(folder, seed, run, console)
    scored = _score(folder, seed, run, console)
    show_training(*trained, console)
    show_nightly(*scored, console)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)


def _train(folder: Path, seed: int, run: str, console: Console) -> _Run:
    source = folder / f"phantom-{seed}"
    if not (source / "labels.csv").exists():
        console.print(f"generating {NUM_IMAGES} phantom X-rays in {source}", highlight=False)
        write_phantom(source, NUM_IMAGES, PHANTOM_SIDE_PX, seed)
    shape = asked_shape((), PRESET)
    compiled = compile_training(folder / "pipelines", shape.max_rounds, has_arms=shape.has_arms)
    given = (f"source={source}", f"models_uri={folder / 'models'}", f"seed={seed}")
    arguments: dict[str, Value] = parse_settings(load_compiled(compiled), given, PRESET)
    run_folder = folder / f"training-{run}"
    console.print(f"running {compiled} in {run_folder}", highlight=False, soft_wrap=True)
    run_locally(compiled, arguments, run_folder, console, _threads())
    return arguments, run_folder


def _score(folder: Path, seed: int, run: str, console: Console) -> _Run:
    nights = len(list((folder / "inbox").glob("*")))
    inbox = folder / "inbox" / run
    console.print(f"generating {INBOX_IMAGES} new DICOM X-rays in {inbox}", highlight=False)
    write_phantom_inbox(
        inbox, INBOX_IMAGES, PHANTOM_SIDE_PX, _FIRST_INBOX_SEED + 1000 * seed + nights
    )
    (inbox / "truncated.dcm").write_bytes((inbox / "000000.dcm").read_bytes()[:20_000])
    compiled = compile_nightly(folder / "pipelines")
    given = (
        f"inbox_uri={folder / 'inbox'}",
        f"models_uri={folder / 'models'}",
        f"results_uri={folder / 'results'}",
    )
    arguments = parse_settings(load_compiled(compiled), (*given, *NIGHTLY_SETTINGS))
    run_folder = folder / f"nightly-{run}"
    console.print(f"running {compiled} in {run_folder}", highlight=False, soft_wrap=True)
    run_locally(compiled, arguments, run_folder, console, _threads())
    return arguments, run_folder


def _threads() -> dict[str, str]:
    """Keep torch to one thread: more of them wait for each other on a busy machine."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
