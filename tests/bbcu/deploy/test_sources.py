"""Which network a command is about, and what is said of a path or a name that is none."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bbcu
from ablations.space.cells import canonical_levels
from ablations.space.rules import Backbone
from bbcu.deploy.file import save
from bbcu.deploy.packed import DeployError, PackedUnit, pack
from bbcu.deploy.sources import Source, as_trained, find, twin_of
from bbcu.errors import BbcuError, ConfigError
from bbcu.model import checkpoints
from bbcu.model.checkpoints import CheckpointError, to_released_state
from bbcu.model.methods import METHODS
from bbcu.model.networks import NETWORKS, DnCNN, SRResNet
from bbcu.model.parts import Body, NetworkSpec, RestorationNetwork, binary_units
from bbcu.model.records import OF_NETWORK, OF_TRAINING
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit
from tests.bbcu.deploy.test_file import unpaired
from tests.harness.builders import dncnn, drawn, perturbed, srresnet
from tests.harness.deployed import LEVEL, facts_of, newer_networks, trial_folder

SMALL = ["channels=8", "blocks=1"]
WITH_NETWORK = [name for name, method in METHODS.items() if "name" not in method.network]


def spec_of(source: Source) -> NetworkSpec:
    assert isinstance(source.network, RestorationNetwork)
    assert not source.network.training
    return source.network.spec


# --- methods ----------------------------------------------------------------------------------------------------------


def test_a_method_is_that_of_the_paper_with_the_initial_values_of_seed_zero() -> None:
    source = find("bbcu")
    assert source.name == "bbcu"
    assert not source.is_packed
    assert spec_of(source) == NetworkSpec(2, 64, 16, align=130.0)
    expected = srresnet(channels=64, blocks=16, align=130.0)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in source.network.state_dict().items())


@pytest.mark.parametrize("network", ["srresnet", "dncnn"])
@pytest.mark.parametrize("name", WITH_NETWORK)
def test_a_method_has_the_levels_that_a_trial_of_it_has(name: str, network: str) -> None:
    spec = spec_of(find(name, ["task=sr_x3" if network == "srresnet" else "task=jpeg", "blocks=1"]))
    levels = canonical_levels(METHODS[name].all_levels, Backbone(network, spec.channels)).factors
    assert (spec.align, spec.binarize) == (levels["align"], levels["binarize"])
    if spec.binarize:
        others = (*OF_NETWORK, *OF_TRAINING)
        assert spec.unit == UnitSpec.of({name: level for name, level in levels.items() if name not in others})
    options = {"initial": "torch", "accumulate": False, "standardise": False} | METHODS[name].network
    assert {option: getattr(spec, option) for option in options} == options
    assert spec.channels == (12 if name == "lite" else 64)
    assert (spec.scale, spec.colours) == ((3, 3) if network == "srresnet" else (1, 1))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("binarize=[body,up]", {"binarize": ("body", "up")}),
        ("binarize=[up, body]", {"binarize": ("body", "up")}),
        ("binarize=[]", {"binarize": (), "align": 1.0}),
        ("task=sr_x4", {"scale": 4}),
        ("channels=12", {"channels": 12, "align": 24.375}),
        ("blocks=2", {"blocks": 2}),
        ("align=2.5", {"align": 2.5}),
        ("align=1", {"align": 1}),
        ("align=auto", {"align": 16.25}),
        ("bn=post", {"unit": UnitSpec(bn="post"), "align": 1.0}),
        ("residual=False", {"unit": UnitSpec(residual=False)}),
        ("residual=block", {"unit": UnitSpec(residual="block")}),
        ("act=after", {"unit": UnitSpec(act="after")}),
        ("act_fn='prelu'", {"unit": UnitSpec(act_fn="prelu")}),
        ("threshold=false", {"unit": UnitSpec(threshold=False)}),
        ("surrogate=ede", {"unit": UnitSpec(surrogate="ede")}),
        ("weight=plain", {"unit": UnitSpec(weight="plain")}),
        ("network.initial=xavier", {"initial": "xavier"}),
        ("network.accumulate=true", {"accumulate": True}),
        ("network.standardise=true", {"standardise": True}),
        ("network.groups=3", {"groups": 3}),
        ("network.layers=3", {"layers": 3}),
        ("start=two_step", {}),
        ("distil=output", {}),
        ("rescale=box", {"unit": UnitSpec(rescale="box")}),
        ("threshold=affine", {"unit": UnitSpec(threshold="affine")}),
        ("network.unit=tests.bbcu.deploy.test_sources.OwnUnit", {"unit_class": f"{__name__}.OwnUnit"}),
    ],
)
def test_an_override_changes_what_it_names(override: str, expected: dict[str, Any]) -> None:
    source = find("bbcu", [*SMALL, override])
    plain = NetworkSpec(2, 8, 1, align=16.25)
    assert spec_of(source) == NetworkSpec(**{**vars(plain), **expected})
    assert source.name == f"bbcu channels=8 blocks=1 {override}"


def test_a_task_of_the_same_size_has_a_dncnn_of_twenty_layers() -> None:
    colour, gray = (
        find("bbcu", ["task=denoise", "channels=8"]),
        find("bbcu", ["task=jpeg", "network=dncnn", "blocks=1"]),
    )
    assert isinstance(colour.network, DnCNN)
    assert len(binary_units(colour.network)) == 20 - 2
    assert (spec_of(colour).colours, spec_of(gray).colours) == (3, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_its_published_size(network: str) -> None:
    task = "denoise" if network in ("dncnn", "drunet", "unet") else "sr_x2"
    spec = spec_of(find("bbcu", [f"network={network}", f"task={task}", *([] if network == "unet" else ["channels=2"])]))
    published = {"srresnet": 16, "dncnn": 9, "edsr": 16, "rcan": 20, "rdn": 16, "drunet": 4, "unet": 1}
    assert (spec.blocks, spec.channels) == (published[network], 24 if network == "unet" else 2)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("bbcu", ["chanels=8"], r"unknown key 'chanels' \(did you mean channels\?\); valid: residual, bn, .*, blocks"),
        ("bbcu", ["train.steps=8"], "unknown key 'train.steps'"),
        ("bbcu", ["channels"], "channels: a key has a value"),
        ("bbcu", ["bn=before"], "bn: unknown level 'before'.* valid: none, pre, post, branch, out"),
        ("bbcu", ["bn=[pre]"], "bn: unknown level"),
        ("bbcu", ["residual=1"], "residual: unknown level '1'.* valid: true, false, block"),
        ("bbcu", ["surrogate=step"], "unknown surrogate 'step'.* valid: quadratic"),
        ("bbcu", ["surrogate=[ede]"], "surrogate=.*: must be a name"),
        ("bbcu", ["network.unit=[a]"], "network.unit=.*: must be a name"),
        ("bbcu", ["network.accumulate=1"], "network.accumulate=1: must be true or false"),
        ("bbcu", ["binarize=body"], r"binarize=body: must be any of head, body, up, tail, as in \[body,up\]"),
        ("bbcu", ["binarize=[body,trunk]"], "binarize=.*trunk.*: must be any of"),
        ("bbcu", ["binarize=[body"], r"binarize=\[body: the list has no end"),
        ("bbcu", ["binarize=[up]", "task=jpeg"], "binarize: a DnCNN has no upsampling"),
        ("bbcu", ["network=dncnn"], "network=dncnn: its output has the size of its input"),
        ("bbcu", ["network=vdsr"], "unknown network 'vdsr'.*; valid: srresnet, dncnn, edsr, .*unet"),
        ("bbcu", ["network=unet"], "network=unet: its output has the size of its input"),
        ("bbcu", ["network=edsr", "task=jpeg"], "network=edsr: it enlarges by 2, 3 or 4"),
        ("bbcu", ["task=derain"], "unknown task 'derain'; valid: sr_x2"),
        ("bbcu", ["channels=0"], "channels=0: must be a whole number from 1 to 4096"),
        ("bbcu", ["channels=wide"], "channels=wide: must be a whole number"),
        ("bbcu", ["blocks=1001"], "blocks=1001: must be a whole number from 0 to 1000"),
        ("bbcu", ["align=0"], "align=0: must be a positive number"),
        ("bbcu", ["align=nan"], "align=nan: must be a positive number"),
        ("bbcu", [f"align={'9' * 5000}"], "align=inf: must be a positive number"),
        ("bicubic", [], "bicubic has no network; methods that have one: full_precision, lite, .*, bbcu"),
    ],
)
def test_a_wrong_override_is_refused_with_what_is_valid(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(name, overrides)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_packed_file_is_loaded_packed(tmp_path: Path) -> None:
    network = pack(srresnet())
    save(network, tmp_path / "net")
    source = find(str(tmp_path / "net"))
    assert (source.name, source.is_packed) == (str(tmp_path / "net"), True)
    assert all(isinstance(unit, PackedUnit) for unit in binary_units(source.network))


def test_a_released_checkpoint_has_the_alignment_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(to_released_state(srresnet()), path)
    assert spec_of(find(str(path))).align == 130
    assert spec_of(find(str(path), ["align=2"])).align == 2
    with pytest.raises(ConfigError, match="align=-2: must be a positive number"):
        find(str(path), ["align=-2"])
    with pytest.raises(ConfigError, match="unknown key 'bn'; valid: align"):
        find(str(path), ["bn=pre"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file or folder; .* or a method: full_precision, .*, bbcu"),
        (os.mkdir, r"not the folder of a finished trial or cell: it has no result\.json"),
        (os.mkfifo, "neither a folder nor a regular file"),
        (lambda path: path.write_text("a text"), "not a packed network"),
        (
            lambda path: path.write_bytes(b"PK\3\4 and no zip"),
            "not a checkpoint, or one that contains more than tensors",
        ),
        (
            lambda path: (path / "seed0").mkdir(parents=True),
            "not the folder of a finished trial or cell: none of its seeds is",
        ),
    ],
    ids=["nothing", "folder", "pipe", "text", "no zip", "unfinished"],
)
def test_a_path_of_no_network_is_refused_in_one_line(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "it")
    with pytest.raises(BbcuError, match=f"it: {message}"):
        find(str(tmp_path / "it"))


# --- trials -----------------------------------------------------------------------------------------------------------

KEY, OTHER = "3fa9c8" + "0" * 58, "3fb" + "0" * 61


class OwnUnit(BinaryUnit):
    pass


class OwnNetwork(SRResNet):
    pass


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A cell whose seeds 2 and 10 are finished, and another cell."""
    for seed in (10, 2):
        network = srresnet(seed=seed, align=16.25)
        trial_folder(tmp_path / "study" / KEY / f"seed{seed}", network, facts_of(network.spec))
    for folder in (f"{KEY}/seed0", f"{KEY}/seed1.old", f"{OTHER}/seed0"):
        (tmp_path / "study" / folder).mkdir(parents=True)
    return tmp_path / "study" / KEY


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        (KEY, 2),
        (f"{KEY}/seed10", 10),
        (f"{KEY}/seed10/checkpoint.pt", 10),
        ("3fa", 2),
        ("3fa9*", 2),
        ("3fa9*/seed10", 10),
    ],
)
def test_the_network_of_a_cell_is_that_of_its_first_finished_seed(name: str, seed: int, cell: Path) -> None:
    source = find(str(cell.parent / name))
    assert source.name == str(cell / f"seed{seed}")
    assert not source.is_packed
    x = drawn(1, 3, 5, 6)
    assert torch.equal(source.network(x), srresnet(seed=seed, align=16.25)(x))
    with pytest.raises(ConfigError, match="bn=pre: only a method can be changed"):
        find(str(cell.parent / name), ["bn=pre"])


