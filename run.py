"""One trial, or a sweep with -m: ``python run.py -m residual=true,false bn=pre,post``."""

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ablations.config import explain, register, typed
from ablations.storage import stopping
from bbcu.errors import BbcuError, ConfigError

GOES_ON = "the same command goes on from there"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(config: DictConfig) -> float:
    """Run the trial that ``config`` describes; its mean PSNR over the test sets, in dB."""
    from ablations.trial.execution import run_trial

    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if not in_sweep:
            refuse_sweeper_keys(HydraConfig.get())
        return run_trial(typed(config), in_sweep=in_sweep)
    except stopping.Interrupted as error:
        if in_sweep:
            raise
        print(f"run.py: {error}; {GOES_ON}", file=sys.stderr)
        sys.exit(128 + (stopping.asked_by() or signal.SIGINT))
    except BbcuError as error:
        if in_sweep:
            raise
        # Hydra would write a line of its own above an exception; leaving is the only way past it.
        sys.exit(f"run.py: {error}")


def refuse_sweeper_keys(hydra_config: HydraConf) -> None:
    """Raise ConfigError where a sweep is described and none was asked for: nothing of it would come true."""
    given = [override for override in hydra_config.overrides.hydra if override.startswith("hydra.sweeper.")]
    if given:
        raise ConfigError(f"{given[0]}: speaks of a sweep, and this is one trial; add -m")
    swept = hydra_config.sweeper.params
    if swept:
        raise ConfigError(f"the study sweeps over {', '.join(swept)}, and this is one trial; add -m")


def main() -> None:
    """Run, and tell what a user can mend in one line."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # With this set, Hydra hands its errors on as they are instead of printing several lines of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run()
    except (BbcuError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        sys.exit(f"run.py: {error if isinstance(error, BbcuError) else explain(error)}")
    except KeyboardInterrupt:
        print(f"run.py: stopped; what is finished is kept, and {GOES_ON}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


register()
# A launcher that starts processes of its own, as submitit does, starts them in other folders.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

if __name__ == "__main__":
    main()
