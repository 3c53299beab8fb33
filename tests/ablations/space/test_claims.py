"""The paper's claims: what they predict, and which levels count as those of a claim."""

import pytest

from ablations.space.claims import CLAIMS, is_level


def test_a_claim_says_what_it_predicts_and_of_what() -> None:
    gap = "BatchNorm after the convolution closes the gap between the ranges of residual and branch"
    predicted = {claim.text: (claim.change, claim.predicted) for claim in CLAIMS}
    assert predicted["The residual raises PSNR"] == ("residual: false → true", "PSNR rises")
    assert predicted["Binarising the body costs PSNR"] == ("binarize: [] → [body]", "PSNR falls")
    assert predicted[gap] == ("bn: none → post, align: 1 → 1 at residual=true", "range gap falls")


@pytest.mark.parametrize(
    ("recorded", "wanted", "expected"),
    [
        pytest.param("130", ">1", True, id="aligned"),
        pytest.param("1", ">1", False, id="not aligned"),
        pytest.param("", ">1", False, id="no such factor"),
        pytest.param("1.0", "1", True, id="the same number"),
        pytest.param("[body,up]", "[body,up]", True, id="the same list"),
        pytest.param("[body]", "[body,up]", False, id="another list"),
    ],
)
def test_levels_are_compared_as_numbers_or_as_text(recorded: str, wanted: str, expected: bool) -> None:
    assert is_level(recorded, wanted) is expected
