"""Propagation on a GPU, in Triton."""
