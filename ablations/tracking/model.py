"""A trial's network as a model of MLflow, and how MLflow loads it: no pickle, and none of our code beside it.

The saved model is a trial's ``result.json`` and ``checkpoint.pt``. MLflow imports this module to load them, so the
environment needs this package. A model takes pictures of one size, (pictures, height, width, channels) in 8 bits, and
returns them restored, in the same form.
"""

import importlib.metadata
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.storage.folder import TrialFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from bbcu.training.evaluation import Evaluation

EXAMPLE = 16
"""The side of the picture in the example of an input, in pixels."""

NEEDED = ("mlflow", "torch", "numpy")
"""The packages that a model lists; this one is on no index."""


class Restorer:
    """What MLflow calls to restore pictures; ``network`` is in evaluation mode, on the CPU."""

    def __init__(self, network: "nn.Module", how: "Evaluation") -> None:
        self.network, self._how = network, how

    def predict(self, pictures: "NDArray[np.uint8]", params: object = None) -> "NDArray[np.uint8]":
        """Restore (pictures, height, width, channels) of 8 bits, as a test picture is; ``params`` has no meaning."""
        import numpy as np
        import torch

        from bbcu.training.evaluation import restore

        return np.stack([restore(self.network, picture, torch.device("cpu"), self._how) for picture in pictures])

    def get_raw_model(self) -> "nn.Module":
        """Return the network itself, as ``mlflow.pyfunc.load_model(...).get_raw_model()`` does."""
        return self.network


def _load_pyfunc(path: str) -> Restorer:
    """Load the network in a folder with a trial's result and checkpoint; MLflow calls this."""
    from bbcu.deploy.scoring import evaluation_of
    from bbcu.deploy.sources import of_trial

    source = of_trial(Path(path))
    return Restorer(source.network, evaluation_of(source))


def save_model(folder: TrialFolder, target: Path) -> None:
    """Save the network of a finished trial as a model of MLflow in the new folder ``target``.

    Raises BbcuError if the network cannot be rebuilt.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from bbcu.deploy.layout import layout_of

    data = target.with_name("trial")
    data.mkdir(parents=True)
    for path in (folder.result_path, folder.checkpoint_path):
        shutil.copyfile(path, data / path.name)
    restorer = _load_pyfunc(str(data))
    channels = layout_of(restorer.network).spec.colours
    example = np.full((1, EXAMPLE, EXAMPLE, channels), 128, np.uint8)
    form = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))])
    mlflow.pyfunc.save_model(
        target,
        loader_module=__name__,
        data_path=str(data),
        signature=ModelSignature(form, form),
        input_example=example,
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in NEEDED],
    )
