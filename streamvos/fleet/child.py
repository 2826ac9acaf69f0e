"""The process in which a share's pipeline runs: an ordinary supervisor that ends with whoever started it.

    python -m streamvos.fleet.child < pipe          # the first line is the pipeline's configuration as JSON

When the pipe closes, in whatever way its other end has died, the pipeline ends in order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.supervision.supervisor import Supervisor
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import StreamvosError

_END_SECONDS = 10.0  # then it is killed


def main() -> int:
    """Run the pipeline; the exit code is the supervisor's, 2 if it cannot begin."""
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    log = EventLog("json")
    try:
        return Supervisor(make_config(config), log).run()
    except StreamvosError as error:
        log.event("cannot_begin", "error", error=str(error))
        return 2
    finally:
        log.close()


def _end_with_the_pipe() -> None:
    while sys.stdin.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
