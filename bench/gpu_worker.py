"""A process that does jobs of bench/gpu.py one after another; one that dies or hangs costs its job only.

    worker = Worker("cuda", {"OMP_NUM_THREADS": "2"})
    answer = worker.ask({"kind": "follow", ...}, seconds=60)       # {"rows": [...]} or {"failed": "..."}

What goes wrong on a GPU may leave its process unable to use it: after every job it looks whether the device
still works, and is replaced if not. Jobs and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from typing import Any

OUT_OF_TIME = "out of time"


class Worker:
    """A process, started when it is first needed.

    Args:
        device: where it works.
        environment: variables that it gets besides ours.
    """

    def __init__(self, device: str, environment: dict[str, str] | None = None):
        self._device, self._environment = device, environment or {}
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def ask(self, job: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Its answer.

        Args:
            job: see `gpu_cases.run_job`.
            seconds: after which the process is killed; None = never.

        Returns:
            "rows", or "failed" with the reason.
        """
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            return {"failed": OUT_OF_TIME}
        except OSError:
            line = None
        if line is None:
            code = process.wait()
            self.close()
            return {"failed": f"its process ended with code {code}"}
        answer: dict[str, Any] = json.loads(line)
        if answer.pop("broken", False):
            self.close()
        return answer

    def close(self) -> None:
        """End the process; the next job starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        answers: queue.Queue[str | None] = queue.Queue()
        process = subprocess.Popen(
            [sys.executable, __file__, self._device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._environment},
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        threading.Thread(target=read, daemon=True).start()
        self._process, self._answers = process, answers
        return process


def answer_to(job: dict[str, Any], device: Any) -> dict[str, Any]:
    """Rows, or why there are none: a job that fails does not cost the others."""
    import torch
    from gpu_cases import run_job, wait

    answer: dict[str, Any]
    try:
        answer = {"rows": run_job(job, device)}
    except Exception as error:  # whatever it is, the next job is worth trying
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        answer = {"failed": f"{type(error).__name__}: {first}"[:300]}
    try:
        wait(device)
        torch.ones(1, device=device).add_(1).item()
    except Exception:
        answer["broken"] = True
    return answer


def main(device_name: str) -> None:
    # what libraries print must not come between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from streamvos.engines.eager import choose_device

    device = choose_device(device_name)
    for line in sys.stdin:
        print(json.dumps(answer_to(json.loads(line), device)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
