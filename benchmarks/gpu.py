"""What training and inference do on an accelerator: one command, at most 6 minutes.

`python -m benchmarks.gpu` prints a Markdown table; `--device cpu --tiny` tries it without one, and
`--device cpu --parts precision` gives what float16 changes in inference.
It needs PyTorch, torchvision, safetensors, pandas, pyarrow, pydantic, Pillow and OpenCV, and
neither kfp nor SimpleITK nor pyradiomics. What a host lacks can lie in a folder on PYTHONPATH:
`pip install --target FOLDER --python-version 3.12 --only-binary :all: pydantic`.

Rates are images per second over a wall clock, median of a few timed runs after one warm-up; the
device is waited for at the end of each. Model FLOP utilisation counts the multiplications and
additions of forward and backward (three times the forward pass), over `--peak-tflops`. Put what
it prints into `results/gpu.md` with the commit; nothing there is written by hand.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import (
    NONE,
    NUM_FINDINGS,
    bare_steps,
    network_of,
    random_data,
    seconds_in_turns,
    whole_loop,
)
from chexradinet.config import Backbone, Precision, TrainConfig
from chexradinet.model.batches import TrainingData
from chexradinet.model.inference import folded, predict, predict_folded
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.model.training import fit
from chexradinet.phantom import iter_phantom
from chexradinet.phantom.chest import PHANTOM_FINDINGS


class Sizes(NamedTuple):
    """How large everything is."""

    backbone: Backbone
    sides: tuple[int, ...]
    train_batch: int
    loop_steps: int
    inference_batches: tuple[int, ...]
    phantom_images: int
    phantom_side: int
    phantom_epochs: int
    repeats: int


FULL = Sizes(Backbone.RESNET50, (224, 512), 256, 20, (1, 8, 64, 512), 1500, 128, 6, 5)
TINY = Sizes(Backbone.RESNET18_NARROW, (64,), 4, 2, (1, 2), 48, 64, 1, 1)


PARTS = ("training_rates", "loop", "precision", "inference")
"""Methods of `Bench`, in the order of the table."""


class _Plain(nn.Module):
    """The torchvision network of the same depth, with one input channel."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        known = {Backbone.RESNET50: torchvision.models.resnet50}
        self.net = known.get(backbone, torchvision.models.resnet18)(num_classes=NUM_FINDINGS)
        self.net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (B, F)."""
        logits: torch.Tensor = self.net(images)
        return logits


class _Logits(nn.Module):
    """Our network, of which only the logits are asked for."""

    def __init__(self, network: ChexRadiNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (B, F)."""
        return self.network(images).logits


