"""The command that trains: one trial, or a sweep with ``-m``; ``run.py`` and the installed ``bbcu`` start here."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ablations.config import explain, refuse_long_numbers, register, typed
from ablations.storage import stopping
from bbcu.errors import BbcuError, ConfigError, first_line, printable, shown
from bbcu.passwords import masked
from bbcu.terminal import discard_output, protect_output

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = Path(__file__).with_name("conf")
CONF = INSTALLED if INSTALLED.is_dir() else ROOT / "conf"
"""The folder of configs: a wheel has it in the package, a clone at its root."""

PRINT_CONFIG = {"--cfg", "-c", "--info", "-i"}
"""The options of Hydra that print a config and run nothing."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float:
    """Run the trial that ``config`` describes; return its mean PSNR over the test sets, in dB."""
    from ablations.trial.execution import run_trial

    # A launcher may call this function in a process of its own.
    protect_output()
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if not in_sweep:
            refuse_sweeper_keys(HydraConfig.get())
        return run_trial(typed(config), in_sweep=in_sweep)
    except stopping.Interrupted as error:
        if in_sweep:
            raise
        print(f"{program()}: {error}; {stopping.RESUME}", file=sys.stderr)
        sys.exit(128 + (stopping.received_signal() or signal.SIGINT))
    except BbcuError as error:
        if in_sweep:
            raise
        # Hydra prints a line of its own above every exception; exiting is the only way around it.
        sys.exit(f"{program()}: {error}")


def refuse_sweeper_keys(hydra_config: HydraConf) -> None:
    """Raise ConfigError if keys of a sweep are given without ``-m``, since they would have no effect."""
    given = [override for override in hydra_config.overrides.hydra if override.startswith("hydra.sweeper.")]
    if given:
        raise ConfigError(f"{given[0]}: is for a sweep, and this is one trial; add -m")
    swept = hydra_config.sweeper.params
    if swept:
        raise ConfigError(f"the study sweeps over {', '.join(swept)}, and this is one trial; add -m")


def is_of_this_code(error: Exception) -> bool:
    """Whether an error arose after Hydra had composed the config and called this package: it is a mistake in it."""
    calls = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.partition(".")[0] in ("ablations", "bbcu", "hydra_plugins") for name in calls if name != __name__)


def program() -> str:
    """The name under which the command was started."""
    return Path(sys.argv[0]).name


def main() -> None:
    """Run the command; a mistake of the user ends it with one line."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then raises its errors instead of printing several lines of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Launchers that start processes of their own, as submitit does, start them in other folders.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    protect_output()
    try:
        register()
        refuse_long_numbers(sys.argv[1:])
        with _masked_config(sys.argv[1:]):
            run()
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except (BbcuError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        sys.exit(f"{program()}: {error if isinstance(error, BbcuError) else printable(masked(explain(error)))}")
    except Exception as error:
        if wants_traceback or is_of_this_code(error):
            raise
        # Hydra, OmegaConf and PyYAML raise almost anything for what they cannot read or write.
        mark = getattr(error, "problem_mark", None)
        where = "the config" if mark is None else f"{printable(mark.name)}, line {mark.line + 1}"
        why = first_line(getattr(error, "problem", None) or error)
        sys.exit(f"{program()}: {where} cannot be used: {type(error).__name__}: {shown(why, 500)}")
    except KeyboardInterrupt:
        print(f"{program()}: stopped; finished results are saved; {stopping.RESUME}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def _masked_config(arguments: Sequence[str]) -> Iterator[None]:
    """Mask the passwords in a config that Hydra prints instead of running it."""
    if not PRINT_CONFIG & {text.partition("=")[0] for text in arguments}:
        yield
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(masked(printed.getvalue()))
