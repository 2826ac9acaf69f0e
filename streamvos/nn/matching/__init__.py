"""Matching of FEELVOS: `distances`, and their kernels for a GPU."""
