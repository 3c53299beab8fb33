"""The published methods as points of the factor space; ``conf/method/`` holds the same for the command line.

Pure data, so that a result can be told which method it is without a network being built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BBCU: dict[str, Any] = {
    "residual": True,
    "bn": "none",
    "act": "inside",
    "act_fn": "rprelu",
    "align": "auto",
    "binarize": ["body"],
    "threshold": True,
    "surrogate": "quadratic",
    "weight": "l1",
}

REIMPLEMENTATION = "reimplementation from the abstract"


@dataclass(frozen=True)
class Method:
    """A method's levels where they differ from BBCU's, what it sets of the network, and its source.

    ``remark`` is shown wherever the method's numbers are.
    """

    source: str
    levels: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    remark: str = ""

    @property
    def all_levels(self) -> dict[str, Any]:
        """A level for every factor."""
        return {**BBCU, **self.levels}


_PLAIN = {"align": 1, "threshold": False}

METHODS: dict[str, Method] = {
    "full_precision": Method("the networks of the paper, nothing binary", {"binarize": []}),
    "bicubic": Method("bicubic interpolation with a = -0.75", {"binarize": []}, network={"name": "baseline"}),
    "identity": Method("the input as it is", {"binarize": []}, network={"name": "baseline"}),
    "lite": Method("the full-precision network with 12 channels", {"binarize": []}, channels=12),
    "bnn": Method(
        "Hubara et al., Binarized Neural Networks, NeurIPS 2016",
        {
            **_PLAIN,
            "residual": "block",
            "bn": "post",
            "act_fn": "hardtanh",
            "surrogate": "clip",
            "weight": "plain",
        },
    ),
    "bireal": Method("Liu et al., Bi-Real Net, ECCV 2018", {**_PLAIN, "bn": "post", "act": "none"}),
    "irnet": Method(
        "Qin et al., IR-Net, CVPR 2020",
        {**_PLAIN, "bn": "post", "act": "after", "act_fn": "hardtanh", "surrogate": "ede", "weight": "irnet"},
    ),
    "btm": Method(
        "Jiang et al., Training Binary Neural Network without Batch Normalization, AAAI 2021",
        {**_PLAIN, "residual": "block", "act_fn": "prelu"},
        network={"initial": "xavier", "standardise": True},
        remark=f"{REIMPLEMENTATION}; no distillation, no receptive block",
    ),
    "bam": Method(
        "Xin et al., Binarized Neural Network for Single Image Super Resolution, ECCV 2020",
        {**_PLAIN, "residual": "block", "bn": "pre", "act_fn": "prelu", "surrogate": "clip"},
        network={"accumulate": True},
        remark=f"{REIMPLEMENTATION}; bits are accumulated, weights are not",
    ),
    "reactnet": Method("Liu et al., ReActNet, ECCV 2020", {"align": 1, "bn": "post", "act": "after"}),
    "bbcu": Method("Xia et al., Basic Binary Convolution Unit, ICLR 2023"),
}
