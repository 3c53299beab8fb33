"""The networks of the paper's tables, and the costs that it prints for them.

Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, tables 1 to 4.
"""

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import torch
from torch import nn

from bbcu.model.methods import METHODS, Method
from bbcu.model.networks import assemble
from bbcu.model.parts import NetworkSpec

CHANNELS = 64
"""The width of the published networks, except the Lite ones."""

ALIGN = 130.0
"""The residual alignment of the published networks, for methods with ``align=auto`` and a binary part."""

MEDIUM = "bbcu binarize=[body,up]"
"""BBCU-M, which is BBCU with binary upsampling."""


@dataclass(frozen=True)
class Layout:
    """A network of the paper's tables without the options that a method sets."""

    network: str
    scale: int
    blocks: int
    colours: int = 3
    remark: str = ""

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that have this network, by what a user types; the baselines are not networks."""
        with_network = {name: method for name, method in METHODS.items() if "name" not in method.network}
        medium = dataclasses.replace(METHODS["bbcu"], levels={"binarize": ["body", "up"]})
        return {**with_network, MEDIUM: medium} if self.scale > 1 else with_network

    def network_of(self, method: Method) -> nn.Module:
        """Return the network at its published size, on the meta device: shapes without values."""
        levels = method.all_levels
        binarize = tuple(levels["binarize"])
        automatic = ALIGN if binarize else 1.0
        spec = NetworkSpec(
            scale=self.scale,
            channels=method.channels or CHANNELS,
            blocks=self.blocks,
            unit=method.unit,
            align=automatic if levels["align"] == "auto" else levels["align"],
            binarize=binarize,
            colours=self.colours,
            **method.network,
        )
        with torch.device("meta"):
            return assemble(self.network, spec)


LAYOUTS: Mapping[str, Layout] = {
    "SRResNet x2": Layout("srresnet", 2, 16, remark="Super-resolution, 64 channels and 16 blocks."),
    "SRResNet x3": Layout("srresnet", 3, 16, remark="Released with weights; in none of the paper's tables."),
    "SRResNet x4": Layout("srresnet", 4, 16, remark="Super-resolution with two upsampling convolutions."),
    "DnCNN": Layout("dncnn", 1, 9, remark="Denoising in colour, 64 channels and 20 layers (`blocks=9`)."),
    "DnCNN-3": Layout("dncnn", 1, 9, colours=1, remark="JPEG deblocking in gray, 64 channels and 20 layers."),
}

_BAM_REASON = "the paper adds 1.97 G and 1 K for the accumulation of bits, without a derivation"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("SRResNet x4", "full_precision"): "the paper prints 0.06 G more, without a derivation",
    ("SRResNet x2", "bam"): _BAM_REASON,
    ("SRResNet x4", "bam"): _BAM_REASON,
}
"""Why the paper's figure differs from the result of its own rule, by network and method."""


def published_costs() -> dict[tuple[str, str], dict[str, str]]:
    """Return the paper's rows (``name``, ``ops_g``, ``params_k`` as printed) by network and method."""
    text = resources.files("bbcu.model").joinpath("published_costs.csv").read_text(encoding="utf-8")
    return {(row["network"], row["method"]): row for row in csv.DictReader(text.splitlines())}