class Bench:
    """Runs the parts on one device and formats what they give."""

    def __init__(self, device: str, sizes: Sizes, peak_tflops: float) -> None:
        self.device, self.sizes, self.peak = torch.device(device), sizes, peak_tflops * 1e12
        self.on_gpu = self.device.type == "cuda"

    def rows(self, parts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield a name and a figure for everything that is measured in some parts."""
        for part in parts:
            yield from getattr(self, part)()

    def seconds(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Return the seconds of each run, the device waited for."""

        def waited(run: Callable[[], object]) -> Callable[[], object]:
            def timed() -> None:
                run()
                if self.on_gpu:
                    torch.cuda.synchronize()

            return timed

        return seconds_in_turns(
            {name: waited(run) for name, run in runs.items()},
            self.sizes.repeats,
            time.perf_counter,
        )

    def training_rates(self) -> Iterator[tuple[str, str]]:
        """Yield images per second and utilisation of a step, plain and with attention."""
        for side in self.sizes.sides:
            batch = max(2, self.sizes.train_batch * min(self.sizes.sides) ** 2 // side**2)
            kinds = {
                "plain": _Plain(self.sizes.backbone),
                "attention": _Logits(network_of(self.sizes.backbone, 32)),
                "attention, map stride 16": _Logits(network_of(self.sizes.backbone, 16)),
            }
            steps = {name: self._step(network, batch, side) for name, network in kinds.items()}
            if self.on_gpu:
                compiled = _Logits(network_of(self.sizes.backbone, 32))
                compiled.compile()
                steps["attention, compiled"] = self._step(compiled, batch, side)
            taken = self.seconds(steps)
            for name, seconds in taken.items():
                flops = 3 * _flops(kinds.get(name, kinds["attention"]), side, self.device)
                rate = batch / seconds
                yield (
                    f"training step, {side} px, batch {batch}, {name}",
                    f"{rate:.0f} images/s, x{seconds / taken['plain']:.2f} of plain, "
                    f"{100 * rate * flops / self.peak:.1f}% of peak",
                )

    def _step(self, network: nn.Module, batch: int, side: int) -> Callable[[], None]:
        network.to(self.device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=self.on_gpu)
        images = torch.randn(batch, 1, side, side, device=self.device)
        labels = torch.randint(0, 2, (batch, NUM_FINDINGS), device=self.device).float()

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
                logits = network(images)
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def loop(self) -> Iterator[tuple[str, str]]:
        """Yield how much of the whole loop's time the bare step takes."""
        side, batch = min(self.sizes.sides), self.sizes.train_batch
        data = random_data(self.sizes.loop_steps * batch, side)
        config = TrainConfig(epochs=1, batch_size=batch)
        network = network_of(self.sizes.backbone, 32)
        taken = self.seconds(
            {
                "bare": bare_steps(network, data, config, self.device.type),
                "one epoch": whole_loop(network, data, config, self.device.type),
                "two epochs": whole_loop(network, data, config.changed(epochs=2), self.device.type),
            }
        )
        # Without what starting costs once: the digest of the run, images to the device.
        loop = taken["two epochs"] - taken["one epoch"]
        yield (
            f"whole loop, {side} px, batch {batch}",
            f"{len(data.rows) / loop:.0f} images/s, bare over loop {taken['bare'] / loop:.3f}",
        )

    def precision(self) -> Iterator[tuple[str, str]]:
        """Yield what bfloat16 changes: in training by mean AUROC; and float16 in inference."""
        data, held_out = _phantoms(self.sizes)
        config = TrainConfig(epochs=self.sizes.phantom_epochs, batch_size=32)
        # A CPU trains in float32 whatever is asked for.
        for name, mixed in (("bfloat16", True), ("float32", False))[0 if self.on_gpu else 1 :]:
            network = network_of(Backbone.RESNET18_NARROW, 16)
            started = time.perf_counter()
            chosen = config.changed(mixed_precision=mixed)
            fit(network, None, data, chosen, NONE, device=self.device.type)
            logits = predict(network, data.fetch, held_out, device=self.device.type).logits
            pairs = zip(data.labels[held_out].T, logits.T, strict=True)
            auroc = np.nanmean([_auroc(*pair) for pair in pairs])
            took = time.perf_counter() - started
            yield f"phantom, {name}", f"mean AUROC {auroc:.4f} after {took:.0f} s"
        yield (
            "phantom, inference in float16 against float32",
            self._inexact(network, data, held_out),
        )

    def _inexact(self, network: ChexRadiNet, data: TrainingData, held_out: np.ndarray) -> str:
        """Return how far float16 moves probabilities, and flags at thresholds of other images."""

        def probabilities(rows: np.ndarray, precision: Precision) -> np.ndarray:
            found = predict(network, data.fetch, rows, device=self.device.type, precision=precision)
            return np.asarray(1 / (1 + np.exp(-found.logits[:, : len(PHANTOM_FINDINGS)])))

        known = probabilities(data.rows, Precision.FLOAT32)
        positive = data.labels[data.rows, : known.shape[1]] == 1
        thresholds = np.nanquantile(np.where(positive, known, np.nan), 0.1, axis=0)
        exact, rough = (
            probabilities(held_out, precision)
            for precision in (Precision.FLOAT32, Precision.FLOAT16)
        )
        differing = int(((exact >= thresholds) != (rough >= thresholds)).sum())
        return (
            f"largest difference of a probability {np.abs(exact - rough).max():.4f}; "
            f"{differing} of {exact.size} flags differ, {int((exact >= thresholds).sum())} are set"
        )

    def inference(self) -> Iterator[tuple[str, str]]:
        """Yield images per second in both precisions, without and with maps of all findings."""
        side = min(self.sizes.sides)
        data = random_data(max(self.sizes.inference_batches), side)
        working = folded(network_of(self.sizes.backbone, 16)).to(self.device)
        for batch in self.sizes.inference_batches:
            rows = data.rows[:batch]
            images = data.fetch(rows)
            runs: dict[str, Callable[[], object]] = {
                f"{precision.value}, {what}": partial(
                    predict_folded, working, images, rows, maps=maps, precision=precision
                )
                for precision in (Precision.FLOAT32, Precision.FLOAT16)
                for what, maps in (("logits", False), ("maps", True))
            }
            taken = self.seconds(runs)
            for name in ("float32", "float16"):
                logits, maps = taken[f"{name}, logits"], taken[f"{name}, maps"]
                yield (
                    f"inference, {side} px, batch {batch}, {name}",
                    f"{batch / logits:.0f} images/s; with maps of {NUM_FINDINGS} findings "
                    f"x{maps / logits:.2f}",
                )


def _flops(network: nn.Module, side: int, device: torch.device) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, side, side, device=device))
    return int(counter.get_total_flops())


def _phantoms(sizes: Sizes) -> tuple[TrainingData, np.ndarray]:
    """Return phantoms, of which four fifths train, and the rows of the others."""
    drawn = list(iter_phantom(sizes.phantom_images, sizes.phantom_side, seed=0))
    labels = [[float(name in image.findings) for name in PHANTOM_FINDINGS] for image in drawn]
    padded = np.full((len(drawn), NUM_FINDINGS), np.nan, np.float32)
    padded[:, : len(PHANTOM_FINDINGS)] = labels
    edge = len(drawn) * 4 // 5
    images = np.stack([image.pixels for image in drawn])
    data = TrainingData(images=images, labels=padded, rows=np.arange(edge))
    return data, np.arange(edge, len(drawn))


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative; NaN without either."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not (len(positive) and len(negative)):
        return float("nan")
    above = positive[:, None] > negative[None, :]
    equal = positive[:, None] == negative[None, :]
    return float(np.mean(above + 0.5 * equal))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the script")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="bfloat16, dense")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --tiny tries the script without one")
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, peak {chosen.peak_tflops:.0f} TFLOP/s\n")
    print("| what | figure |\n|---|---|", flush=True)
    bench = Bench(chosen.device, TINY if chosen.tiny else FULL, chosen.peak_tflops)
    for what, figure in bench.rows(chosen.parts):
        print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
