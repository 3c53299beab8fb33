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
"""The label of a method whose authors released no code."""

THIRD_PARTY = "reimplementation after a third party's code"
"""The label of a method that is known from the code of others than its authors."""


@dataclass(frozen=True)
class Method:
    """A published method: its source, the levels that differ from BBCU's, and its options of the network.

    ``title`` is what papers call a method that is in none of the BBCU paper's tables. ``channels`` is None if the
    method is used at any width. ``label`` stands behind the method's name wherever it is named, and is empty if its
    authors' code is known. ``remark`` is printed next to the method's results.
    """

    source: str
    levels: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    channels: int | None = None
    label: str = ""
    remark: str = ""

    @property
    def all_levels(self) -> dict[str, Any]:
        """The level of every factor: those of BBCU, the defaults of :class:`UnitSpec`, replaced by ``levels``."""
        unit = asdict(UnitSpec())
        del unit["extra"]
        return {**unit, "align": "auto", "binarize": ["body"], "start": "scratch", "distil": "none", **self.levels}

    @property
    def unit(self) -> UnitSpec:
        """The levels of its binary units."""
        return UnitSpec(**{name: level for name, level in self.levels.items() if name in UnitSpec.__dataclass_fields__})


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
        label=REIMPLEMENTATION,
        remark=f"{REIMPLEMENTATION}; no distillation, no receptive block",
    ),
    "bam": Method(
        "Xin et al., Binarized Neural Network for Single Image Super Resolution, ECCV 2020",
        {**_PLAIN, "residual": "block", "bn": "pre", "act_fn": "prelu", "surrogate": "clip"},
        network={"accumulate": True},
        label=REIMPLEMENTATION,
        remark=f"{REIMPLEMENTATION}; bits are accumulated, weights are not",
    ),
    "reactnet": Method("Liu et al., ReActNet, ECCV 2020", {"align": 1, "bn": "post", "act": "after"}),
    "bbcu": Method("Xia et al., Basic Binary Convolution Unit, ICLR 2023"),
    "recu": Method(
        "Xu et al., ReCU, ICCV 2021",
        {**_PLAIN, "bn": "post", "act": "after", "act_fn": "hardtanh", "weight": "recu"},
        title="ReCU",
        remark="without the division of activations by their deviation, which the sign does not see",
    ),
    "adabin": Method(
        "Tu et al., AdaBin, ECCV 2022",
        {"align": 1, "bn": "post", "act": "after", "act_fn": "maxout", "threshold": "adaptive", "weight": "adabin"},
        title="AdaBin",
    ),
    "e2fif": Method(
        "Song et al., E2FIF, TIP 2023",
        {**_PLAIN, "align": 255, "bn": "post", "act": "first", "act_fn": "leaky", "weight": "sign"},
        title="E2FIF",
    ),
    "reste": Method(
        "Wu et al., ReSTE, ICCV 2023",
        {**_PLAIN, "bn": "branch", "act_fn": "relu", "surrogate": "reste", "weight": "reste"},
        title="ReSTE",
    ),
    "bisr": Method(
        "Cai et al., Binarized Spectral Compressive Imaging (BiSR-Conv), NeurIPS 2023",
        {"align": 1, "threshold": "affine", "surrogate": "tanh"},
        title="BiSR-Conv",
    ),
    "r2b": Method(
        "Martinez et al., Real-to-Binary Networks, ICLR 2020",
        {**_PLAIN, "bn": "pre", "act_fn": "prelu", "surrogate": "clip", "weight": "plain", "rescale": "squeeze"},
        title="Real-to-Binary",
        label=THIRD_PARTY,
        remark=f"{THIRD_PARTY}; trained in one step, without its teachers",
    ),
    "dabc": Method(
        "Zhang et al., Binarized Low-light Raw Video Enhancement (BRVE), CVPR 2024",
        {"rescale": "statistics"},
        title="DABC",
    ),
    "ebsr": Method(
        "EBSR, arXiv 2303.12270 v1",
        {"align": 255, "act": "first", "act_fn": "leaky", "threshold": "dynamic", "weight": "l1mag", "rescale": "both"},
        title="EBSR",
        label=THIRD_PARTY,
        remark=f"{THIRD_PARTY}; a leaky ReLU of slope 0.1 in place of 0.01",
    ),
    "scales": Method(
        "SCALES, arXiv 2303.12270 v2",
        {"act": "none", "threshold": "elastic", "rescale": "both"},
        title="SCALES",
        label=REIMPLEMENTATION,
        remark=REIMPLEMENTATION,
    ),
    "frb": Method(
        "FRB, ICML 2024",
        {"weight": "srb", "distil": "attention"},
        title="FRB",
        label=REIMPLEMENTATION,
        remark=f"{REIMPLEMENTATION}; BBCU's unit around its second-order weights",
    ),
}
