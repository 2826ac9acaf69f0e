"""Environment variables for a while.

with environment_variables(TMPDIR="/somewhere"): ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.RLock()


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Libraries that this process calls, and programs that it starts, see other values.

    The environment is the process's: a second thread waits until the first has left.

    Args:
        values: by name; all are as before afterwards.
    """
    with _one_at_a_time:
        before = {name: os.environ.get(name) for name in values}
        try:
            os.environ.update(values)
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
