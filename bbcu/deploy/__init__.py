"""Packed networks: one bit a binary weight, their file, the backends that run them, and how long they take."""
