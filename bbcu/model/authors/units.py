"""Units and pairs of units of other authors."""

from bbcu.model.authors.state import Kind

KINDS: dict[str, Kind] = {}
