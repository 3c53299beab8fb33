"""Folders of trials, as far as a packed network is made from them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bbcu.model.parts import NetworkSpec

TASKS = {1: {"name": "denoise", "sigma": [25.0], "train_sigma": [0.0, 75.0]}}


def facts_of(spec: NetworkSpec, name: str = "srresnet") -> dict[str, Any]:
    """What ``result.json`` says of the network with this spec."""
    levels = dataclasses.asdict(spec.unit)
    network = {"name": name, "unit": spec.unit_class, "initial": spec.initial}
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
