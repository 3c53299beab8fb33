"""``python -m bbcu.deploy time``: measure how long a network takes, and its full-precision twin beside it.

Contenders take turns, in another order each round, so that whatever else the machine does affects all alike. Each run
is measured in CPU time, of all threads of the process, and in wall time. Before anything is timed, each contender's
output is compared with that of the float network. The picture is noise of seed 0; no time depends on what it shows.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.metadata
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bbcu import machine
from bbcu.compiled import COMPILE_OPTIONS, NO_COMPILER, TORCH_CACHE, cpp_compiler, untrusted_cache, use_cache
from bbcu.deploy import native, onnx, reference
from bbcu.deploy.backends import Runner, runner
from bbcu.deploy.file import to_bytes
from bbcu.deploy.packed import DeployError, pack, packed_units
from bbcu.deploy.sizes import size_in
from bbcu.deploy.sources import find, twin_of
from bbcu.deploy.verify import skip_of
from bbcu.errors import ConfigError, first_line, shown, unknown
from bbcu.files import write_atomically
from bbcu.model.parts import binary_units
from bbcu.terminal import progress_shown, say

FORMAT, VERSION = "bbcu-latency", 1

SIZES = ((128, 128), (180, 320))
"""The sizes that are measured by default, (height, width) of the input in pixels; costs are counted for the last."""

REPEATS = 5
CELL_REPEATS = 7
"""Rounds for a cell of a study."""

ROUNDING, FEW_SIGNS = 1e-3, 0.05
"""The largest :func:`difference` of an engine that rounds otherwise than torch, without and with binary units.

