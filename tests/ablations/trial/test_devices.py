"""Which GPU a trial gets: of those visible to its process, the one with the fewest trials."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from ablations.trial.devices import device_for
from bbcu.errors import BbcuError
from bbcu.training.loop import resolve_device
from tests.ablations.storage.helpers import FORK

MACHINE = ("GPU-a", "GPU-b", "GPU-c")
"""The UUIDs of a machine's GPUs; a process sees some of them, as its 0, 1, ..."""


def hold(claims: Path, visible: Sequence[str], connection: Connection) -> None:
    with device_for("auto", claims, len(visible), visible.__getitem__) as device:
        connection.send(device)
        connection.recv()


class Holder:
    """A trial in another process, which holds one of the GPUs that are visible to it until it is told to end."""

    def __init__(self, claims: Path, visible: Sequence[str]) -> None:
        self.visible = visible
        self.connection, its_own = FORK.Pipe()
        self.process = FORK.Process(target=hold, args=(claims, visible, its_own))
        self.process.start()

    @functools.cached_property
    def gpu(self) -> str:
        """The GPU of the machine that it holds; waits until it holds one."""
        return self.visible[int(self.connection.recv().removeprefix("cuda:"))]

    def end(self) -> None:
        self.connection.send("end")
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Machine:
    """A machine on which several processes claim GPUs."""

    def __init__(self, claims: Path) -> None:
        self.claims = claims
        self.holders: list[Holder] = []

    def start(self, visible: Sequence[str]) -> Holder:
        self.holders.append(Holder(self.claims, visible))
        return self.holders[-1]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path / "claims")
    yield found
    for holder in found.holders:
        holder.kill()


# --- without a choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_with_one_gpu_or_none_auto_is_the_default_device(count: int, tmp_path: Path) -> None:
    with device_for("auto", tmp_path, count, MACHINE.__getitem__) as device:
        assert torch.device(device) == resolve_device("auto")


@pytest.mark.parametrize("wanted", ["cpu", "cuda", "cuda:1"])
def test_an_explicit_device_is_used_and_not_claimed(wanted: str, tmp_path: Path) -> None:
    with device_for(wanted, tmp_path / "claims", 3, MACHINE.__getitem__) as device:
        assert device == wanted
    assert not (tmp_path / "claims").exists()


def test_the_device_is_one_that_torch_sees(tmp_path: Path) -> None:
    with device_for("auto", tmp_path) as device:
        assert device in {str(resolve_device("auto")), *(f"cuda:{index}" for index in range(torch.cuda.device_count()))}


# --- among several ----------------------------------------------------------------------------------------------------


def test_each_gets_the_gpu_that_the_fewest_hold_and_the_first_of_several(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        claimed = [stack.enter_context(device_for("auto", tmp_path, 3, MACHINE.__getitem__)) for _ in range(7)]
    assert claimed == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_a_gpu_is_free_again_when_its_trial_has_ended_and_when_it_has_failed(tmp_path: Path) -> None:
    for _ in range(2):
        with contextlib.suppress(RuntimeError), device_for("auto", tmp_path, 2, MACHINE.__getitem__) as device:
            assert device == "cuda:0"
            raise RuntimeError


def test_processes_that_start_at_once_share_the_gpus_evenly(machine: Machine) -> None:
    holders = [machine.start(MACHINE[:2]) for _ in range(6)]
    assert sorted(holder.gpu for holder in holders) == ["GPU-a"] * 3 + ["GPU-b"] * 3


def test_trials_that_claim_at_the_same_moment_never_take_the_same_free_gpu(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=60)

    def claim(_: int) -> list[str]:
        claimed = []
        for _ in range(20):
            together.wait()
            with device_for("auto", tmp_path, 4, "abcd".__getitem__) as device:
                claimed.append(device)
                together.wait()
        return claimed

    with ThreadPoolExecutor(4) as pool:
        rounds = list(zip(*pool.map(claim, range(4)), strict=True))
    assert [sorted(devices) for devices in rounds] == [["cuda:0", "cuda:1", "cuda:2", "cuda:3"]] * 20


@pytest.mark.parametrize("leave", [Holder.kill, Holder.end], ids=["killed", "ended"])
def test_a_gpu_is_free_again_when_its_process_is_gone(machine: Machine, leave: Callable[[Holder], None]) -> None:
    for expected in MACHINE:
        assert machine.start(MACHINE).gpu == expected
    leave(machine.holders[1])
    assert machine.start(MACHINE).gpu == "GPU-b"


def test_a_claim_is_of_the_gpu_whatever_number_a_process_has_for_it(machine: Machine) -> None:
    assert machine.start(["GPU-a", "GPU-b"]).gpu == "GPU-a"
    assert machine.start(["GPU-b", "GPU-a"]).gpu == "GPU-b"
    assert machine.start(["GPU-b", "GPU-c"]).gpu == "GPU-c"


def test_a_process_that_sees_one_gpu_is_counted_by_those_that_see_more(tmp_path: Path) -> None:
    with (
        device_for("auto", tmp_path, 1, MACHINE.__getitem__),
        device_for("auto", tmp_path, 3, MACHINE.__getitem__) as device,
    ):
        assert device == "cuda:1"


def test_gpus_whose_names_are_not_file_names_can_be_claimed(tmp_path: Path) -> None:
    odd = ["MIG-GPU-1/2/0", "../MIG*"]
    with (
        device_for("auto", tmp_path / "claims", 2, odd.__getitem__) as first,
        device_for("auto", tmp_path / "claims", 2, odd.__getitem__) as second,
    ):
        assert (first, second) == ("cuda:0", "cuda:1")
    assert [path.name for path in tmp_path.iterdir()] == ["claims"]


def test_claims_that_cannot_be_written_are_one_line_that_names_their_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BbcuError, match=r"file/claims: no GPU can be claimed here: Not a directory$"),
        device_for("auto", tmp_path / "file" / "claims", 2, MACHINE.__getitem__),
    ):
        pytest.fail("nothing is to be computed without a claim")
