"""The nightly run over 2048x2048 DICOM, against the script users start from and against its floor.

`python -m benchmarks.score` prints processor seconds an X-ray, children included, with one torch
thread, and the ratios. ResNet-50 with triplet attention at 224 pixels, random weights, the same for
all; operating thresholds such that one finding an X-ray is flagged and measured. The script's
attention is written as its publication writes it, as users have it; a further figure says what the
script takes with ours. Start-up counts on neither side: imports, loading the model, and for our run
what a night of a single X-ray costs, which is checking the champion twice and writing a report. The
floor is decoding the files and one forward pass with the maps of all findings, nothing else; it
runs before and after the night.
"""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydicom import uid

from benchmarks.peer_nightly import Peer, as_published, open_peer, run_peer
from chexradinet.config import Backbone, DicomConfig, NetworkConfig, PreprocessingConfig
from chexradinet.config.nightly import Device, PlanConfig, ScoreConfig
from chexradinet.dicom.reader import read_radiograph, to_model
from chexradinet.evaluation.calibration import Calibration, FindingCalibration, apply_calibration
from chexradinet.evaluation.reference import Population, build_reference
from chexradinet.findings import NIH_FINDINGS
from chexradinet.model import BundleInfo
from chexradinet.model.bundle import replace_info, save_bundle
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.nightly import Addresses
from chexradinet.nightly.run import nightly
from chexradinet.phantom import draw_phantom, encode_radiograph

SIDE = 2048
BATCH_SIZE = 16
NEEDED_PEER, NEEDED_DEFAULT, ALLOWED_FLOOR = 6.0, 30.0, 1.3
PREPROCESSING = PreprocessingConfig(image_side=224)


