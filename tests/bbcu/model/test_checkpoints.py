"""Released checkpoints: networks loaded from them compute what the released ones do, and are written back unchanged."""

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.model.checkpoints import RELEASED_ALIGN, CheckpointError, from_released_state, load, to_released_state
from bbcu.model.networks import SRResNet, build
from bbcu.model.parts import NetworkSpec
from bbcu.model.specs import UnitSpec
from tests.harness.builders import dncnn, perturbed, srresnet

GOLDEN = Path(__file__).parent / "golden"
CASES = ("bbcu_l_x2", "bbcu_m_x4", "bbcu_dncnn_color")
TOLERANCE = 1e-5

State = dict[str, Tensor]


# --- the released networks' own numbers -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> State:
    """Recorded from the released module: its state, an input, the output, the loss and every gradient."""
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def with_prefix(arrays: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def assert_same(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def released_gradients(network: nn.Module) -> State:
    """The gradients of a network under the released names."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    network.load_state_dict(gradients)
    return to_released_state(network)


def test_output_loss_and_every_gradient_equal_the_released_network(golden: State) -> None:
    network = from_released_state(with_prefix(golden, "state."))
    x = golden["input"].clone().requires_grad_()
    output = network(x)
    loss = F.l1_loss(output, golden["target"])
    loss.backward()
    assert x.grad is not None
    found = {"output": output.detach(), "loss": loss.detach(), "grad.input": x.grad}
    found |= {f"grad.{name}": gradient for name, gradient in released_gradients(network).items()}
    expected = {name: value for name, value in golden.items() if not name.startswith(("state.", "input", "target"))}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        assert (found[name] - value).abs().max() / value.abs().max() < TOLERANCE, name


def test_a_released_state_is_written_as_it_was_read(golden: State) -> None:
    state = with_prefix(golden, "state.")
    network = from_released_state(state)
    assert not network.training
    assert_same(to_released_state(network), state)


def test_the_alignment_is_not_in_the_state_and_changes_the_output(golden: State) -> None:
    plain = from_released_state(with_prefix(golden, "state."), align=1.0)(golden["input"])
    assert not torch.allclose(plain, golden["output"], rtol=1e-3)


# --- names, shapes and totals of the full-sized networks --------------------------------------------------------------


UNIT = 64 * 64 * 9 + 4 * 64
BODY_AND_ENDS = 32 * UNIT + 64 * 3 * 9 + 64 + 3 * 64 * 9 + 3
REFINE = 64 * 64 * 9 + 64
TWICE, THRICE = 64 * 256 * 9, 64 * 576 * 9
MEDIUM = {scale: NetworkSpec(scale, 64, 16, binarize=("body", "up")) for scale in (2, 3, 4)}

FULL_SIZED = [
    # spec, digest of the released names and shapes, tensors, parameters
    (NetworkSpec(2, 64, 16), "034d2a420879bd87", 168, BODY_AND_ENDS + TWICE + 256 + REFINE),
    (NetworkSpec(3, 64, 16), "8614cb3e00eb7cda", 168, BODY_AND_ENDS + THRICE + 576 + REFINE),
    (NetworkSpec(4, 64, 16), "310d25eeefdf96fc", 170, BODY_AND_ENDS + 2 * (TWICE + 256) + REFINE),
    (MEDIUM[2], "78193cece44d67e4", 174, BODY_AND_ENDS + TWICE + 64 + 3 * 256 + UNIT),
    (MEDIUM[3], "3c67104daf72aef7", 174, BODY_AND_ENDS + THRICE + 64 + 3 * 576 + UNIT),
    (MEDIUM[4], "8c87fc79c870b223", 179, BODY_AND_ENDS + 2 * (TWICE + 64 + 3 * 256) + UNIT),
    (NetworkSpec(1, 64, 9), "974e43e738fbd6f5", 92, 64 * 3 * 9 + 18 * UNIT + 3 * 64 * 9),
    (NetworkSpec(1, 64, 9, colours=1), "55645aa1af8d77ae", 112, 64 * 9 + 64 + 18 * (UNIT + 64) + 64 * 9 + 1),
]


@pytest.mark.parametrize(
    ("spec", "digest", "tensors", "parameters"),
    FULL_SIZED,
    ids=["L x2", "L x3", "L x4", "M x2", "M x3", "M x4", "DnCNN_b", "DnCNN3_b"],
)
def test_names_shapes_and_totals_are_the_released_ones(
    spec: NetworkSpec, digest: str, tensors: int, parameters: int
) -> None:
    state = to_released_state(build("dncnn" if spec.scale == 1 else "srresnet", spec, seed=0))
    names_and_shapes = repr([(name, tuple(value.shape)) for name, value in state.items()])
    assert hashlib.sha256(names_and_shapes.encode()).hexdigest()[:16] == digest
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == parameters


# --- every released layout, small -------------------------------------------------------------------------------------

SMALL = [
    pytest.param(lambda: srresnet(2, 8, 2, align=130.0), id="L x2"),
    pytest.param(lambda: srresnet(3, 6, 1, align=130.0), id="L x3"),
    pytest.param(lambda: srresnet(4, 4, 3, align=130.0), id="L x4"),
    pytest.param(lambda: srresnet(2, 4, 1, align=130.0, colours=1), id="L x2 gray"),
    pytest.param(lambda: srresnet(2, 8, 2, align=130.0, binarize=("body", "up")), id="M x2"),
    pytest.param(lambda: srresnet(3, 6, 1, align=130.0, binarize=("up", "body")), id="M x3"),
    pytest.param(lambda: srresnet(4, 4, 3, align=130.0, binarize=("body", "up")), id="M x4"),
    pytest.param(lambda: dncnn(8, 2, align=130.0), id="DnCNN colour"),
    pytest.param(lambda: dncnn(6, 3, align=130.0, colours=1), id="DnCNN gray"),
]


@pytest.mark.parametrize("make", SMALL)
def test_a_network_is_the_same_after_writing_and_reading(make: Callable[[], Any]) -> None:
    network = perturbed(make())
    again = from_released_state(to_released_state(network))
    x = torch.rand(1, network.spec.colours, 6, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), network(x))
    binarize = tuple(sorted(network.spec.binarize))
    assert again.spec == dataclasses.replace(network.spec, binarize=binarize)


@pytest.mark.parametrize(("colours", "units"), [(3, 1), (1, 5)])
def test_a_denoiser_with_an_odd_number_of_units_is_the_same_after_reading_and_writing(colours: int, units: int) -> None:
    blocks = (units + 1) // 2
    state = to_released_state(perturbed(dncnn(4, blocks, colours=colours)))
    tail = f"model.{2 + 2 * blocks}."
    shorter = {name: value for name, value in state.items() if not name.startswith((f"model.{1 + 2 * blocks}.", tail))}
    shorter |= {f"model.{2 + units}.{name.removeprefix(tail)}": state[name] for name in state if name.startswith(tail)}
    assert_same(to_released_state(from_released_state(shorter)), shorter)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("align", [130.0, 57.0])
def test_a_file_contains_the_state_directly_or_under_params(nested: bool, align: float, tmp_path: Path) -> None:
    network = perturbed(srresnet(align=align))
    state = to_released_state(network)
    torch.save({"params": state} if nested else state, tmp_path / "net.pth")
    x = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    read = load(tmp_path / "net.pth") if align == RELEASED_ALIGN else load(tmp_path / "net.pth", align)
    assert torch.equal(read(x), network(x))


class Intruder:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_file_that_contains_more_than_tensors_is_refused_and_not_unpickled(
    save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "net.pth"
    save({**to_released_state(srresnet()), "more": Intruder(mark)}, path)
    with pytest.raises(CheckpointError, match=r"net\.pth: not a checkpoint, or one that contains more than tensors"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: None, id="not there"),
        pytest.param(lambda path: path.mkdir(), id="a folder"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"GIF89a not a checkpoint"), id="something else"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), id="broken archive"),
        pytest.param(lambda path: torch.save([torch.zeros(1)], path), id="a list"),
        pytest.param(lambda path: torch.save({"a": torch.zeros(1)}, path), id="another network"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write(path)
    with pytest.raises(CheckpointError, match=r"net\.pth: ") as caught:
        load(path)
    assert "\n" not in str(caught.value)


# --- files that attack the reader -------------------------------------------------------------------------------------


def file_of(state: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint whose entries were changed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    return repacked(file_of({}), lambda name, content: pickled if name.endswith("data.pkl") else content)


LEVELS = 60


def with_key(levels: bytes) -> bytes:
    """A pickled dict with one key that is not a text."""
    return b"\x80\x02}" + levels + b"K\x01s."


def pairs_of_pairs() -> bytes:
    """(x, x), where x is (y, y) and so on, each of which is stored once."""
    return b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(LEVELS))


def endless_header() -> bytes:
    """A tar, which torch tries to read first, with a header that keeps its parser busy for hours."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 2**20
    return header.tobuf(tarfile.GNU_FORMAT) + b"1" * 2**20


LEGACY = file_of({}, legacy=True)
THOUSAND, HUGE = b"M\xe8\x03", b"\x8a\x06" + b"\xff" * 5 + b"\0"
"""Pickled numbers: 1000, and 10^12."""

WEIGHTS = to_released_state(srresnet())["conv_first.weight"].numpy().tobytes()

ATTACKS = {
    "a key that is stored in little and large": lambda: with_pickle(with_key(pairs_of_pairs())),
    "the same in the format before zip": lambda: LEGACY.replace(b"}q\x00.", with_key(pairs_of_pairs())[2:]),
    "a key that is deep": lambda: with_pickle(with_key(b"K\x01" + b"\x85" * 10**6)),
    "compressed zeros": lambda: repacked(
        file_of({"a": torch.zeros(10**6)}), lambda name, content: content, zipfile.ZIP_DEFLATED
    ),
    "more elements than are stored": lambda: repacked(
        file_of({"a": torch.zeros(1000)}), lambda name, content: content.replace(THOUSAND, HUGE)
    ),
    "more elements than are stored, in the format before zip": (
        lambda: file_of({"a": torch.zeros(1000)}, legacy=True).replace(THOUSAND, HUGE)
    ),
    "a tar": endless_header,
    "a weight with another bit": lambda: file_of(to_released_state(srresnet())).replace(
        WEIGHTS[:100], bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:100]
    ),
    "cut": lambda: file_of(to_released_state(srresnet()))[:-1000],
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in ATTACKS.items()])
def test_a_file_that_is_damaged_or_takes_much_time_or_memory_is_refused(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=r"net\.pth: not a checkpoint, or one that contains more than tensors"):
        load(path)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net\.pth: cannot be read: not a regular file"):
        load(tmp_path / "net.pth")


