"""The networks of the paper's tables, and the costs that it prints for them.

Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, tables 1 to 4.
"""

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

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


# --- other networks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """What was printed of a network elsewhere: K of parameters, G of operations for ``size``, or either alone.

    ``size`` is width and height of the input in pixels, and ``note`` says why the figure differs, if it does.
    """

    source: str
    params_k: str = ""
    ops_g: str = ""
    size: tuple[int, int] = (320, 180)
    note: str = ""


@dataclass(frozen=True)
class Backbone:
    """A network that others publish: its layout, the sets of parts that are binary on the page, and what is printed.

    What is printed is of the network in full precision, with biases.
    """

    network: str
    layout: Mapping[str, Any]
    remark: str
    parts: tuple[tuple[str, ...], ...] = ((), ("body",), ("body", "up"))
    printed: tuple[Printed, ...] = ()

    def assembled(self, parts: tuple[str, ...]) -> nn.Module:
        """Return the network with these parts binary, of the reference's units, on the meta device."""
        with torch.device("meta"):
            return assemble(self.network, NetworkSpec(**self.layout, binarize=parts))


_EDSR: Mapping[str, Any] = {"channels": 64, "blocks": 16}
_README = "README of EDSR-PyTorch"

BACKBONES: Mapping[str, Backbone] = {
    "EDSR x2": Backbone(
        "edsr",
        {"scale": 2, **_EDSR},
        "EDSR-baseline: 64 channels and 16 blocks.",
        printed=(
            Printed(_README, "1370"),
            Printed("table 1 of ASSL, Zhang et al., NeurIPS 2021", "1369.9", "316.3", (640, 360)),
        ),
    ),
    "EDSR x3": Backbone("edsr", {"scale": 3, **_EDSR}, "EDSR-baseline.", printed=(Printed(_README, "1550"),)),
    "EDSR x4": Backbone("edsr", {"scale": 4, **_EDSR}, "EDSR-baseline.", printed=(Printed(_README, "1520"),)),
    "RCAN x4": Backbone(
        "rcan",
        {"scale": 4, "channels": 64, "blocks": 20, "groups": 10},
        "10 groups of 20 blocks. The attention of the channels stays in full precision.",
        ((), ("body",)),
        (Printed("as later papers quote it", "15592", "917.6", note="0.08 % more: it counts something besides"),),
    ),
    "RDN x2": Backbone(
        "rdn",
        {"scale": 2, "channels": 64, "blocks": 16, "layers": 8},
        "16 blocks of 8 convolutions of 64 channels.",
        printed=(Printed("as remembered, not read again", "22123", "5096.2", (640, 360)),),
    ),
    "DRUNet": Backbone(
        "drunet",
        {"scale": 1, "channels": 64, "blocks": 4},
        "Denoising in colour, on 320 x 184 pixels: sides are multiples of 8.",
    ),
    "U-Net": Backbone(
        "unet", {"scale": 1, "channels": 24, "blocks": 1}, "The U-Net of BRVE for one picture: 24, 48 and 96 channels."
    ),
}
"""The networks that the field compares on besides those of the paper, at their published sizes."""
