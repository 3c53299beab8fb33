"""How many trials share the GPUs of this machine, by the memory that earlier trials of the sweep needed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ablations.trial.footprint import GPU_MIB, GPU_RESERVED_MIB

DRIVER_MIB = 600
"""What a process holds on a GPU besides the memory that PyTorch reserves: the driver's context and its libraries."""

USABLE = 0.9
"""The part of a GPU that trials may fill. The rest is for trials that need more than those before them."""


@dataclass(frozen=True)
class GpuShare:
    """The trials that run at once on ``gpus`` GPUs: one on each, and more while they fit and ``cores`` are left.

    ``per_gpu`` is how many of the largest trial so far fit on one GPU, and None until one has ended. ``most`` bounds it
    after a GPU ran out of memory.
    """

    gpus: int
    cores: int
    per_gpu: int | None = None
    most: int | None = None

    @property
    def at_once(self) -> int:
        """One trial a GPU until the memory of one is known."""
        fitting = [count for count in (self.per_gpu or 1, self.most) if count is not None]
        return max(self.gpus, min(self.cores, self.gpus * min(fitting)))

    @property
    def is_measured(self) -> bool:
        return self.per_gpu is not None

    def after_trial(self, timing: Mapping[str, float]) -> "GpuShare":
        """Return the share after a trial with these ``timing`` values of its result, which may lack those of a GPU."""
        if GPU_RESERVED_MIB not in timing or GPU_MIB not in timing:
            return self
        fitting = int(USABLE * timing[GPU_MIB] / (timing[GPU_RESERVED_MIB] + DRIVER_MIB))
        return dataclasses.replace(self, per_gpu=max(1, min(fitting, self.per_gpu or fitting)))

    def after_out_of_memory(self) -> "GpuShare":
        """Return the share after a trial found no memory: half as many on each GPU as there were."""
        return dataclasses.replace(self, most=max(1, self.at_once // self.gpus // 2))