Where a value is within rounding of its threshold, its sign may be the other one, which changes all that follow.
"""

LEAST_ADDED = 1e-3
"""A quarter of a grey level, for values in [0, 1]; the rounding of the skip connection alone is 1e-7."""

BUSY = 1.2
"""With one thread, wall time is CPU time unless other programs use the processor; above this ratio, they do."""

SETTLING_S = 0.02
"""Threads that wait for work go on trying for milliseconds; between two runs of several threads this time passes."""

CPU, WALL = "cpu_ms", "wall_ms"


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The least, the median and the largest of some times."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Timing:
    """How long a contender takes for a picture, in milliseconds.

    ``ratio_to_twin`` is its median over that of the twin, so that less is faster; None without a twin. ``engine`` is
    what runs it, ``prepare_s`` how long it took until its first output was there, compilation included, and
    ``difference`` how far that is from torch's, see :func:`difference`.
    """

    cpu_ms: Spread
    wall_ms: Spread
    ratio_to_twin: float | None
    engine: str
    prepare_s: float
    difference: float


@dataclass(frozen=True)
class Latency:
    """The contenders' times for a picture of a size in pixels, and the reasons why others are missing.

    ``by`` says which medians the ratios are of: CPU time for one thread, else wall time. ``busy`` is whether other
    programs seem to have used the processor; it is known for one thread only.
    """

    width: int
    height: int
    threads: int
    by: str
    busy: bool
    contenders: dict[str, Timing]
    missing: dict[str, str]


@dataclass(frozen=True)
class CellLatency:
    """What a study records of a cell: CPU times in milliseconds with one thread, and the size of its packed file.

    ``backend`` and ``twin`` name the engines of the two; ``size`` is (height, width) of the picture. Without a twin
    ``twin_ms``, ``latency_ratio`` and ``twin`` are None and ``missing`` says why. ``packed_kb`` is in 1000 bytes, and
    None for a network that has no packed file.
    """

    latency_ms: float
    twin_ms: float | None
    latency_ratio: float | None
    packed_kb: float | None
    backend: str
    twin: str | None
    size: tuple[int, int]
    missing: str | None = None


class Case:
    """A network that is measured on a picture of a size; its packed form and its twin are made when they are needed."""

    def __init__(self, network: nn.Module, height: int, width: int, twin: nn.Module | None = None) -> None:
        self.network = copy.deepcopy(network).cpu().float().eval()
        self.height, self.width, self._twin = height, width, twin
        shape = (1, onnx.colours_of(network), height, width)
        self.x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        self._expected: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def is_binary(self) -> bool:
        return bool(binary_units(self.network))

    @functools.cached_property
    def packed(self) -> nn.Module:
        return pack(self.network)

    @functools.cached_property
    def twin(self) -> nn.Module:
        """The full-precision twin; raises DeployError for a network of a user's own class, unless it was given."""
        return twin_of(self.network) if self._twin is None else copy.deepcopy(self._twin).cpu().float().eval()

    def expected(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return a network's output in torch, and what it would be if its layers added nothing."""
        if model not in self._expected:
            self._expected[model] = (reference.prepare(model)(self.x), skip_of(model, self.x))
        return self._expected[model]


# --- contenders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """What runs a network, the name of its engine, and the network whose output in torch it must have.

    ``is_exact`` demands that output bit for bit.
    """

    run: Runner
    engine: str
    model: nn.Module
    is_exact: bool = False


def in_torch(model: nn.Module) -> Contender:
    engine = "torch, packed" if packed_units(model) else "torch"
    return Contender(reference.prepare(model), engine, model, is_exact=True)


def in_onnxruntime(model: nn.Module, case: Case) -> Contender:
    reason = onnx.missing()
    if reason is not None:
        raise DeployError(reason)
    return Contender(onnx.onnx_runner(model, case.height, case.width), "onnxruntime", model)


def twin(case: Case) -> Contender:
    return in_torch(case.twin) if onnx.missing() else in_onnxruntime(case.twin, case)


def compiled(case: Case) -> Contender:
    reason = NO_COMPILER if cpp_compiler() is None else untrusted_cache(TORCH_CACHE)
    if reason is not None:
        raise DeployError(reason)
    # The same code for any number of threads, and no limit that counts the networks and sizes before this one.
    options = {**COMPILE_OPTIONS, "cpp.dynamic_threads": True}
    run = torch.compile(case.network, dynamic=False, options=options, isolate_recompiles=True)  # type: ignore[call-overload]
    return Contender(reference.prepare(run), "torch.compile", case.network)


def in_backend(case: Case, name: str) -> Contender:
    if not case.is_binary:
        raise DeployError("the network has no binary units")
    return Contender(runner(case.packed, name), name, case.network, is_exact=name == "native")


Way = Callable[[Case], Contender]

WAYS: dict[str, Way] = {
    "twin": twin,
    "twin_torch": lambda case: in_torch(case.twin),
    "torch": lambda case: in_torch(case.network),
    "torch_compiled": compiled,
    "onnxruntime": lambda case: in_onnxruntime(case.network, case),
    "openvino": functools.partial(in_backend, name="openvino"),
    "native": functools.partial(in_backend, name="native"),
}
"""Every contender: what makes it ready. It raises an error if it cannot run."""

DESCRIPTIONS = {
    "twin": "the full-precision network of the same layout in ONNX Runtime, or in torch where that is missing",
    "twin_torch": "the same in torch",
    "torch": "the network in torch, with its signs in floating point",
    "torch_compiled": "the same, compiled by torch.compile",
    "onnxruntime": "the same in ONNX Runtime",
    "openvino": "its packed form in OpenVINO, with binary convolutions",
    "native": "its packed form in this package's kernel",
}


def usual_contenders(network: nn.Module) -> tuple[str, ...]:
    """Return the contenders that are measured by default: for a binary network, not its float form in ONNX Runtime."""
    return tuple(name for name in WAYS if name != "onnxruntime" or not binary_units(network))


@dataclass(frozen=True)
class Ready:
    """A contender that gave the right output, and what :class:`Timing` says of that."""

    contender: Contender
    prepare_s: float
    difference: float


def prepare(
    case: Case, ways: Mapping[str, Way], progress: Callable[[str], None]
) -> tuple[dict[str, Ready], dict[str, str]]:
    """Return the contenders that are ready, and for each other the reason.

    Raises DeployError if the output of one is wrong.
    """
    ready, missing = {}, {}
    for name, way in ways.items():
        progress(f"{name}: getting ready")
        begin = time.perf_counter()
        try:
            contender = way(case)
            output = contender.run(case.x)
        # An engine raises errors of any kind.
        except Exception as error:
            missing[name] = first_line(error)
            progress(f"{name}: not measured: {missing[name]}")
            continue
        prepare_s = time.perf_counter() - begin
        ready[name] = Ready(contender, prepare_s, checked(name, contender, output, case))
        progress(f"{name}: ready after {prepare_s:.1f} s")
    return ready, missing


def checked(name: str, contender: Contender, output: Tensor, case: Case) -> float:
    """Return the difference between a contender's output and torch's; raises DeployError if it is wrong."""
    expected, skip = case.expected(contender.model)
    if output.shape != expected.shape:
        raise DeployError(f"{name}: its output is {tuple(output.shape)}, not {tuple(expected.shape)}")
    if contender.is_exact:
        if not torch.equal(output, expected):
            number = int((output != expected).sum())
            raise DeployError(f"{name}: {number:,} of {output.numel():,} values are not those of the float network")
        return 0.0
    found = difference(output, expected, skip)
    limit = FEW_SIGNS if binary_units(contender.model) else ROUNDING
    if not found <= limit:
        raise DeployError(f"{name}: its output differs from the float network's by {found:.2g}; at most {limit} may be")
    return found


def difference(output: Tensor, expected: Tensor, skip: Tensor) -> float:
    """Return the root mean square of ``output - expected`` over that of ``expected - skip``, what the layers add.

    Layers that add less than :data:`LEAST_ADDED`, as those of a twin with initial values, count as adding that much.
    """
    added = (expected - skip).square().mean().sqrt()
    return float((output - expected).square().mean().sqrt() / added.clamp_min(LEAST_ADDED))


# --- time -------------------------------------------------------------------------------------------------------------

Sample = tuple[float, float]
"""CPU time and wall time of a run, in milliseconds."""


def clock() -> tuple[int, int]:
    """Return the CPU time of this process and the wall time, in nanoseconds."""
    return time.process_time_ns(), time.perf_counter_ns()


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names with a later one first: each of them is first, second, ... equally often."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    before: Callable[[], None] = lambda: None,
    after_round: Callable[[int, Mapping[str, Sequence[Sample]]], None] = lambda number, samples: None,
    now: Callable[[], tuple[int, int]] = clock,
) -> dict[str, list[Sample]]:
    """Return the time of each run; the contenders take turns, in another order each round.

    ``before`` is called before each run, and ``after_round`` with the number of rounds and all times so far.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for number in range(repeats):
        for name in rotated(list(runs), number):
            before()
            with no_garbage_collection():
                cpu, wall = now()
                runs[name]()
                cpu_after, wall_after = now()
            samples[name].append(((cpu_after - cpu) / 1e6, (wall_after - wall) / 1e6))
        after_round(number + 1, samples)
    return samples


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def with_threads(number: int) -> Iterator[None]:
    """Let torch, and with it the backends, use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settle() -> None:
    """Wait until the threads of the run before do not use the cores any more."""
    if torch.get_num_threads() > 1:
        time.sleep(SETTLING_S)


def latency_of(
    samples: Mapping[str, Sequence[Sample]],
    ready: Mapping[str, Ready],
    missing: Mapping[str, str],
    *,
    size: tuple[int, int],
    threads: int,
) -> Latency:
    """Summarise the times of all rounds."""
    by = CPU if threads == 1 else WALL
    spreads = {
        name: {CPU: Spread.of([cpu for cpu, _ in each]), WALL: Spread.of([wall for _, wall in each])}
        for name, each in samples.items()
    }
    twins = spreads["twin"][by].median if "twin" in spreads else None
    timings = {
        name: Timing(
            cpu_ms=spread[CPU],
            wall_ms=spread[WALL],
            ratio_to_twin=None if twins is None else spread[by].median / twins,
            engine=ready[name].contender.engine,
            prepare_s=ready[name].prepare_s,
            difference=ready[name].difference,
        )
        for name, spread in spreads.items()
    }
    busy = threads == 1 and any(each[WALL].median > BUSY * each[CPU].median for each in spreads.values())
    height, width = size
    return Latency(width, height, threads, by, busy, timings, dict(missing))


def measure(
    network: nn.Module,
    *,
    size: tuple[int, int] = SIZES[-1],
    contenders: Sequence[str] | None = None,
    repeats: int = REPEATS,
    warm_up: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Latency:
    """Measure contenders, by default :func:`usual_contenders`, with as many threads as torch has now.

    ``size`` is (height, width) of the network's input in pixels. After its first output, which is checked, each
    contender runs ``warm_up`` times, and then ``repeats`` times that count. ``progress`` is called with lines of text.
    Raises DeployError if a contender's output is wrong; one that cannot run is in ``missing`` of the result.
    """
    machine.retain_freed_memory()
    case = Case(network, *size)
    names = usual_contenders(network) if contenders is None else contenders
    ready, missing = prepare(case, {name: WAYS[name] for name in names}, progress)
    runs = runs_of(ready, case)
    for _ in range(warm_up):
        for run in runs.values():
            run()

    def report(number: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        found = latency_of(samples, ready, missing, size=size, threads=torch.get_num_threads())
        progress(f"round {number} of {repeats}: {in_short(found)}")

    samples = interleaved(runs, repeats if runs else 0, before=settle, after_round=report)
    return latency_of(samples, ready, missing, size=size, threads=torch.get_num_threads())


def runs_of(ready: Mapping[str, Ready], case: Case) -> dict[str, Callable[[], object]]:
    """Return what runs each contender once."""
    return {name: functools.partial(each.contender.run, case.x) for name, each in ready.items()}


def measure_cell(
    network: nn.Module,
    *,
    twin: nn.Module | None = None,
    size: tuple[int, int] = SIZES[-1],
    repeats: int = CELL_REPEATS,
    on_run: Callable[[], None] = lambda: None,
) -> CellLatency:
    """Measure a network for a study: by the native kernel, or by torch where that cannot run, in CPU time, one thread.

    A network without binary units runs in the engine of its twin. ``twin`` is a full-precision network to compare with
    in place of the one of the same layout. ``on_run`` is called before each run. torch's number of threads is restored.
    Raises DeployError if the output of the network's packed form or of an engine is wrong.
    """
    machine.retain_freed_memory()
    case = Case(network, *size, twin)
    ready: dict[str, Ready] = {}
    missing: dict[str, str] = {}
    with with_threads(1):
        for name in ("native" if case.is_binary else "onnxruntime", "torch", "twin"):
            if name != "torch" or not ready:
                on_run()
                ready_one, missing_one = prepare(case, {name: WAYS[name]}, lambda line: None)
                ready |= ready_one
                missing |= missing_one
        samples = interleaved(runs_of(ready, case), repeats, before=on_run)
        found = latency_of(samples, ready, missing, size=size, threads=1)
    own = next((timing for name, timing in found.contenders.items() if name != "twin"), None)
    if own is None:
        raise DeployError(f"the network cannot be measured: {missing['torch']}")
    other = found.contenders.get("twin")
    return CellLatency(
        latency_ms=own.cpu_ms.median,
        twin_ms=None if other is None else other.cpu_ms.median,
        latency_ratio=own.ratio_to_twin,
        packed_kb=packed_kb(case),
        backend=own.engine,
        twin=None if other is None else other.engine,
        size=size,
        missing=missing.get("twin"),
    )


def packed_kb(case: Case) -> float | None:
    """Return the size of a network's packed file in 1000 bytes, or None if it has none."""
    try:
        return len(to_bytes(case.packed)) / 1000
    except DeployError:
        return None


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ", ".join(f"{width}x{height}" for height, width in SIZES)
    parser.add_argument(
        "--size",
        type=size_in,
        action="append",
        metavar="WIDTHxHEIGHT",
        help=f"of the network's input in pixels; may be given several times ({sizes})",
    )
    parser.add_argument(
        "--threads",
        type=threads_in,
        default=threads_in("1,all"),
        metavar="N,...",
        help="numbers of threads, or all for as many as there are cores (1,all)",
    )
    described = "; ".join(f"{name}: {text}" for name, text in DESCRIPTIONS.items())
    parser.add_argument(
        "--contenders",
        type=contenders_in,
        metavar="NAME,...",
        help=f"what is measured (all, but onnxruntime only for a network without binary units). {described}",
    )
    parser.add_argument("--repeats", type=repeats_in, default=REPEATS, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to this file as well")


def threads_in(text: str) -> tuple[int, ...]:
    """Return the numbers of threads, each once; raises ArgumentTypeError."""
    most = machine.cores()
    numbers: dict[int, None] = {}
    for part in text.split(","):
        if part != "all" and not (re.fullmatch(r"[0-9]{1,9}", part) and 1 <= int(part) <= most):
            raise argparse.ArgumentTypeError(f"{shown(part)!r} must be a number from 1 to {most}, the cores, or all")
        numbers[most if part == "all" else int(part)] = None
    return tuple(numbers)


def contenders_in(text: str) -> tuple[str, ...]:
    """Return the names of contenders, each once; raises ArgumentTypeError for an unknown one."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in WAYS:
            raise argparse.ArgumentTypeError(unknown("contender", name, WAYS))
    return names


def repeats_in(text: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,9}", text) and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} must be a whole number above 0")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Measure every size with every number of threads; print a table of each, and write the JSON file."""
    if options.json is not None and options.json.is_dir():
        raise ConfigError(f"--json {options.json}: a folder")
    native.instructions()  # refused now, and not after minutes
    # First of all: torch chooses the folder when any part of its compiler is imported.
    use_cache()
    source = find(options.cell, options.overrides)
    measurements = []
    say(f"{source.name}, on {machine.processor()}, {machine.cores()} cores")
    for size in options.size or SIZES:
        for threads in options.threads:
            with with_threads(threads), progress_shown() as progress:
                found = measure(
                    source.network,
                    size=size,
                    contenders=options.contenders,
                    repeats=options.repeats,
                    progress=progress,
                )
            measurements.append(found)
            say()
            say("\n".join(table(found, options.repeats)))
    if options.json is not None:
        try:
            write_atomically(options.json, json.dumps(document(source.name, measurements), indent=1) + "\n")
        except OSError as error:
            raise DeployError(f"--json {options.json}: cannot be written: {error.strerror or error}") from error


def document(cell: str, measurements: Sequence[Latency]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "cell": cell,
        "cpu": {
            "name": machine.processor(),
            "cores": machine.cores(),
            "instructions": list(machine.instructions()),
            "used_by_torch": torch.backends.cpu.get_cpu_capability(),
            "used_by_native": native.instructions(),
        },
        "packages": {name: installed(name) for name in ("torch", "onnxruntime", "openvino")},
        "measurements": [dataclasses.asdict(found) for found in measurements],
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_short(found: Latency) -> str:
    """Return the speed of each contender relative to the twin's, or its time where there is no twin."""
    parts = []
    for name, timing in found.contenders.items():
        if timing.ratio_to_twin is None:
            parts.append(f"{name} {getattr(timing, found.by).median:.1f} ms")
        elif name != "twin":
            parts.append(f"{name} x{1 / timing.ratio_to_twin:.2f}")
    return ", ".join(parts)


def table(found: Latency, repeats: int) -> list[str]:
    """Return the times of a measurement as lines."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    by = "CPU time" if found.by == CPU else "wall time"
    rows = [("contender", "engine", "CPU ms", "(min to max)", "wall ms", "(min to max)", "speed")]
    for name, timing in found.contenders.items():
        times = [
            text
            for spread in (timing.cpu_ms, timing.wall_ms)
            for text in (f"{spread.median:.1f}", f"({spread.min:.1f} to {spread.max:.1f})")
        ]
        speed = "-" if timing.ratio_to_twin is None else f"{1 / timing.ratio_to_twin:.2f}"
        rows.append((name, timing.engine, times[0], times[1], times[2], times[3], speed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    title = f"{found.width} x {found.height} pixels, {threads}: medians of {repeats} rounds"
    lines = [f"{title}; speed: times as fast as the twin, by {by}"]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(["", *left, *right]))
    lines += [f"  {name}: not measured: {reason}" for name, reason in found.missing.items()]
    lines += [
        f"  {name}: ready after {timing.prepare_s:.1f} s, most of it compilation"
        for name, timing in found.contenders.items()
        if timing.engine == "torch.compile"
    ]
    lines += [
        f"  {name}: its output differs from torch's by {timing.difference:.1g} of what the layers add"
        for name, timing in found.contenders.items()
        if timing.difference > ROUNDING
    ]
    if found.busy:
        lines.append(f"  the machine is busy: wall time is more than {BUSY} times CPU time")
    return lines
