"""Folders of trials, as far as a packed network is made from them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.model.records import OPTIONS
from bbcu.model.specs import UnitSpec

ALL = ("head", "body", "up", "tail")

LEVEL = 37.5 / 255
"""The noise level of the task of :data:`TASKS`."""


def newer_networks() -> dict[str, nn.Module]:
    """A small binary network of each kind but the first two, with levels and options that it treats apart."""
    scaled, without = UnitSpec(residual="scaled"), UnitSpec(residual=False)
    made = {
        "edsr": ("edsr", 4, ALL, {"unit": UnitSpec(residual="block", threshold="affine")}),
        "edsr, light tail": ("edsr", 3, ("head", "body", "tail"), {"tail": "light"}),
        "rcan": ("rcan", 2, ALL, {"groups": 1, "unit": UnitSpec(bn="post", act="first")}),
        "rdn": ("rdn", 2, ALL, {"layers": 2, "unit": scaled}),
        "drunet": ("drunet", 1, ALL, {"unit": without, "noise_level": LEVEL}),
        "unet": ("unet", 1, ALL, {"unit": UnitSpec(residual="block"), "noise_level": LEVEL}),
    }
    return {
        name: build(kind, NetworkSpec(scale, 8, 1, binarize=parts, align=8.0, **options), 0)
        for name, (kind, scale, parts, options) in made.items()
    }


TASKS = {1: {"name": "denoise", "sigma": [25.0], "train_sigma": [0.0, 75.0]}}


def facts_of(spec: NetworkSpec, name: str = "srresnet") -> dict[str, Any]:
    """What ``result.json`` says of the network with this spec."""
    levels = dataclasses.asdict(spec.unit)
    network = {"name": name, "unit": spec.unit_class, "initial": spec.initial}
    network |= {option: getattr(spec, option) for option in OPTIONS}
    return {
        "factors": {**levels.pop("extra"), **levels, "align": spec.align, "binarize": list(spec.binarize)},
        "reference": {},
        "setting": {
            "task": TASKS.get(spec.scale, {"name": f"sr_x{spec.scale}"}),
            "network": {**network, "accumulate": spec.accumulate, "standardise": spec.standardise},
            "channels": spec.channels,
            "blocks": spec.blocks,
        },
        "method": "custom",
    }


def trial_folder(folder: Path, network: nn.Module, facts: dict[str, Any]) -> Path:
    """Make the folder of a finished trial with this network."""
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "checkpoint.pt")
    (folder / "result.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder
