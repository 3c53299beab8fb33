"""The published methods as levels of the factors: what ``method=NAME`` sets.

Plain data, so that a report can find the method of a result without building a network.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bbcu.model.specs import UnitSpec

BASELINE = "baseline"
"""The ``network.name`` of a method that is not trained: its output is that of the task's baseline."""

REIMPLEMENTATION = "reimplementation from the abstract"


@dataclass(frozen=True)
class Method:
    """A published method: its source, the levels that differ from BBCU's, and its options of the network.

    ``channels`` is None if the method is used at any width. ``remark`` is printed next to the method's results.
    """

    source: str
    levels: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    remark: str = ""

    @property
    def all_levels(self) -> dict[str, Any]:
        """The level of every factor: those of BBCU, the defaults of :class:`UnitSpec`, replaced by ``levels``."""
        unit = asdict(UnitSpec())
        del unit["extra"]
        return {**unit, "align": "auto", "binarize": ["body"], "start": "scratch", "distil": "none", **self.levels}


_PLAIN = {"align": 1, "threshold": False}

METHODS: dict[str, Method] = {
    "full_precision": Method("the networks of the paper in full precision", {"binarize": []}),
    "bicubic": Method("bicubic interpolation with a = -0.75", {"binarize": []}, network={"name": BASELINE}),
    "identity": Method("the input as it is", {"binarize": []}, network={"name": BASELINE}),
    "lite": Method("the full-precision network with 12 channels", {"binarize": []}, channels=12),
    "bnn": Method(
        "Hubara et al., Binarized Neural Networks, NeurIPS 2016",
        {**_PLAIN, "residual": "block", "bn": "post", "act_fn": "hardtanh", "surrogate": "clip", "weight": "plain"},
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
