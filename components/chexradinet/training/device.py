"""What a stage says when the accelerator that it asked for is not there."""

import logging

import torch

_log = logging.getLogger(__name__)


def check_accelerator(accelerator_type: str, accelerators: str | int) -> bool:
    """Tell whether the stage has what it asked for, and warn where it will run on the processor.

    Args:
        accelerator_type: Kubernetes resource name, `nvidia.com/gpu` say; empty asks for none.
        accelerators: How many were asked for.
    """
    asked = bool(accelerator_type) and int(accelerators) > 0
    if asked and not torch.cuda.is_available():
        _log.warning(
            "asked for %s x %s, but torch sees no accelerator: this stage runs on the processor; "
            "check the node's driver and device plug-in, or set accelerator_count to 0",
            accelerators,
            accelerator_type,
        )
        return False
    return True
