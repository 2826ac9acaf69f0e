"""Streams over many machines: which share of one runs which, and what outlives it (docs/scale.md)."""
