"""Which launcher runs the trials of a sweep where the user has not said: side by side where that is faster."""

import importlib.util
import os

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ablations.trial.devices import visible_gpus

JOBLIB = "joblib"


def with_launcher(config: DictConfig, config_loader: ConfigLoader) -> DictConfig:
    """The config of a sweep, with joblib for its launcher where nobody has chosen one and that is faster.

    Several trials of one thread each share cores better than one trial of several threads, since much of a trial is not
    its steps. So joblib is chosen on several cores without a GPU, and with several GPUs for a trial on each; with one
    GPU trials run one after the other. It must be installed, and any launcher that is typed, or that a study chooses,
    stays.
    """
    jobs = jobs_side_by_side()
    if jobs == 1 or is_chosen(config) or JOBLIB not in config_loader.get_group_options("hydra/launcher"):
        return config
    changed = config.copy()
    with read_write(changed), open_dict(changed):
        changed.hydra.launcher = ConfigStore.instance().load(f"hydra/launcher/{JOBLIB}.yaml").node
        changed.hydra.launcher.n_jobs = jobs
    return changed


def is_chosen(config: DictConfig) -> bool:
    """Whether a user, or a study, has chosen a launcher or said something of one."""
    typed = [text.lstrip("+~") for text in OmegaConf.select(config, "hydra.overrides.hydra") or []]
    names_one = any(text.startswith(("hydra/launcher", "hydra.launcher")) for text in typed)
    return names_one or OmegaConf.select(config, "hydra.runtime.choices")["hydra/launcher"] != "basic"


def jobs_side_by_side() -> int:
    """How many trials to run side by side: one for each GPU, or for each core where there is none."""
    return gpus() or len(os.sched_getaffinity(0))


def gpus() -> int:
    """How many GPUs there are; torch, which takes a second to import, is asked only where there may be one."""
    may_have_one = os.path.exists("/proc/driver/nvidia") or os.path.exists("/dev/kfd")
    return visible_gpus() if may_have_one and importlib.util.find_spec("torch") else 0
