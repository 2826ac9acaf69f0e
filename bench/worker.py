"""A process that does jobs one after another; one that dies, hangs or fails costs its job only.

    with Worker("latency_work", {"OMP_NUM_THREADS": "2"}) as worker:
        answer = worker.ask("begin", {"method": "tvos", ...}, seconds=60)

The jobs of a module are its `JOBS`: name -> function of JSON values, whose answer is JSON. They run in one
process, whose memory is then that of a case alone, and may keep what they need in the module. What goes wrong
on a GPU may leave a process unable to use it: after every job it looks whether the device still works, and is
replaced if not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

OUT_OF_TIME = "out of time"

FOLDERS: list[str] = []
"""Folders with further modules of jobs; tests have their own."""


class JobError(Exception):
    """A job has no answer; the text says why, in one line."""


class Worker:
    """A process, started when it is first needed.

    Args:
        module: of this package, such as "latency_work".
        environment: variables that the process gets besides ours.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module, self._environment = module, environment or {}
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return None if self._process is None else self._process.pid

    def ask(self, job: str, given: Mapping[str, Any], seconds: float | None = None) -> Any:
        """The answer of a job.

        Args:
            job: a name in the module's `JOBS`.
            given: its arguments.
            seconds: after which the process is killed; None = never.

        Raises:
            JobError: it raised an error, its process died, or it took too long.
        """
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"job": job, "given": given}) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise JobError(OUT_OF_TIME) from None
        except OSError:
            line = None
        if line is None:
            code = process.wait()
            self.close()
            raise JobError(f"its process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("broken"):
            self.close()
        if "failed" in answer:
            raise JobError(answer["failed"])
        return answer["answer"]

    def close(self) -> None:
        """End the process; the next job starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:  # it died before it read all
                        continue

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        answers: queue.Queue[str | None] = queue.Queue()
        package = __package__ or "bench"
        root = str(Path(__file__).resolve().parents[len(package.split("."))])
        paths = [root, *FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", f"{package}.worker", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self._environment},
        )

        def read() -> None:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    answers.put(line)
            except ValueError:  # closed
                pass
            answers.put(None)

        threading.Thread(target=read, daemon=True).start()
        self._process, self._answers = process, answers
        return process


def _answer(jobs: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        answer = jobs[request["job"]](**request["given"])
        return {"answer": answer, "broken": not _device_works()}
    except Exception as error:  # whatever it is, the next job is worth trying
        if os.environ.get("STREAMVOS_TRACEBACK"):
            traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        return {"failed": f"{type(error).__name__}: {first}"[:300], "broken": not _device_works()}


def _device_works() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except Exception:
        return False
    return True


def main(module: str) -> None:
    """Answer jobs, one JSON line each, until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    # what libraries print must not come between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name = f".{module}" if importlib.util.find_spec(f".{module}", __package__) else module
    jobs = importlib.import_module(name, __package__).JOBS
    for line in sys.stdin:
        print(json.dumps(_answer(jobs, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
