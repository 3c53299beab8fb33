"""Hydra's launchers: the default choice, and how each of them runs trials."""

import atexit
import contextlib
import dataclasses
import importlib.util
import os
import secrets
import socket
import tempfile
import urllib.parse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ablations.config import AUTO, JOBLIB, Config
from ablations.sweep.sharing import GpuShare
from ablations.trial.devices import visible_gpus
from bbcu.errors import LONGEST_LINE, BbcuError, ConfigError, first_line, shown
from bbcu.files import remove_abandoned, temporary_folder

BATCH = 32
"""The smallest batch of trials for a launcher on this machine; a sweep that is stopped waits for its batch."""

BATCHES_PER_WORKER = 8
"""The number of trials in a batch for each worker, so that workers rarely idle at the end of a batch."""

REMOTE_BATCH = 1000
"""The size of a batch for a launcher that submits trials to other machines."""


# --- the choice -------------------------------------------------------------------------------------------------------


def with_launcher(config: DictConfig, config_loader: ConfigLoader) -> DictConfig:
    """Return the config of a sweep, with joblib as the launcher if none is chosen and several trials can run at once.

    Several trials of one thread each share cores better than one trial of several threads, since much of a trial is not
    its steps, and a small network leaves a GPU idle for most of its time. A launcher that the user or a study names is
    used. Raises ConfigError for a wrong ``n_jobs``.
    """
    _jobs(config.hydra.launcher)
    runs_one = cores() == 1 and gpus("auto") < 2
    if runs_one or is_chosen(config) or JOBLIB not in config_loader.get_group_options("hydra/launcher"):
        return config
    changed = config.copy()
    with read_write(changed), open_dict(changed):
        changed.hydra.launcher = ConfigStore.instance().load(f"hydra/launcher/{JOBLIB}.yaml").node
    return changed


def is_chosen(config: DictConfig) -> bool:
    """Return whether the user or a study selects a launcher or sets one of its options."""
    overrides = [text.lstrip("+~") for text in OmegaConf.select(config, "hydra.overrides.hydra") or []]
    names_one = any(text.startswith(("hydra/launcher", "hydra.launcher")) for text in overrides)
    return names_one or OmegaConf.select(config, "hydra.runtime.choices")["hydra/launcher"] != "basic"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def gpus(device: str) -> int:
    """Count the GPUs on which trials run that have this ``device``, that of :class:`ablations.config.Config`.

    It imports torch, which takes a second, only if there may be one.
    """
    if device == "cpu" or not may_have_gpu():
        return 0
    return visible_gpus() if device == "auto" else 1


def may_have_gpu() -> bool:
    has_driver = os.path.exists("/proc/driver/nvidia") or os.path.exists("/dev/kfd")
    return has_driver and importlib.util.find_spec("torch") is not None


# --- Ray: a cluster on this machine alone, or one to join ------------------------------------------------------------

RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"

RAY_TO_ITSELF = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Variables that keep a cluster of Ray to this machine and its user.

