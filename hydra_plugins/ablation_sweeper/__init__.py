"""Register the sweeper as a plugin of Hydra; its implementation is :mod:`ablations.sweep.sweeper`.

Hydra imports every plugin at each start, so nothing heavy is imported before a sweep begins.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ablations.config import SweeperConfig


class AblationSweeper(Sweeper):
    """Trains every cell of a design that is not done yet."""

    def __init__(self, **options: Any) -> None:
        # Hydra passes lists and mappings as nodes of its config; designs need plain ones.
        plain: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }
        self.options = SweeperConfig(**plain)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from ablations.sweep.launchers import with_launcher, with_ray

        config = with_ray(with_launcher(config, hydra_context.config_loader))
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from ablations.sweep.sweeper import sweep

        # Hydra's base class declares them optional; its own loader has called setup() before.
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        return sweep(arguments, self.options, self.config, self.hydra_context.config_loader, self.launcher)


ConfigStore.instance().store(group="hydra/sweeper", name="ablation", node=SweeperConfig, provider="bbcu")
