"""`bench gpu`: how fast every method is on a GPU, end to end, and what the kernels are worth.

`command` is the command, `cases` what is measured, `work` and `kernels` are what its processes do.
"""

from .command import EXAMPLES, command

__all__ = ["EXAMPLES", "command"]
