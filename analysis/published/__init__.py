"""The paper's tables as data, and the doubts about them."""