def test_the_start_of_several_names_is_refused_with_them(cell: Path) -> None:
    with pytest.raises(DeployError, match=rf"3f: 2 names start so: {KEY}, {OTHER}"):
        find(str(cell.parent / "3f"))


@pytest.mark.parametrize(
    "network",
    [
        srresnet(3, binarize=("head", "tail"), unit=UnitSpec(bn="out", surrogate="ho", weight="irnet")),
        srresnet(accumulate=True, standardise=True, initial="xavier"),
        srresnet(unit=UnitSpec(extra={"gain": 2.0}), unit_class=f"{__name__}.OwnUnit"),
        dncnn(noise_level=LEVEL),
        OwnNetwork(NetworkSpec(2, 4, 1)),
        *newer_networks().values(),
    ],
    ids=["levels", "options", "own unit", "dncnn", "own network", *newer_networks()],
)
def test_a_trained_network_is_rebuilt_with_everything_that_its_result_records(network: Any, tmp_path: Path) -> None:
    perturbed(network)
    name = {kind: name for name, kind in NETWORKS.items()}.get(type(network), f"{__name__}.OwnNetwork")
    facts = facts_of(network.spec, name)
    facts["reference"] = dict(network.spec.unit.extra)
    source = find(str(trial_folder(tmp_path / "seed0", network, facts)))
    assert type(source.network) is type(network)
    assert spec_of(source) == network.spec
    x = drawn(1, 3, 5, 6)
    assert torch.equal(source.network(x), as_trained(network)(x))