The first says that the cluster does not span machines, so it listens on the loopback interface; that is Ray's default
except on Linux. The second asks every client for a token.
"""

RAY_AS_GUEST = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
"""Variables for joining a cluster: Ray would try twenty times, half a minute each, to reach one that is gone."""

OF_A_START = (
    *("num_cpus", "num_gpus", "resources", "labels", "object_store_memory"),
    *("_system_config", "_enable_object_reconstruction", "_node_name"),
)
"""The options of ``ray.init`` that say what a new cluster is like; Ray refuses them from those who join one."""

OBJECT_STORE_BYTES = 75 * 2**20
"""The memory that Ray sets aside for what jobs pass to each other: the least it takes, as its launcher asks for."""

SOCKET_LENGTH = 107
"""How many bytes the path of a socket may have on Linux."""

REACH_SECONDS = 10
"""How long to wait for a connection to a cluster."""


def with_ray(config: DictConfig) -> DictConfig:
    """Return the config of a sweep with the options that Ray's launcher needs, if it is the launcher.

    Without an address, Ray starts a cluster, whatever runs on this machine. With one, it joins that cluster. Call this
    before Ray is imported. Raises ConfigError for an option that a sweep which joins a cluster cannot have.
    """
    launcher = OmegaConf.select(config, "hydra.launcher")
    if OmegaConf.select(launcher, "_target_") != RAY:
        return config
    changed = config.copy()
    with read_write(changed), open_dict(changed):
        init = changed.hydra.launcher.ray.init
        if init.get("address") in (None, "local"):
            _with_private_cluster(init)
        else:
            _as_guest(init)
    return changed


def _with_private_cluster(init: DictConfig) -> None:
    """Keep the cluster that Ray is about to start to this user on this machine; options that are set stay.

    Everybody who reaches a cluster can run code in it.
    """
    # Without an address Ray joins a cluster that RAY_ADDRESS names or that was started here last.
    init.address = "local"
    init.setdefault("include_dashboard", False)
    init.setdefault("object_store_memory", OBJECT_STORE_BYTES)
    for variable, value in RAY_TO_ITSELF.items():
        os.environ.setdefault(variable, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray would write one into a file of the home, with the modes of the umask.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    place = next(filter(_is_short, (tempfile.gettempdir(), "/tmp")), None)
    if "RAY_TMPDIR" not in os.environ and place is not None:
        os.environ["RAY_TMPDIR"] = str(_ray_folder(Path(place) / "ray"))


def _as_guest(init: DictConfig) -> None:
    """Leave a cluster that the sweep joins as it is; raise ConfigError for an option that would change it."""
    for name in OF_A_START:
        if init.get(name) is not None:
            raise ConfigError(
                f"hydra.launcher.ray.init.{name}={init[name]}: is what `ray start` takes, and cannot be set by a sweep "
                f"that joins a cluster (hydra.launcher.ray.init.address={init.address})"
            )
    # The launcher sets a size of its own if there is none, which Ray would refuse.
    init.object_store_memory = None
    for variable, value in RAY_AS_GUEST.items():
        os.environ.setdefault(variable, value)


def connect_to_ray(launcher: DictConfig) -> None:
    """Start the cluster of Ray, or join it, before any trial is passed to the launcher, which then uses it.

    Raises BbcuError if there is no such cluster, or if it refuses this program.
    """
    init: Any = OmegaConf.to_container(launcher.ray.init, resolve=True)
    asked = str(init["address"])
    address = (asked == "auto" and os.environ.get("RAY_ADDRESS")) or asked
    failed = (
        f"hydra.launcher.ray.init.address={asked}: cannot " + ("start" if address == "local" else "join") + " a cluster"
    )
    _check_reachable(address, failed)
    import ray

    if ray.is_initialized():
        return
    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(**init)
    except Exception as error:
        raise BbcuError(f"{failed}: {_reason(error, address)}") from error


def _check_reachable(address: str, failed: str) -> None:
    """Raise BbcuError if nothing listens at HOST:PORT; Ray itself would wait for a minute and more."""
    try:
        parts = urllib.parse.urlsplit(f"//{address.rpartition('://')[2]}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BbcuError(f"{failed}: {first_line(error)}") from error
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), REACH_SECONDS).close()
    except OSError as error:
        raise BbcuError(f"{failed}: nothing answers at {host}:{port} ({first_line(error)})") from error


def _reason(error: Exception, address: str) -> str:
    """Return why Ray did not connect, in one line."""
    # The error that counts may be in the text of a traceback, in the cause of Ray's own error.
    if "AuthenticationError" in f"{error!r} {error.__cause__!r}":
        return "the token is refused; RAY_AUTH_MODE and the token must be those of its `ray start`"
    text = " ".join(str(error).split())
    if address.startswith("ray://") and "timeout" in text:
        return f"{text}; the port must be that of Ray's client server (10001), and the token that of its `ray start`"
    return shown(text, LONGEST_LINE)


def _is_short(folder: str) -> bool:
    """Return whether Ray can make sockets in a temporary folder of this folder, which it calls by long names."""
    example = "/.ray.0123456789ab.tmp/ray/session_2030-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    return len(os.fsencode(folder + example)) <= SOCKET_LENGTH and os.access(folder, os.W_OK)


def _ray_folder(place: Path) -> Path:
    """Make a folder for Ray's sockets and logs, which is removed when this process has ended Ray."""
    remove_abandoned(place.parent, place.name)
    until_exit = contextlib.ExitStack()
    folder = until_exit.enter_context(temporary_folder(place))
    folder.chmod(0o700)
    # Ray ends its cluster at the exit too, and before, since it is imported later.
    atexit.register(until_exit.close)
    return folder


# --- how each launcher runs trials ------------------------------------------------------------------------------------


def _jobs(launcher: DictConfig) -> int | None:
    """Return how many jobs the key ``n_jobs`` allows at once, or None for a launcher without that key."""
    jobs = OmegaConf.select(launcher, "n_jobs")
    if jobs is None:
        return None
    if jobs != AUTO and type(jobs) is not int:
        raise ConfigError(f"hydra.launcher.n_jobs={shown(jobs)}: must be {AUTO} or a whole number")
    return cores() if jobs == AUTO or jobs < 1 else jobs


