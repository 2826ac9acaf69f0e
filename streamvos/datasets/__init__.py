"""Data sets with their ground truth: DAVIS, YouTube-VOS, and clips for training."""
