"""How good the masks are, and how late.

`measures` defines J and F of one frame, `evaluation` and `youtube_vos` the protocols over a sequence,
`scores` the numbers that papers print; `folders` scores files; `sequences` runs a segmenter on a data set,
and `streaming` decides which of its masks are in time; `latency` keeps percentiles of durations.
"""
