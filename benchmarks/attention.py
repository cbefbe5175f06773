"""What triplet attention costs: a ResNet-50 with it against torchvision's without it, on one core.

`python -m benchmarks.attention` prints processor milliseconds per image for both, and the ratio.
They take turns in one process: one thread, inference mode, float32, batch norms folded into the
convolutions, one input channel for both. The plain network is timed in both memory layouts and its
better one counts. A training step (forward, backward, AdamW) of both at the same stride follows.

A second table has what a script pays that calls a network as it was trained, one image at a time:
forward pass and Grad-CAM of one finding, without attention, with ours, and with attention written
as its publication writes it. It tells which of the two a published timing was taken with.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional

from benchmarks.peer_nightly import Logits, as_published
from chexradinet.config import NetworkConfig
from chexradinet.model.inference import folded
from chexradinet.model.resnet import build_network

NUM_FINDINGS = 14
TARGET, TRAINING_TARGET = 1.2, 1.6
PLAIN, CHANNELS_LAST, OURS = "plain", "plain, channels last", "with triplet attention"
PUBLISHED = "the same, as published"


def networks(batch_size: int, side: int) -> dict[str, Callable[[], object]]:
    """Return one forward pass of each network, on random images of a side in pixels."""
    ours = folded(build_network(NetworkConfig(map_stride=32), NUM_FINDINGS))
    plain = _plain()
    channels_last = folded(plain)
    contiguous = folded(plain).to(memory_format=torch.contiguous_format)
    images = torch.randn(batch_size, 1, side, side)
    return {
        PLAIN: lambda: contiguous(images),
        CHANNELS_LAST: lambda: channels_last(images.to(memory_format=torch.channels_last)),
        OURS: lambda: ours(images),
    }


def _plain() -> torchvision.models.ResNet:
    plain = torchvision.models.resnet50(num_classes=NUM_FINDINGS)
    plain.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return plain


def training_steps(batch_size: int, side: int) -> dict[str, Callable[[], object]]:
    """Return one training step of each network, on random images and labels."""
    images = torch.randn(batch_size, 1, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (batch_size, NUM_FINDINGS)).float()

    def step_of(network: nn.Module) -> Callable[[], object]:
        network.to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

        def step() -> None:
            loss = functional.binary_cross_entropy_with_logits(network(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    ours = Logits(build_network(NetworkConfig(map_stride=32), NUM_FINDINGS))
    return {CHANNELS_LAST: step_of(_plain()), OURS: step_of(ours)}


class Script(NamedTuple):
    """How a script calls a network: one image, batch norms as trained."""

    forward: Callable[[], object]
    grad_cam: Callable[[], object]
    """Grad-CAM of one finding."""


def scripts(side: int) -> dict[str, Script]:
    """Return the calls of each network, by its name, on a random image of a side in pixels."""
    plain, ours = _plain(), build_network(NetworkConfig(map_stride=32), NUM_FINDINGS)
    published = as_published(ours)
    image = torch.randn(1, 1, side, side)
    return {
        PLAIN: _script(plain, plain.get_submodule("layer4.2"), image),
        OURS: _script(Logits(ours), ours.layer4[-1], image),
        PUBLISHED: _script(Logits(published), published.layer4[-1], image),
    }


def _script(network: nn.Module, last: nn.Module, image: torch.Tensor) -> Script:
    network.eval()
    grad_cam = GradCAM(network, [last])

    def forward() -> object:
        with torch.no_grad():
            return network(image)

    return Script(forward, lambda: grad_cam(image, [ClassifierOutputTarget(0)]))


def cpu_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median processor time of each run; they take turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8, help="images a forward pass")
    parser.add_argument("--side", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each network")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = cpu_seconds(networks(chosen.batch_size, chosen.side), chosen.repeats)
    print(
        f"ResNet-50, torch {torch.__version__}, batch of {chosen.batch_size} at {chosen.side} px, "
        f"median of {chosen.repeats}"
    )
    for name, seconds in found.items():
        print(f"{name:24s}{1000 * seconds / chosen.batch_size:8.1f} CPU ms an image")
    ratio = found[OURS] / min(found[PLAIN], found[CHANNELS_LAST])
    print(f"ratio {ratio:.2f} (target: at most {TARGET})")
    steps = cpu_seconds(training_steps(chosen.batch_size, chosen.side), chosen.repeats)
    for name, seconds in steps.items():
        print(f"{name:24s}{1000 * seconds / chosen.batch_size:8.1f} CPU ms per image of a step")
    ratio = steps[OURS] / steps[CHANNELS_LAST]
    print(f"training step: ratio {ratio:.2f} (target: at most {TRAINING_TARGET})")
    called = scripts(chosen.side)
    forward = cpu_seconds({name: script.forward for name, script in called.items()}, chosen.repeats)
    grad_cam = cpu_seconds(
        {name: script.grad_cam for name, script in called.items()}, chosen.repeats
    )
    print("one image at a time, not folded: forward pass, Grad-CAM of one finding, over plain")
    for name in called:
        print(
            f"{name:24s}{1000 * forward[name]:8.0f}{1000 * grad_cam[name]:8.0f} CPU ms"
            f"  x{forward[name] / forward[PLAIN]:.2f} x{grad_cam[name] / grad_cam[PLAIN]:.2f}"
        )


if __name__ == "__main__":
    main()
