"""A fixture that the tests of faults share."""

from tests.harness.faults import undisturbed

__all__ = ["undisturbed"]
