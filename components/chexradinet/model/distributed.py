"""Several processes that train one network: each computes its part of a batch, all know the whole.

What a process holds of a batch is joined with what the others hold before the loss is taken, so
every process has the loss of the whole batch, with every pair of image and region in it. The
gradient that comes back is that of all processes' losses together; `DistributedDataParallel` takes
the mean over the processes, which is the gradient of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from chexradinet.model.resnet import Prediction


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    """Place among them, from 0."""
    size: int = 1
    """How many there are."""

    @classmethod
    def current(cls) -> "Ranks":
        """Return the place in the process group that was set up, or that of a process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_writer(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's share of so many images: consecutive, sizes equal up to one."""
        base, extra = divmod(count, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))

    def agree(self, wish: bool, device: torch.device) -> bool:
        """Return whether any process has the wish; all must ask at the same place."""
        if self.size == 1:
            return wish
        flag = torch.tensor(float(wish), device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag.item())

    def average_gradients(self, module: nn.Module) -> None:
        """Give all processes the mean of their gradients of a module outside of the network's."""
        for parameter in module.parameters() if self.size > 1 else ():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def joined(self, own: Prediction, count: int) -> Prediction:
        """Return the prediction of a whole batch from this process's share of it."""
        if self.size == 1:
            return own
        share = self.share(count)
        return Prediction(*(_joined(part, share.start, count) for part in own))


def _joined(part: Tensor, start: int, count: int) -> Tensor:
    whole = part.new_zeros((count, *part.shape[1:]))
    whole[start : start + len(part)] = part
    return _summed(whole)


def _summed(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; its gradient is the sum of theirs."""
    found: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def synchronised_norms(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Let batch norms take their statistics over all processes, until the block ends.

    Args:
        network: Its `BatchNorm2d` modules are replaced by others with the same tensors.
        device: Where the network is; torch's own module works on accelerators only.
    """
    kind = _SynchronisedNorm if device.type == "cpu" else nn.SyncBatchNorm
    replaced = [
        (owner, name, norm)
        for owner in network.modules()
        for name, norm in owner.named_children()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    for owner, name, norm in replaced:
        twin = kind(norm.num_features, norm.eps, norm.momentum)
        twin.__dict__.update(_parameters=norm._parameters, _buffers=norm._buffers)
        owner.add_module(name, twin.train(norm.training))
    try:
        yield
    finally:
        for owner, name, norm in replaced:
            owner.add_module(name, norm)


class _SynchronisedNorm(nn.BatchNorm2d):
    """Batch norm over all processes on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, C, H, W) of this process, normalised by the statistics of all."""
        if not self.training:
            return super().forward(inputs)
        exact = inputs.double()
        number = exact.new_full((1,), inputs.numel() / self.num_features)
        sums = torch.cat((exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3)), number))
        width = self.num_features
        found = _summed(sums)
        total, squares, count = found[:width], found[width:-1], found[-1]
        mean = total / count
        variance = squares / count - mean.square()
        with torch.no_grad():
            self._remember(mean, variance * count / (count - 1))
        scaled = (exact - mean[:, None, None]) * (variance + self.eps).rsqrt()[:, None, None]
        whole: Tensor = scaled.to(inputs.dtype) * self.weight[:, None, None]
        return whole + self.bias[:, None, None]

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
