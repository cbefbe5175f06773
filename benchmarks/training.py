"""The whole training loop against a bare forward, backward and step on tensors that lie ready.

`python -m benchmarks.training` prints processor seconds of both on a CPU, and the part of the
loop's time that the bare step takes: 1 is a loop that costs nothing. Both train equal networks; the
loop also orders, reads and augments the images, mixes the loss, keeps sums and the schedule. After
each step of the loop follows one bare step, so that both see the same machine, whatever else runs
on it; the ratio is the median over such pairs. What starting costs once (digest of the run, state
of the optimiser) is printed on its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from chexradinet.config import (
    Backbone,
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    TrainConfig,
)
from chexradinet.model.batches import TrainingData
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.model.training import fit

NUM_FINDINGS = 14
TARGET = 0.95
NONE = GuidanceConfig(guidance=GuidanceRecipe.NONE)


def random_data(number: int, side: int) -> TrainingData:
    """Return noise with random labels."""
    generator = np.random.default_rng(0)
    return TrainingData(
        images=generator.integers(0, 256, (number, side, side), np.uint8),
        labels=generator.integers(0, 2, (number, NUM_FINDINGS)).astype(np.float32),
        rows=np.arange(number),
    )


def network_of(backbone: Backbone, map_stride: int) -> ChexRadiNet:
    """Return the classifier to train."""
    return build_network(NetworkConfig(backbone=backbone, map_stride=map_stride), NUM_FINDINGS, 0)


def whole_loop(
    network: ChexRadiNet, data: TrainingData, config: TrainConfig, device: str
) -> Callable[[], object]:
    """Return a training with everything that `fit` does in it."""
    return lambda: fit(network, None, data, config, NONE, device=device)


def bare_steps(
    network: ChexRadiNet, data: TrainingData, config: TrainConfig, device: str
) -> Callable[[], None]:
    """Return as many steps without a loop around them: one batch, used again and again."""
    place = torch.device(device)
    on_gpu = place.type == "cuda"
    network.to(place).to(memory_format=torch.channels_last).train()
    rows = data.rows[: config.batch_size]
    images = normalise(torch.as_tensor(data.fetch(rows)).to(place))
    labels = torch.from_numpy(data.labels[rows]).to(place)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=on_gpu)

    def steps() -> None:
        for _ in range(config.epochs * len(data.rows) // config.batch_size):
            with torch.autocast(place.type, torch.bfloat16, enabled=on_gpu):
                logits = network(images).logits
            loss = functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return steps


def seconds_in_turns(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the median time of each run; they take turns, after one warm-up each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if repeat:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def step_seconds(
    network: ChexRadiNet, data: TrainingData, config: TrainConfig, bare: Callable[[], object]
) -> tuple[float, NDArray[np.float64]]:
    """Train; return the seconds before the first step ends, and those of each further step.

    Args:
        network: Trained in place, on the CPU.
        data: Images and labels.
        config: Schedule.
        bare: A step without the loop, done after each of the loop's.

    Returns:
        Seconds of the start, and of the loop's and the bare steps, shape (steps - 1, 2).
    """
    pairs: list[tuple[float, float]] = []
    started = time.process_time()

    def after_step(*_: object) -> None:
        nonlocal started
        ended = time.process_time()
        bare()
        now = time.process_time()
        pairs.append((ended - started, now - ended))
        started = now

    fit(network, None, data, config, NONE, progress=after_step, device="cpu")
    return pairs[0][0], np.array(pairs[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=Backbone.RESNET18.value)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=8, help="optimisation steps of an epoch")
    parser.add_argument("--epochs", type=int, default=12)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = random_data(chosen.steps * chosen.batch_size, chosen.side)
    config = TrainConfig(epochs=chosen.epochs, batch_size=chosen.batch_size)
    backbone = Backbone(chosen.backbone)
    one_batch = random_data(chosen.batch_size, chosen.side)
    bare = bare_steps(network_of(backbone, 32), one_batch, config.changed(epochs=1), "cpu")
    start, pairs = step_seconds(network_of(backbone, 32), data, config, bare)
    loop_ms, bare_ms = 1e3 * np.median(pairs, axis=0) / chosen.batch_size
    ratios = pairs[:, 1] / pairs[:, 0]
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    print(f"bare: {bare_ms:.1f} CPU ms per image, loop: {loop_ms:.1f}; {start:.2f} s to start")
    print(
        f"bare over loop: {middle:.3f} (target: at least {TARGET}); half of {len(ratios)} pairs "
        f"lie in {low:.3f} to {high:.3f}"
    )


if __name__ == "__main__":
    main()
