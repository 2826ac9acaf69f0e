"""Data sets and synthetic videos, each with its ground truth."""
