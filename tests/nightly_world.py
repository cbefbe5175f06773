"""An inbox, a published model and results in one folder: where tests of the nightly run start."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import uid

from chexradinet.config import NetworkConfig, PreprocessingConfig, QualityConfig
from chexradinet.config.nightly import Device, PlanConfig, ResultSettings, Run, ScoreConfig
from chexradinet.evaluation.calibration import Calibration, FindingCalibration
from chexradinet.evaluation.reference import Reference
from chexradinet.model import BundleInfo
from chexradinet.model.bundle import replace_info, save_bundle
from chexradinet.model.resnet import build_network
from chexradinet.nightly import Addresses
from chexradinet.nightly.plan import PlanOutcome
from chexradinet.nightly.run import nightly
from chexradinet.nightly.summary import Night
from chexradinet.phantom import draw_phantom, encode_radiograph
from chexradinet.store import open_store

FINDINGS = ("Cardiomegaly", "Effusion", "Mass")

SCORING = ScoreConfig(device=Device.CPU, num_threads=1, num_decoders=1)
SIDE_PX = 64
_TIMINGS = re.compile(rb"<section>\n<h2>Timings</h2>.*?</section>", re.DOTALL)
_TIMING_CELLS = re.compile(rb"(,[^,\n]*){5}$", re.MULTILINE)


def _without_timings(name: str, data: bytes) -> bytes:
    if "/part-" in name and name.endswith(".csv"):
        return _TIMING_CELLS.sub(b"", data)
    if "/part-" in name and name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        stream = io.BytesIO()
        pq.write_table(table.drop_columns(table.column_names[-5:]), stream)
        return stream.getvalue()
    return _TIMINGS.sub(b"", data)


def decode_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the night decode in this process, where other things can be patched too."""

    def here(images: list[Any], decode: Callable[..., Any], _: int) -> Iterator[Any]:
        return map(decode, images)

    monkeypatch.setattr("chexradinet.nightly.score.decode_in_order", here)


def fork() -> int:
    """Fork this process, which has run a pool before; the child's workers are of the same server.

    The child cannot ask whether the server runs, since it is not its own child. A child that was
    killed while it asked for a worker took the server with it: then another one is started.
    """
    forkserver._forkserver.ensure_running()
    child = os.fork()
    if child == 0:
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    return child


def calibration(findings: tuple[str, ...] = FINDINGS) -> dict[str, Any]:
    """Return a fixed calibration."""
    fitted = {
        finding: FindingCalibration(
            status="platt", slope=3.0, positives=20, negatives=20, threshold=0.35 + 0.1 * index
        )
        for index, finding in enumerate(findings)
    }
    return Calibration(
        findings=fitted, split="validation", target_sensitivity=0.9, num_images=40
    ).as_dict()


def make_bundle(
    target: Path,
    seed: int = 0,
    reference: Reference | None = None,
    **changes: Any,  # noqa: ANN401
) -> str:
    """Write a bundle of a small untrained network; return its digest."""
    config = NetworkConfig(backbone="resnet18-narrow", map_stride=16)  # type: ignore[arg-type]
    preprocessing = PreprocessingConfig(image_side=SIDE_PX)
    info = BundleInfo(
        network=config,
        findings=FINDINGS,
        preprocessing=preprocessing,
        preprocessing_digest=preprocessing.digest(),
        calibration=calibration(),
    )
    info = replace(info, **changes)
    network = build_network(config, len(info.findings), seed=seed)
    digest = save_bundle(target, info, network, None)
    if reference is None:
        return digest
    return replace_info(target, target, reference.arrays, reference=reference.document)


