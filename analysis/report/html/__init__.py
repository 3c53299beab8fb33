"""The page of a report in HTML: one self-contained file, complete without JavaScript and better with it."""