@st.composite
def changed_files(draw: st.DrawFn) -> bytes:
    """A checkpoint in either format that was cut, or has some bytes replaced, removed or put in."""
    content = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(
            st.integers(0, len(content)) | st.integers(0, 2000) | st.integers(len(content) - 2000, len(content))
        )
        place = min(max(place, 0), len(content))
        removed = draw(st.sampled_from([0, 1, 1, 4, 4, len(content)]))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + removed :]
    return content


STATE = to_released_state(perturbed(srresnet(2, 4, 1, align=130.0)))
VALID = [file_of(STATE), file_of({"params": STATE}), file_of(STATE, legacy=True)]


@hypothesis.given(changed_files())
def test_a_changed_file_is_a_network_of_finite_weights_or_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    message = str(path)
    try:
        state = to_released_state(load(path))
        assert all(bool(value.isfinite().all()) for value in state.values())
        assert content.startswith(LEGACY[:10]) or all(torch.equal(value, STATE[name]) for name, value in state.items())
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 1000
    assert capfd.readouterr() == ("", "")


# --- what fits nothing ------------------------------------------------------------------------------------------------


def changed(state: State, **changes: Any) -> dict[str, Any]:
    """The state with tensors replaced, or removed if the change is None; ``__`` in a name is a dot."""
    replaced = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in replaced.items() if value is not None}


def quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch announces the end of such tensors
        return torch.quantize_per_tensor(tensor, 1.0, 0, torch.qint8)


LARGE = to_released_state(srresnet(2, 8, 1))
SMALL_MEDIUM = to_released_state(srresnet(2, 8, 1, binarize=("body", "up")))
COLOUR = to_released_state(dncnn(8, 1))
GRAY = to_released_state(dncnn(8, 1, colours=1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no tensors.*neither conv_first.weight nor model.0.weight"),
        ([1, 2], "a state maps names to tensors, and this is a list"),
        ({"params": 3}, "this is a int"),
        (changed(LARGE, epoch=3), "'epoch' is a int, not a tensor"),
        (
            {"layer.weight": torch.zeros(1), "layer.bias": torch.zeros(1)},
            r"\(2 tensors: layer.weight, layer.bias\): it has neither conv_first.weight nor model.0.weight",
        ),
        (
            changed(LARGE, conv_first__weight=torch.zeros(8, 3, 9, 9)),
            r"conv_first.weight is \(8, 3, 9, 9\), not \(channels, colours, 3, 3\)",
        ),
        (changed(LARGE, upconv1__weight=None), "neither upconv1.weight nor upconv1.binary_conv.weight"),
        (
            changed(LARGE, upconv1__weight=torch.zeros(40, 8, 3, 3)),
            r"upconv1.weight is \(40, 8, 3, 3\), not 4 or 9 times 8 channels",
        ),
        (
            changed(LARGE, conv_hr__bias=None),
            r"17 tensors.*as a BBCU-L x2 of channels=8 blocks=1 it lacks 1 \(conv_hr.bias\)",
        ),
        (changed(SMALL_MEDIUM, upconv1__move0__bias=None), r"as a BBCU-M x2 .* lacks 1 \(upconv1.move0.bias\)"),
        (
            {name.replace("relu.", "act."): value for name, value in LARGE.items()},
            r"lacks 6 \(.*, \.\.\.\) and it has 6 too many \(.*, \.\.\.\)",
        ),
        (
            changed(LARGE, upconv2__weight=torch.zeros(8, 8, 3, 3), upconv2__bias=torch.zeros(8)),
            r"as a BBCU-L x4 .* its upconv2.weight is \(8, 8, 3, 3\), not \(32, 8, 3, 3\)",
        ),
        ({"model.0.weight": torch.zeros(8, 3, 3, 3)}, "it has only model.0"),
        (
            changed(COLOUR, model__0__bias=torch.zeros(8)),
            r"as a colour DnCNN of channels=8 units=2 it has 1 too many \(model.0.bias\)",
        ),
        (changed(GRAY, model__0__bias=None), r"as a gray DnCNN of channels=8 units=2 it lacks 1 \(model.0.bias\)"),
        ({("a",): torch.zeros(1)}, "a name is a tuple, not a text"),
        ({"a" * 10**6: 3}, "'a{100}...' is a int, not a tensor"),
        (
            changed(LARGE, conv_hr__bias=torch.zeros(8, dtype=torch.int8)),
            "'conv_hr.bias' has no floating-point numbers",
        ),
        (changed(LARGE, conv_hr__bias=torch.zeros(8, dtype=torch.cfloat)), "'conv_hr.bias' has no floating-point"),
        (changed(LARGE, conv_hr__bias=torch.zeros(8, device="meta")), "'conv_hr.bias' has no floating-point numbers"),
        (
            changed(LARGE, conv_hr__bias=quantised(torch.zeros(8))),
            "'conv_hr.bias' has no floating-point numbers",
        ),
        (changed(LARGE, conv_hr__bias=torch.zeros(8).to_sparse()), "'conv_hr.bias' is not a dense tensor"),
        (
            changed(LARGE, conv_hr__bias=torch.nested.nested_tensor([torch.zeros(8)], layout=torch.jagged)),
            "'conv_hr.bias' is not a dense tensor",
        ),
        (changed(LARGE, conv_hr__bias=torch.full((8,), torch.nan)), "its conv_hr.bias contains NaN or infinity"),
        (changed(LARGE, conv_hr__bias=torch.full((8,), -torch.inf)), "its conv_hr.bias contains NaN or infinity"),
        (
            {name: torch.zeros(1).expand(value.shape) for name, value in LARGE.items()},
            "its tensors have more elements than are stored",
        ),
        (
            {**LARGE, f"body.{'9' * 5000}.weight": torch.zeros(1)},
            r"it has 1 too many \(body.9{95}\)",
        ),
        ({str(number): LARGE["conv_hr.bias"] for number in range(10_001)}, "it has 10001 tensors; the most is 10000"),
        (
            {"model.0.weight": torch.zeros(1, 1, 1, 1).expand(2**30, 3, 3, 3), "model.1.weight": torch.zeros(3)},
            r"lacks 1 \(model.2.weight\)",
        ),
    ],
)
def test_a_state_that_fits_nothing_says_what_was_found_and_what_failed(state: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        from_released_state(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Linear(2, 2), "it is a Linear, not an SRResNet or a DnCNN"),
        (lambda: type("Mine", (SRResNet,), {})(NetworkSpec(2, 8, 1)), "it is a Mine"),
        (lambda: srresnet(binarize=("head", "body")), r"its binary parts are \[head,body\]"),
        (lambda: srresnet(binarize=("up",)), r"its binary parts are \[up\]"),
        (lambda: dncnn(binarize=()), r"its binary parts are \[\]"),
        (lambda: srresnet(5), "its scale is 5"),
        (lambda: srresnet(accumulate=True), "accumulate is True, not False"),
        (lambda: dncnn(standardise=True), "standardise is True, not False"),
        (
            lambda: srresnet(unit_class="bbcu.model.units.BinaryUnit"),
            "unit_class is bbcu.model.units.BinaryUnit, not binary",
        ),
        (lambda: srresnet(unit=UnitSpec(residual="block")), "residual is block, not True"),
        (lambda: srresnet(unit=UnitSpec(bn="post")), "bn is post, not none"),
        (lambda: srresnet(unit=UnitSpec(act="after")), "act is after, not inside"),
        (lambda: srresnet(unit=UnitSpec(act_fn="prelu")), "act_fn is prelu, not rprelu"),
        (lambda: srresnet(unit=UnitSpec(threshold=False)), "threshold is False, not True"),
        (lambda: dncnn(unit=UnitSpec(weight="irnet")), "weight is irnet, not l1"),
        (lambda: srresnet(unit=UnitSpec(rescale="box")), "rescale is box, not none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_without_a_released_form_says_why(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"this network has no released form: {reason}"):
        to_released_state(make())