def _ray_jobs(launcher: DictConfig) -> int | None:
    if OmegaConf.select(launcher, "ray.init.address") not in (None, "local"):
        return None
    return int(OmegaConf.select(launcher, "ray.init.num_cpus") or cores())


@dataclass(frozen=True)
class LauncherKind:
    """How a launcher runs jobs.

    ``at_once`` returns how many it runs at once, or None if that is unknown. ``starts_all`` is set if it starts a
    process for every job of a batch immediately. ``connect`` is called before the first batch.
    """

    at_once: Callable[[DictConfig], int | None] = _jobs
    starts_all: bool = False
    connect: Callable[[DictConfig], None] = lambda launcher: None


KINDS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": LauncherKind(lambda launcher: 1),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": LauncherKind(
        lambda launcher: cores(), True
    ),
    RAY: LauncherKind(_ray_jobs, connect=connect_to_ray),
}
"""The kind of each launcher, by the ``_target_`` of its config; others run as many jobs as ``n_jobs`` allows."""


def kind_of(launcher: DictConfig) -> LauncherKind:
    return KINDS.get(str(OmegaConf.select(launcher, "_target_")), LauncherKind())


def connect(master: DictConfig) -> None:
    """Connect to where the trials of a sweep run, unless that is done; raise BbcuError if it cannot be reached."""
    launcher = OmegaConf.select(master, "hydra.launcher")
    kind_of(launcher).connect(launcher)


@dataclass(frozen=True)
class Workers:
    """Where trials run: Hydra's launcher, how many at once (None if unknown), and the overrides of each job.

    With ``divides_cores`` each of the trials at once gets its part of the cores. A ``share`` says how many trials the
    memory of the GPUs allows at once.
    """

    launcher: Launcher
    at_once: int | None
    overrides: tuple[str, ...]
    session: str = ""
    starts_all: bool = False
    divides_cores: bool = False
    share: GpuShare | None = None

    @classmethod
    def of(
        cls, launcher: Launcher, master: DictConfig, base: Config, session: str, *, silent: bool = False
    ) -> "Workers":
        """Return the workers of a sweep.

        Trials that run at once divide the cores, because waiting threads spin and slow the others down. Trials do not
        draw progress bars or repeat what the sweep prints. ``silent`` keeps other processes from writing to a terminal
        that the sweep draws on; their logs are complete.
        """
        config = OmegaConf.select(master, "hydra.launcher")
        kind = kind_of(config)
        at_once, share = kind.at_once(config), None
        if OmegaConf.select(config, "n_jobs") == AUTO and (present := gpus(base.device)):
            share = GpuShare(present, cores())
            at_once = share.at_once
        level = "CRITICAL" if silent and (at_once != 1 or share) else "WARNING"
        overrides = (
            f"session='{session}'",  # in quotes: Hydra reads 193843137e02 as a number
            "progress=false",
            f"++hydra.job_logging.handlers.console.level={level}",
        )
        return cls(launcher, at_once, overrides, session, kind.starts_all, base.threads == "auto", share)

    @property
    def batch(self) -> int:
        """The number of trials to pass to the launcher at once."""
        if self.starts_all or not (self.share is None or self.share.is_measured):
            return self.at_once or 1
        return REMOTE_BATCH if self.at_once is None else max(BATCH, BATCHES_PER_WORKER * self.at_once)

    @property
    def shares_gpus(self) -> bool:
        """Whether several trials run on one GPU, because their memory allowed it."""
        return self.share is not None and self.share.at_once > self.share.gpus

    def launch(self, jobs: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        """Run these jobs, each given by its overrides, and return how each ended, in this order."""
        own = list(self.overrides)
        if self.divides_cores and self.at_once not in (None, 1):
            own.append(f"threads={max(1, cores() // self.at_once)}")
        options = getattr(self.launcher, JOBLIB, None)
        if options is not None:
            # With one job joblib runs it in this process, which would keep its part of the GPU from then on.
            alone = self.share is not None and not self.share.is_measured and self.at_once == 1
            options["n_jobs"] = 2 if alone else self.at_once
        return self.launcher.launch([[*job, *own] for job in jobs], initial_job_idx=0)

    def with_share(self, share: GpuShare) -> "Workers":
        return dataclasses.replace(self, share=share, at_once=share.at_once)
