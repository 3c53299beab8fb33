"""Designs list the combinations of a sweep."""

import pytest

from ablations.designs import full, replicated


@pytest.mark.parametrize(
    ("sweep", "rows"),
    [
        pytest.param({}, [()], id="nothing to vary is one row"),
        pytest.param({"bn": ["pre"]}, [("bn=pre",)], id="one value"),
        pytest.param(
            {"residual": ["true", "false"], "bn": ["pre", "post"]},
            [
                ("residual=true", "bn=pre"),
                ("residual=true", "bn=post"),
                ("residual=false", "bn=pre"),
                ("residual=false", "bn=post"),
            ],
            id="the last key varies fastest",
        ),
        pytest.param({"bn": []}, [], id="no value, no row"),
    ],
)
def test_full_factorial(sweep: dict[str, list[str]], rows: list[tuple[str, ...]]) -> None:
    assert full(sweep) == rows


def test_a_replicate_is_whole_before_the_next_begins() -> None:
    assert replicated([("bn=pre",), ("bn=post",)], 2) == [
        (0, ("bn=pre",)),
        (0, ("bn=post",)),
        (1, ("bn=pre",)),
        (1, ("bn=post",)),
    ]
