"""The file of a packed network: it holds all of the network, and any other file is refused in one line."""

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from torch import nn

from bbcu.deploy.file import LARGEST_HEADER, from_bytes, load, save, to_bytes
from bbcu.deploy.packed import DeployError, pack
from bbcu.deploy.sources import twin_of
from bbcu.model.checkpoints import UnpairedBody
from bbcu.model.networks import DnCNN, SRResNet
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit
from tests.harness.builders import dncnn, drawn, of_method, perturbed, srresnet
from tests.harness.deployed import newer_networks

ALL = ("head", "body", "up", "tail")


def unpaired(colours: int) -> nn.Module:
    """A DnCNN with three binary units, as a released one with an odd number of layers has."""
    network = dncnn(blocks=2, colours=colours)
    assert isinstance(network, DnCNN)
    network.body = UnpairedBody(network.spec, bias=colours == 1)
    return network


NEWER_LEVELS = {
    "affine, reste": UnitSpec(threshold="affine", weight="reste", surrogate="tanh", residual="scaled"),
    "elastic, recu": UnitSpec(threshold="elastic", weight="recu", rescale="both", bn="branch"),
    "adaptive, adabin": UnitSpec(threshold="adaptive", weight="adabin", act_fn="maxout"),
    "dynamic, srb": UnitSpec(threshold="dynamic", weight="srb", rescale="channel"),
    "act=first, sign": UnitSpec(act="first", weight="sign", bn="post", rescale="statistics"),
    "act=first, leaky": UnitSpec(act="first", act_fn="leaky", threshold=False),
}
"""Every kind of tensor that the newer levels have."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "x2 L": lambda: srresnet(align=16.25),
    "x2 M": lambda: srresnet(binarize=("body", "up")),
    "x3, all binary": lambda: srresnet(3, binarize=ALL),
    "x4, all binary": lambda: srresnet(4, binarize=ALL, channels=9),
    "full precision": lambda: srresnet(binarize=()),
    "DnCNN, colour": lambda: dncnn(binarize=("head", "body", "tail")),
    "DnCNN, gray": lambda: dncnn(colours=1),
    "DnCNN, an odd number of units": lambda: unpaired(3),
    "its twin": lambda: twin_of(unpaired(1)),
    **{method: lambda method=method: of_method(method) for method in ("bam", "btm", "bnn", "irnet", "reactnet")},
    "bn=out act=none": lambda: srresnet(unit=UnitSpec(bn="out", act="none", residual=False, threshold=False)),
    **{name: lambda spec=spec: srresnet(unit=spec, blocks=2) for name, spec in NEWER_LEVELS.items()},
    **{name: lambda network=network: network for name, network in newer_networks().items()},
    "a twin of another network": lambda: twin_of(newer_networks()["unet"]),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in NETWORKS.items()])
def test_a_network_that_is_saved_and_loaded_computes_the_same_bit_for_bit(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network = pack(perturbed(make()))
    save(network, tmp_path / "new" / "net.safetensors")
    loaded = load(tmp_path / "new" / "net.safetensors")
    x = drawn(2, network.spec.colours, 9, 11).abs()
    assert torch.equal(loaded(x), network(x))
    assert not loaded.training
    assert {name: type(module) for name, module in loaded.named_modules()} == {
        name: type(module) for name, module in network.named_modules()
    }
    assert to_bytes(loaded) == to_bytes(network)


def test_the_newer_levels_need_the_second_version_and_nothing_else_does() -> None:
    def version(network: nn.Module) -> str:
        content = to_bytes(pack(network))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return str(header["__metadata__"]["version"])

    assert {version(srresnet(unit=spec)) for spec in NEWER_LEVELS.values()} == {"2"}
    assert version(srresnet(unit=UnitSpec(bn="out", act="after", act_fn="hardtanh", surrogate="ho"))) == "1"


@pytest.mark.parametrize(
    ("network", "digest"),
    [
        (
            srresnet(4, binarize=ALL, channels=9),
            "ebe63a1fe35196dbeae5da78bd58ef3645595af1a143de18048f340f760e1b1e",
        ),
        (
            dncnn(
                colours=1,
                unit=UnitSpec(residual="block", bn="pre", act="after", act_fn="prelu", threshold=False, weight="plain"),
            ),
            "c0b4911bf79da34daaecb9d6330d17afc3f0b44949e43f65f184a035122f0324",
        ),
    ],
    ids=["x4, all binary", "DnCNN, gray"],
)
def test_a_file_of_the_first_version_has_the_bytes_that_it_always_had(network: nn.Module, digest: str) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.25)
    assert hashlib.sha256(to_bytes(pack(network))).hexdigest() == digest


def test_statistics_of_the_inputs_are_saved() -> None:
    network = srresnet(standardise=True)
    assert network.standardisation is not None
    network.standardisation.set(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7]))
    loaded = from_bytes(to_bytes(pack(network)))
    assert isinstance(loaded, SRResNet)
    assert loaded.standardisation is not None
    assert loaded.standardisation.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_what_matters_in_training_only_is_not_in_the_file() -> None:
    spec = {"unit": UnitSpec(surrogate="ede", weight="l1mag"), "initial": "xavier"}
    loaded = from_bytes(to_bytes(pack(srresnet(**spec))))
    assert isinstance(loaded, SRResNet)
    assert (loaded.spec.unit, loaded.spec.initial) == (UnitSpec(), "torch")


def test_a_binary_weight_takes_one_bit() -> None:
    layers = pack(srresnet(channels=32, blocks=4)), pack(srresnet(channels=32, blocks=3))
    unit = 32 * 32 * 9 / 8 + 4 * (32 + 3 * 32 + 32)  # bits; threshold, RPReLU and scale
    longer, shorter = (len(to_bytes(network)) for network in layers)
    assert longer - shorter == pytest.approx(2 * unit, abs=64)  # the header's numbers have more digits


# --- what cannot be saved ---------------------------------------------------------------------------------------------


class OwnNetwork(SRResNet):
    pass


class OwnUnit(BinaryUnit):
    pass


class OwnTail(nn.Conv2d):
    pass


def with_own_tail() -> nn.Module:
    network = pack(srresnet())
    network.tail = OwnTail(8, 3, 3, padding=1)
    return network


def diverged() -> nn.Module:
    network = pack(srresnet())
    network.tail.weight.data[0] = torch.nan
    return network


def pruned() -> nn.Module:
    network = pack(srresnet())
    network.body.units[0].scale = torch.ones(7)
    return network


UNSAVABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a network of one's own": (
        lambda: pack(OwnNetwork(srresnet().spec)),
        ".*OwnNetwork is a network of your own",
    ),
    "a unit of one's own": (
        lambda: pack(srresnet(unit_class=f"{__name__}.OwnUnit")),
        "body.units.0: .*OwnUnit may",
    ),
    "a part of one's own": (with_own_tail, "tail is OwnTail, where the network's spec has Convolution"),
    "a tensor of another shape": (pruned, r"its body\.units\.0\.scale is \(7,\) of float32, not \(8,\) of float32"),
    "a float network": (srresnet, r"body\.units\.0: it is not packed yet"),
    "NaN": (diverged, r"its tail\.weight contains NaN or infinity"),
}


@pytest.mark.parametrize(("make", "message"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_a_network_that_no_file_can_hold_is_refused_by_name(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DeployError, match=f"the network cannot be saved: {message}"):
        save(make(), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match="file/net: cannot be written: "):
        save(pack(srresnet()), tmp_path / "file" / "net")


# --- files that are refused -------------------------------------------------------------------------------------------

CONTENT = to_bytes(pack(perturbed(srresnet(channels=4))))
TENSORS = safetensors.torch.load(CONTENT)
START = 8 + int.from_bytes(CONTENT[:8], "little")
HEADER: dict[str, Any] = json.loads(CONTENT[8:START])
FACTS: dict[str, Any] = json.loads(HEADER["__metadata__"]["network"])


def with_header(header: object, data: bytes = CONTENT[START:]) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def sealed(header: dict[str, Any], data: bytes = CONTENT[START:]) -> bytes:
    """A file with this header and the checksum that it needs."""
    zeros = "0" * 64
    content = with_header({**header, "__metadata__": {**header["__metadata__"], "sha256": zeros}}, data)
    return content.replace(zeros.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def with_metadata(**changes: object) -> bytes:
    return sealed({**HEADER, "__metadata__": {**HEADER["__metadata__"], **changes}})


def with_facts(**changes: object) -> bytes:
    return with_metadata(network=json.dumps({**FACTS, **changes}))


def with_levels(**changes: object) -> bytes:
    return with_facts(unit={**FACTS["unit"], **changes})


def with_tensors(**changes: torch.Tensor | None) -> bytes:
    """The file with tensors replaced, or removed if the change is None; ``__`` in a name is a dot."""
    tensors = {**TENSORS, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    bare = safetensors.torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None})
    start = 8 + int.from_bytes(bare[:8], "little")
    return sealed({"__metadata__": HEADER["__metadata__"], **json.loads(bare[8:start])}, bare[start:])


def moved() -> bytes:
    header = copy.deepcopy(HEADER)
    header["tail.bias"]["data_offsets"][1] += 4
    return sealed(header)


CUT = "not a packed network: not a safetensors file, or only a part of one"
DAMAGED = "damaged: its content does not match its checksum"
FOREIGN = "not a packed network, but a safetensors file of another format"
UNDESCRIBED = "its header does not describe one"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", CUT),
    "a text": (lambda: b"a text that is longer than the length of a header", CUT),
    "a length without a header": (lambda: CONTENT[:8], CUT),
    "a part of the header": (lambda: CONTENT[:100], CUT),
    "a part of the tensors": (lambda: CONTENT[:-1], DAMAGED),
    "more than the tensors": (lambda: CONTENT + b"0", DAMAGED),
    "another bit": (
        lambda: CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]),
        DAMAGED,
    ),
    "a header that is too large": (
        lambda: with_header(b'{"a":1}'.ljust(LARGEST_HEADER + 1)),
        CUT,
    ),
    "a header that is no JSON": (lambda: with_header(b"{'a': 1}"), "not a safetensors file, or a damaged one"),
    "a header that is deep": (lambda: with_header(b"[" * 10**5), "not a safetensors file, or a damaged one"),
    "a header of another type": (lambda: with_header([1]), "not a safetensors file, or a damaged one"),
    "no metadata": (lambda: with_header({}), FOREIGN),
    "metadata of another type": (lambda: with_header({"__metadata__": 3}), FOREIGN),
    "another format": (lambda: safetensors.torch.save(TENSORS, {"format": "pt"}), FOREIGN),
    "another version": (
        lambda: with_metadata(version="3"),
        "a packed network of version 3; this program reads version 1 and 2",
    ),
    "a checksum of another type": (
        lambda: with_header({**HEADER, "__metadata__": {**HEADER["__metadata__"], "sha256": "\ud800"}}),
        DAMAGED,
    ),
    "no network": (lambda: with_metadata(network="null"), UNDESCRIBED),
    "a network that is deep": (lambda: with_metadata(network="[" * 10**5), UNDESCRIBED),
    "a network of one's own": (lambda: with_facts(kind="my_module.Network"), UNDESCRIBED),
    "another type of network": (lambda: with_facts(kind=["srresnet"]), UNDESCRIBED),
    "no levels": (lambda: with_facts(unit="binary"), UNDESCRIBED),
    "a level that does not exist": (lambda: with_levels(bn="before"), "bn: unknown level 'before'"),
    "a level of another type": (lambda: with_levels(residual=1), "residual: unknown level '1'"),
    "a scale of another type": (lambda: with_levels(has_scale="yes"), UNDESCRIBED),
    "a part that does not exist": (lambda: with_facts(binarize=["trunk"]), "unknown part 'trunk'"),
    "parts of another type": (lambda: with_facts(binarize=3), UNDESCRIBED),
    "10^9 channels": (lambda: with_facts(channels=10**9), "channels=1000000000: must be a whole number"),
    "10^9 blocks": (lambda: with_facts(blocks=10**9), "blocks=1000000000: must be a whole number"),
    "4096 channels": (lambda: with_facts(channels=4096), "its .* is .* not .*(4096|16384)"),
    "half a channel": (lambda: with_facts(channels=4.5), r"channels=4\.5: must be a whole number"),
    "an alignment that is not a number": (
        lambda: with_facts(align=float("nan")),
        "align=nan: must be a",
    ),
    "no alignment": (lambda: with_facts(align=0), "align=0: must be a positive number"),
    "another number of layers": (lambda: with_facts(layers=3), "srresnet of 1 blocks cannot have 3 convolutions"),
    "an odd number of layers": (lambda: with_facts(layers=1), "srresnet of 1 blocks cannot have 1 convolutions"),
    "a DnCNN that enlarges": (lambda: with_facts(kind="dncnn"), "its output has the size of its input"),
    "a tensor is missing": (lambda: with_tensors(tail__bias=None), r"it lacks tail\.bias"),
    "a tensor too many": (lambda: with_tensors(body__memory__share=torch.ones(2)), r"it has also body\.memory\.share"),
    "a tensor of another shape": (
        lambda: with_tensors(tail__bias=torch.zeros(4)),
        r"its tail\.bias is \(4,\) of float32, not \(3,\) of float32",
    ),
    "a tensor of another type": (
        lambda: with_tensors(tail__bias=torch.zeros(3, dtype=torch.float64)),
        r"its tail\.bias is \(3,\) of float64, not \(3,\) of float32",
    ),
    "a tensor of a type that torch lacks": (
        lambda: sealed({**HEADER, "tail.bias": {**HEADER["tail.bias"], "dtype": "F33"}}),
        "its header does not describe its tensors",
    ),
    "tensors that overlap": (moved, "its header does not describe its tensors"),
    "NaN": (lambda: with_tensors(tail__bias=torch.full((3,), torch.nan)), r"its tail\.bias contains NaN or infinity"),
    "bits of channels that do not exist": (
        lambda: with_tensors(body__units__weight_bits=TENSORS["body.units.weight_bits"] | 16),
        "it has weights of channels that do not exist",
    ),
}


SECOND = to_bytes(pack(srresnet(channels=4, unit=UnitSpec(weight="srb", threshold="affine"))))


def of_second(unit: dict[str, object] | None = None, **changes: object) -> bytes:
    """The file of a network of the second version, with its facts and levels changed."""
    start = 8 + int.from_bytes(SECOND[:8], "little")
    header = json.loads(SECOND[8:start])
    facts = json.loads(header["__metadata__"]["network"])
    facts = {**facts, **changes, "unit": {**facts["unit"], **(unit or {})}}
    return sealed({**header, "__metadata__": {**header["__metadata__"], "network": json.dumps(facts)}}, SECOND[start:])


REFUSED |= {
    "planes of another type": (lambda: of_second({"planes": True}), UNDESCRIBED),
    "an offset of another type": (lambda: of_second({"has_offset": 1}), UNDESCRIBED),
    "three planes": (lambda: of_second({"planes": 3}), "weights have one or two bits"),
    "an offset without a scale": (lambda: of_second({"has_scale": False}), "weights have one or two bits"),
    "a plane less": (
        lambda: of_second({"planes": 1}),
        r"it has also body\.units\.second_bits, body\.units\.second_scale",
    ),
    "an offset that is missing": (lambda: of_second({"has_offset": True}), r"it lacks body\.units\.offset"),
    "a threshold of another class": (
        lambda: of_second({"threshold": "dynamic"}),
        r"it lacks body\.units\.threshold",
    ),
    "a threshold that does not exist": (lambda: of_second({"threshold": "step"}), "threshold: unknown level 'step'"),
    "a rescale that does not exist": (lambda: of_second({"rescale": "pixel"}), "rescale: unknown level 'pixel'"),
    "a rescale of another type": (lambda: of_second({"rescale": 3}), "rescale: unknown level '3'"),
    "a tail that does not exist": (lambda: of_second(tail="long"), "network.tail: unknown tail 'long'"),
    "no groups": (lambda: of_second(groups=0), "groups=0: must be a whole number"),
    "noise of another type": (lambda: of_second(noise_level="much"), UNDESCRIBED),
    "more noise than there is": (lambda: of_second(noise_level=1.5), UNDESCRIBED),
    "10^6 blocks": (
        lambda: of_second(kind="rcan", layers=None, groups=1000, blocks=1000),
        "a rcan of 1000 blocks has more convolutions than a file may have",
    ),
    "layers of a network without pairs": (lambda: of_second(kind="edsr"), UNDESCRIBED),
    "no layers": (lambda: of_second(layers=None), UNDESCRIBED),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_another_file_is_refused_with_its_path_in_one_line(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(make())
    with pytest.raises(DeployError, match=rf"{path}: .*{message}") as refused:
        load(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def test_the_helpers_of_these_tests_change_nothing_else() -> None:
    assert from_bytes(with_facts()).state_dict().keys() == from_bytes(with_tensors()).state_dict().keys()


@pytest.mark.parametrize(("make", "reason"), [(os.mkfifo, "not a regular file"), (os.mkdir, "Is a directory")])
def test_what_is_not_a_file_is_refused_and_nothing_waits_for_it(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "net")
    with pytest.raises(DeployError, match=f"net: cannot be read: {reason}"):
        load(tmp_path / "net")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The file with some bytes replaced, removed or put in."""
    content = CONTENT
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)) | st.integers(0, min(START, len(content))))
        removed = draw(st.sampled_from([0, 1, 1, 4, len(content)]))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + removed :]
    return content


@hypothesis.given(damaged())
def test_damage_anywhere_is_noticed(content: bytes) -> None:
    hypothesis.assume(content != CONTENT)
    with pytest.raises(DeployError):
        from_bytes(content)


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)


@hypothesis.given(st.sampled_from([with_facts, with_levels]), st.data(), JSON)
def test_a_network_of_any_values_runs_or_is_refused(
    make: Callable[..., bytes], data: st.DataObject, value: object
) -> None:
    key = data.draw(st.sampled_from(sorted(FACTS if make is with_facts else FACTS["unit"])))
    try:
        network = from_bytes(make(**{key: value}))
    except DeployError:
        return
    assert network(drawn(1, 3, 4, 4)).shape == (1, 3, 8, 8)


@hypothesis.given(st.sampled_from(sorted(TENSORS)), st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
def test_a_tensor_of_any_form_is_refused(name: str, key: str, value: object) -> None:
    hypothesis.assume(value != HEADER[name][key])
    with pytest.raises(DeployError):
        from_bytes(sealed({**HEADER, name: {**HEADER[name], key: value}}))