class Costs(NamedTuple):
    """Processor seconds an X-ray."""

    decode: float
    forward: float
    night: float
    start: float
    """A whole night of one X-ray, in seconds."""
    peer: float
    peer_default: float
    peer_lean: float
    """The script with 102 features and our form of the attention."""
    box_px: float
    """Mean side of the peer's boxes."""
    peak_mib: float
    """Most memory of this process once the night was over."""
    stored_kib: float
    """What the night left below its results, an X-ray, ledger included."""


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor time that a call takes, in this process and in those it waited for."""

    def spent() -> float:
        whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(who)[:2]) for who in whose)

    start = spent()
    call()
    return spent() - start


def decoding_seconds(results: Path) -> float:
    """Return what the worker process spent on X-rays, by the clock."""
    spent: dict[str, float] = {}
    for path in results.rglob("part-*.parquet"):
        table = pq.read_table(path, columns=["object_key", "read_s", "decode_s"])
        for row in table.to_pylist():
            spent[row["object_key"]] = row["read_s"] + row["decode_s"]
    return sum(spent.values())


def write_inbox(folder: Path, count: int) -> list[Path]:
    """Write enlarged phantoms as 12-bit files without compression; all differ."""
    folder.mkdir()
    random, paths = np.random.default_rng(0), []
    grain = random.integers(-24, 25, (SIDE, SIDE), dtype=np.int16)
    for number in range(count):
        drawn = draw_phantom(number, 512, 0, 0.0).pixels
        large = cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        stored = (4095 - 16 * large + np.roll(grain, 7 * number, axis=1)).clip(0, 4095)
        attributes = {
            "PhotometricInterpretation": "MONOCHROME1",
            "WindowCenter": 2048,
            "WindowWidth": 4096,
            "SOPInstanceUID": f"1.2.3.{number + 1}",
            "StudyInstanceUID": f"1.2.4.{number + 1}",
            "PatientID": str(number),
            "ImagerPixelSpacing": [0.17, 0.17],
        }
        paths.append(folder / f"{number:05d}.dcm")
        paths[-1].write_bytes(
            encode_radiograph(stored.astype(np.uint16), uid.ExplicitVRLittleEndian, attributes)
        )
    return paths


def decoded(paths: list[Path]) -> NDArray[np.uint8]:
    """Decode and shrink files, nothing else."""
    radiographs = (read_radiograph(path.read_bytes(), DicomConfig()) for path in paths)
    return np.stack([to_model(radiograph, PREPROCESSING)[0] for radiograph in radiographs])


def publish(models: Path, network: ChexRadiNet, images: NDArray[np.uint8]) -> None:
    """Make a network the champion, with a reference, and thresholds for one flag an image."""
    found = predict(network, lambda rows: images[rows], np.arange(len(images)), BATCH_SIZE)
    calibrations = {}
    for column, finding in enumerate(NIH_FINDINGS):
        slope = 1 / float(found.logits[:, column].std())
        intercept = -slope * float(found.logits[:, column].mean())
        top = np.quantile(found.logits[:, column], 1 - 1 / len(NIH_FINDINGS))
        threshold = float(1 / (1 + np.exp(-slope * top - intercept)))
        calibrations[finding] = FindingCalibration(
            status="platt", slope=slope, intercept=intercept, positives=20, negatives=20,
            threshold=threshold,
        )  # fmt: skip
    calibration = Calibration(
        findings=calibrations, split="validation", target_sensitivity=0.9, num_images=len(images)
    ).as_dict()
    preprocessing = PreprocessingConfig(image_side=images.shape[1])
    info = BundleInfo(
        network=network.config,
        findings=NIH_FINDINGS,
        preprocessing=preprocessing,
        preprocessing_digest=preprocessing.digest(),
        calibration=calibration,
    )
    save_bundle(models / "plain", info, network, None)
    reference = build_reference(
        Population(
            findings=NIH_FINDINGS,
            probabilities=apply_calibration(calibration, NIH_FINDINGS, found.logits),
            embeddings=found.embedding,
            patient_ids=list(range(len(images))),
        )
    )
    digest = replace_info(
        models / "plain", models / "made", reference.arrays, reference=reference.document
    )
    (models / "made").rename(models / digest)
    head = {"schema": 1, "kind": "champion", "digest": digest, "history": []}
    (models / "champion.json").write_text(json.dumps(head), encoding="utf-8")


def night(folder: Path, inbox: Path, name: str, expected: int) -> None:
    """Plan, score and collect in this process, as one core does."""
    addresses = Addresses(
        inbox_uri=str(inbox), models_uri=str(folder / "models"), results_uri=str(folder / name)
    )
    config = PlanConfig(settle_s=0.0)
    scoring = ScoreConfig(device=Device.CPU, num_threads=1, num_decoders=1)
    _, found = nightly(addresses, config, scoring)
    assert found is not None
    assert found.num_scored == expected
    print(f"night of {expected}: {sum(found.flagged.values())} flags", file=sys.stderr)


def measure(folder: Path, count: int, peer_count: int, default_count: int) -> Costs:
    """Measure all."""
    paths = write_inbox(folder / "inbox", count)
    write_inbox(folder / "single", 1)
    network = build_network(NetworkConfig(backbone=Backbone.RESNET50), len(NIH_FINDINGS), seed=0)
    network.eval()
    images = decoded(paths)
    publish(folder / "models", network, images)
    night(folder, folder / "single", "warm", 1)
    start = cpu_seconds(lambda: night(folder, folder / "single", "start", 1))
    floors = [_floor(network, paths, images)]
    whole = cpu_seconds(lambda: night(folder, folder / "inbox", "results", count))
    whole += decoding_seconds(folder / "results")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    files = [path for path in (folder / "results").rglob("*") if path.is_file()]
    stored_kib = sum(path.stat().st_size for path in files) / count / 1024
    floors.append(_floor(network, paths, images))
    decode, forward = np.mean(floors, axis=0)
    published = _published(network, images)
    peer, box_px = _peer(open_peer(published, with_shape=False), paths[:peer_count], folder / "p")
    default, _ = _peer(open_peer(published, with_shape=True), paths[:default_count], folder / "d")
    lean, _ = _peer(open_peer(network, with_shape=False), paths[:peer_count], folder / "l")
    return Costs(
        decode=decode,
        forward=forward,
        night=(whole - start) / (count - 1),
        start=start,
        peer=peer,
        peer_default=default,
        peer_lean=lean,
        box_px=box_px,
        peak_mib=peak_mib,
        stored_kib=stored_kib,
    )


def _published(network: ChexRadiNet, images: NDArray[np.uint8]) -> ChexRadiNet:
    published = as_published(network)
    with torch.inference_mode():
        some = normalise(torch.from_numpy(images[:2]))
        torch.testing.assert_close(published(some).logits, network(some).logits)
    return published


def _peer(peer: Peer, paths: list[Path], target: Path) -> tuple[float, float]:
    """Return the script's seconds an X-ray and the mean side of its boxes, after a warm-up."""
    target.mkdir()
    sides = run_peer(peer, paths[:1], target)
    spent = cpu_seconds(lambda: sides.extend(run_peer(peer, paths, target)))
    return spent / len(paths), float(np.mean(sides))


