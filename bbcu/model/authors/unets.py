"""Shape-changing units and U-Nets of other authors."""

from bbcu.model.authors.state import Kind

KINDS: dict[str, Kind] = {}
