"""Matching on a GPU, in Triton."""
