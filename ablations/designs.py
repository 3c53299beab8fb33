"""Designs: the rules that list which combinations of a sweep are trained, and in which order.

Pure functions over the texts that stand on a command line; what the texts mean is settled when a config is composed.
"""

import itertools
from collections.abc import Mapping, Sequence


def full(sweep: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The full factorial: every choice of one value for each key, the last key varying fastest.

    ``{"residual": ["true", "false"], "bn": ["pre", "post"]}`` yields ::

        ("residual=true", "bn=pre")
        ("residual=true", "bn=post")
        ("residual=false", "bn=pre")
        ("residual=false", "bn=post")
    """
    assignments = [[f"{key}={value}" for value in values] for key, values in sweep.items()]
    return list(itertools.product(*assignments))


def replicated(rows: Sequence[tuple[str, ...]], replicates: int) -> list[tuple[int, tuple[str, ...]]]:
    """Every row under each replicate, a whole replicate before the next begins.

    A sweep that is cut short then leaves whole replicates, which can be compared.
    """
    return [(replicate, row) for replicate in range(replicates) for row in rows]
