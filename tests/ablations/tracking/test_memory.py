"""The collector of cycles is held off for a while, and left as it was."""

import gc
from collections.abc import Iterator

import pytest

from ablations.tracking.client import without_garbage_collection


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_in_the_body_and_all_is_as_before_behind_it() -> None:
    with without_garbage_collection():
        assert not gc.isenabled()
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_on_again_when_the_body_fails() -> None:
    with pytest.raises(RuntimeError), without_garbage_collection():
        raise RuntimeError
    assert gc.isenabled()


def test_where_somebody_has_turned_it_off_it_stays_off() -> None:
    gc.disable()
    with without_garbage_collection():
        pass
    assert not gc.isenabled()