def _floor(
    network: ChexRadiNet, paths: list[Path], images: NDArray[np.uint8]
) -> tuple[float, float]:
    rows = np.arange(len(images))
    decode = cpu_seconds(lambda: decoded(paths))
    forward = cpu_seconds(lambda: predict(network, lambda rows: images[rows], rows, BATCH_SIZE))
    return decode / len(images), forward / len(images)


def report(costs: Costs) -> bool:
    """Print the figures; return whether each is as needed."""
    print(f"decode alone {1000 * costs.decode:.1f} ms, forward pass alone", end=" ")
    print(f"{1000 * costs.forward:.1f} ms an X-ray; a night of one X-ray {costs.start:.2f} s")
    floor = costs.decode + costs.forward
    lines = (
        ("peer, 102 features", costs.peer / costs.night, NEEDED_PEER, "at least"),
        ("peer, default features", costs.peer_default / costs.night, NEEDED_DEFAULT, "at least"),
        ("our decode and forward pass", costs.night / floor, ALLOWED_FLOOR, "at most"),
    )  # fmt: skip
    print(f"our night {1000 * costs.night:.1f} ms an X-ray; the peer's box {costs.box_px:.0f} px")
    print(f"peak memory {costs.peak_mib:.0f} MiB, stored {costs.stored_kib:.1f} KiB an X-ray")
    seconds = (costs.peer, costs.peer_default, floor)
    for (name, ratio, needed, kind), taken in zip(lines, seconds, strict=True):
        print(f"{name:28s}{1000 * taken:9.1f} ms an X-ray, x{ratio:.2f} ({kind} {needed})")
    lean = f"{1000 * costs.peer_lean:9.1f} ms an X-ray, x{costs.peer_lean / costs.night:.2f}"
    print(f"{'peer with our attention':28s}{lean}")
    return (
        lines[0][1] >= NEEDED_PEER
        and lines[1][1] >= NEEDED_DEFAULT
        and lines[2][1] <= ALLOWED_FLOOR
    )


def main() -> int:
    """Measure and print; return 1 where a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="of our night, 8 MB each")
    parser.add_argument("--peer-images", type=int, default=24)
    parser.add_argument("--peer-default-images", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING)
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(
            Path(folder), options.images, options.peer_images, options.peer_default_images
        )
    print(f"load {load:.1f} before; took {time.perf_counter() - started:.0f} s")
    print(
        f"{SIDE}x{SIDE} uncompressed, ResNet-50 at {PREPROCESSING.image_side}, map_stride "
        f"{NetworkConfig().map_stride} (the default), batch of {BATCH_SIZE}"
    )
    return int(not report(costs))


if __name__ == "__main__":
    sys.exit(main())