def test_a_network_is_rebuilt_in_the_memory_layout_of_its_training(tmp_path: Path) -> None:
    """In another, the last digits of its scores differ from those of its result."""
    network = srresnet()
    found = find(str(trial_folder(tmp_path / "seed0", network, facts_of(network.spec)))).network
    weights = [value for name, value in found.state_dict().items() if name.endswith("weight") and value.dim() == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """What changes the facts of a trial."""

    def apply(folder: Path) -> None:
        facts = json.loads((folder / "result.json").read_text())
        change(facts)
        (folder / "result.json").write_text(json.dumps(facts))

    return apply


def with_nan(folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt")
    state["tail.bias"][0] = torch.nan
    torch.save(state, folder / "checkpoint.pt")


def with_objects(folder: Path) -> None:
    torch.save({"tail.bias": folder}, folder / "checkpoint.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "result.json").write_text("{"), r"result\.json: not JSON"),
        (lambda folder: (folder / "result.json").write_text("[1]"), r"result\.json: not the result of a trial"),
        (lambda folder: (folder / "result.json").write_bytes(b"\xff"), r"result\.json: not JSON"),
        (changed(lambda facts: facts.pop("setting")), r"result\.json: not the result of a trial"),
        (changed(lambda facts: facts["factors"].pop("align")), r"result\.json: not the result of a trial"),
        (changed(lambda facts: facts["factors"].update(bn="before")), r"result\.json: bn: unknown level 'before'"),
        (changed(lambda facts: facts["setting"].update(channels=10**9)), r"result\.json: channels=1000000000: must be"),
        (
            changed(lambda facts: facts["setting"].update(channels=4000)),
            r"checkpoint\.pt: not the network of its result",
        ),
        (
            changed(lambda facts: facts["setting"].update(task={"name": "derain"})),
            r"result\.json: unknown task 'derain'",
        ),
        (
            changed(lambda facts: facts["setting"].update(network={"name": "baseline"})),
            r"result\.json: method=custom has no network",
        ),
        (
            changed(lambda facts: facts.update(factors={**facts["factors"], "gain": 2.0}, reference={"gain": 1.0})),
            r"result\.json: gain=2\.0 is a level of your own factor, and a result does not record its unit",
        ),
        (
            changed(lambda facts: facts["setting"]["network"].update(name="vdsr")),
            r"result\.json: unknown network\.name 'vdsr'",
        ),
        (changed(lambda facts: facts["setting"].update(blocks=2)), r"checkpoint\.pt: .*: it lacks body\.units\.2\."),
        (changed(lambda facts: facts["setting"].update(blocks=0)), r"checkpoint\.pt: .*: it has also body\.units\.0\."),
        (lambda folder: os.unlink(folder / "checkpoint.pt"), r"checkpoint\.pt: cannot be read: No such file"),
        (lambda folder: (folder / "checkpoint.pt").write_bytes(b"PK"), r"checkpoint\.pt: not a checkpoint"),
        (lambda folder: torch.save([1], folder / "checkpoint.pt"), r"checkpoint\.pt: .*: it is a list"),
        (with_objects, r"checkpoint\.pt: not a checkpoint, or one that contains more than tensors"),
        (with_nan, r"checkpoint\.pt: .*: its tail\.bias contains NaN or infinity"),
    ],
)
def test_a_damaged_trial_is_refused_with_the_file_in_one_line(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    network = srresnet(channels=4)
    folder = trial_folder(tmp_path / "seed0", network, facts_of(network.spec))
    spoil(folder)
    with pytest.raises((DeployError, CheckpointError), match=message):
        find(str(folder))


def test_a_checkpoint_without_its_result_is_taken_for_a_released_one(tmp_path: Path) -> None:
    network = srresnet()
    folder = trial_folder(tmp_path / "seed0", network, facts_of(network.spec))
    shutil.copyfile(folder / "checkpoint.pt", tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a released network"):
        find(str(tmp_path / "checkpoint.pt"))


# --- from Python ------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_loaded_in_evaluation_mode(tmp_path: Path) -> None:
    network = as_trained(perturbed(srresnet(align=16.25)))
    trial = trial_folder(tmp_path / "cell" / "seed0", network, facts_of(network.spec))
    torch.save(to_released_state(network), tmp_path / "net.pth")
    save(pack(network), tmp_path / "net.packed")
    x = drawn(1, 3, 5, 6)
    paths: list[str | Path] = [trial, trial.parent, str(trial / "checkpoint.pt"), tmp_path / "net.packed"]
    for loaded in [*map(bbcu.load, paths), bbcu.load(tmp_path / "net.pth", 16.25)]:
        assert not loaded.training
        assert torch.equal(as_trained(loaded)(x), network(x))
    assert torch.equal(bbcu.load(str(tmp_path / "net.pth"))(x), checkpoints.load(tmp_path / "net.pth")(x))


def test_what_has_its_alignment_recorded_takes_no_other(tmp_path: Path) -> None:
    save(pack(srresnet()), tmp_path / "net.packed")
    with pytest.raises(ConfigError, match=r"align=2: .*net\.packed has its alignment recorded"):
        bbcu.load(tmp_path / "net.packed", align=2)


def test_a_method_is_not_a_trained_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeployError, match="bbcu: there is no such file or folder; it must be the folder of a cell"):
        bbcu.load("bbcu")


# --- the twin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (srresnet(3, blocks=2, binarize=("body", "up"), align=9.0, standardise=True, accumulate=True), 2),
        (dncnn(blocks=2, colours=1, unit=UnitSpec(bn="post")), 4),
        (unpaired(3), 3),
        (pack(srresnet(blocks=2)), 2),
    ],
    ids=["srresnet", "dncnn", "an odd number of layers", "packed"],
)
def test_the_twin_is_the_full_precision_network_of_the_same_layout(network: nn.Module, layers: int) -> None:
    assert isinstance(network, SRResNet | DnCNN)
    twin, spec = twin_of(network), network.spec
    assert isinstance(twin, type(network))
    assert twin.spec == NetworkSpec(spec.scale, spec.channels, spec.blocks, binarize=(), colours=spec.colours)
    assert isinstance(twin.body, nn.Sequential)
    assert not isinstance(twin.body, Body)
    assert len(twin.body) == layers
    assert not twin.training
    x = drawn(1, spec.colours, 4, 5)
    assert twin(x).shape == network(x).shape
    assert torch.equal(twin(x), twin_of(network)(x))


@pytest.mark.parametrize("network", newer_networks().values(), ids=newer_networks())
def test_so_it_is_for_the_other_networks(network: Any) -> None:
    twin, spec, x = twin_of(network), network.spec, drawn(1, 3, 6, 7)
    assert type(twin) is type(network)
    assert twin.spec == dataclasses.replace(spec, binarize=(), align=1.0, unit=UnitSpec())
    assert not binary_units(twin)
    assert twin(x).shape == network(x).shape


def test_a_network_of_ones_own_has_no_twin() -> None:
    with pytest.raises(DeployError, match=r"test_sources\.OwnNetwork is a network of your own"):
        twin_of(OwnNetwork(NetworkSpec(2, 4, 1)))