@dataclass(frozen=True)
class World:
    """A folder with `inbox`, `models` and `results`; the last may lie elsewhere."""

    root: Path
    results_uri: str
    base_uri: str = ""
    """Folder or bucket that inbox and models are read from; empty for `root`."""

    @property
    def inbox(self) -> Path:
        """Folder of X-rays."""
        return self.root / "inbox"

    @property
    def addresses(self) -> Addresses:
        """As the flows take them."""
        return Addresses(
            inbox_uri=f"{self.base_uri or self.root}/inbox",
            models_uri=f"{self.base_uri or self.root}/models",
            results_uri=self.results_uri,
        )

    def with_results(self, name: str) -> "World":
        """Return the same inbox and models with other, empty results."""
        return World(self.root, str(self.root / name))

    def publish(self, seed: int = 0, **changes: Any) -> str:  # noqa: ANN401
        """Make a model the champion; return its digest."""
        models = self.root / "models"
        digest = make_bundle(models / "new", seed, **changes)
        shutil.rmtree(models / digest, ignore_errors=True)
        (models / "new").rename(models / digest)
        head = {"schema": 1, "kind": "champion", "digest": digest, "history": []}
        (models / "champion.json").write_text(json.dumps(head), encoding="utf-8")
        return digest

    def add_png(self, number: int, name: str | None = None) -> Path:
        """Put an X-ray into the inbox as PNG."""
        path = self.inbox / (name or f"x{number:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_phantom(number, 96, 3, 0.0).pixels)
        return path

    def add_dicom(
        self, number: int, name: str | None = None, header: Mapping[str, object] | None = None
    ) -> Path:
        """Put an X-ray into the inbox as DICOM, with identifiers that follow from its number."""
        path = self.inbox / (name or f"d{number:04d}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw_phantom(number, 96, 3, 0.0).pixels
        attributes: dict[str, object] = {
            "SOPInstanceUID": f"1.2.3.4.{number}",
            "StudyInstanceUID": f"1.2.3.5.{number}",
            "SeriesInstanceUID": f"1.2.3.6.{number}",
            "PatientID": f"patient-{number}",
            "PatientName": "SECRET^NAME",
            "ImagerPixelSpacing": [0.5, 0.25],
            "Manufacturer": "phantom",
        }
        data = encode_radiograph(
            pixels.astype(np.uint16), uid.ExplicitVRLittleEndian, attributes | dict(header or {})
        )
        path.write_bytes(data)
        return path

    def run(
        self,
        run_id: str = "test",
        results: ResultSettings | None = None,
        **plan: Any,  # noqa: ANN401
    ) -> tuple[PlanOutcome, Night | None]:
        """Run a night in this process."""
        settings = results or ResultSettings(quality=QualityConfig(check_inversion=False))
        config = PlanConfig(**{"settle_s": 0.0, "shard_size": 5, "results": settings, **plan})
        run = Run(run_id=f"{run_id}-{os.getpid()}")
        return nightly(self.addresses, config, SCORING, run)

    def results(self) -> dict[str, bytes]:
        """Return all files that a night leaves, without what says how long it took.

        That is a section of the report and the last five columns of the scores: cut off each line
        of CSV, and taken out of Parquet, whose remaining columns are written again.
        """
        store, prefix = open_store(self.results_uri)
        found = {}
        for info in store.list(prefix):
            name = info.key[len(prefix) :]
            if name.startswith(("scores/", "dicom/")):
                found[name] = _without_timings(name, store.get(info.key))
        return found

    def rows(self, prefix: str) -> list[list[str]]:
        """Return the lines of a CSV file of the last night, cells split, without the heading."""
        names = sorted(name for name in self.results() if f"/{prefix}" in name and "csv" in name)
        text = self.results()[names[-1]].decode()
        return [line.split(",") for line in text.splitlines()[1:]]

    def table(self, prefix: str) -> list[dict[str, str]]:
        """Return the rows of all CSV files of a kind, of all nights."""
        rows: list[dict[str, str]] = []
        for name, data in sorted(self.results().items()):
            if f"/{prefix}" in name and name.endswith(".csv"):
                rows += csv.DictReader(io.StringIO(data.decode()))
        return rows

    def scored_keys(self) -> list[str]:
        """Return the object keys of all scored X-rays, in the order of the files."""
        return [r["object_key"] for r in self.table("part-") if r["finding"] == FINDINGS[0]]


def make_world(root: Path, num_png: int = 0, num_dicom: int = 0) -> World:
    """Make a world with a published model and some X-rays."""
    (root / "inbox").mkdir(parents=True)
    (root / "models").mkdir()
    world = World(root, str(root / "results"))
    world.publish()
    for number in range(num_png):
        world.add_png(number)
    for number in range(num_png, num_png + num_dicom):
        world.add_dicom(number)
    return world
