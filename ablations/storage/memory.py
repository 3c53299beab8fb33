"""Python's collector of cycles, held off where a study of thousands of trials makes objects by the million."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Hold the collector off for the body.

    It goes through all that there is whenever much is new, and finds nothing, as what is made of a plan or of MLflow's
    runs stays: it took two thirds of the time in which MLflow lists thousands of runs. What has no cycle is freed as
    ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
