"""The reference backend: torch runs the packed network's own modules."""

import torch
from torch import Tensor, nn

from bbcu.deploy.backends import Runner


def missing() -> str | None:
    """Return None: torch runs everywhere."""
    return None


def prepare(packed: nn.Module) -> Runner:
    """Return what runs ``packed`` in torch, uncompiled."""

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = packed(x.contiguous(memory_format=torch.channels_last))
        return output

    return run
