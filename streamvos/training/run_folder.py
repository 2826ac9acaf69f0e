"""The folder of a training run: one checkpoint, one log, one process at a time.

    with RunFolder(Path("runs/tvos"), identity) as run:
        saved = run.read()                  # None where the run begins
        run.begin(step)
        run.log(step, {"total": 1.5})
        run.save(step + 1, {"model": ...})

A run may be killed at any moment, the disk may fill up, and the run may be started twice or with other
options. None of that may lose the last checkpoint or mix two runs in one log.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from streamvos.types import InputError, SinkError

ENTRIES = {"identity", "model", "optimizer", "average", "step"}
"""Entries of a checkpoint: JSON, three state dicts, and the number of steps done."""


class RunFolder:
    """A run on the disk.

    Args:
        folder: created if missing.
        identity: options and data of the run, in JSON types; a checkpoint with another identity is refused.

    Raises:
        InputError: on entering, another process is training here.
        SinkError: on entering, the folder cannot be created or written to.
    """

    _log: IO[bytes]

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.checkpoint, self.losses = folder / "checkpoint.pt", folder / "losses.jsonl"

    def __enter__(self) -> RunFolder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = open(self.losses, "a+b", buffering=0)
        except OSError as error:
            raise self._unwritable(self.folder, error) from None
        try:
            # released however the process ends; the processes that make batches do not inherit it
            fcntl.lockf(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log.close()
            raise InputError(
                f"another process is training in {self.folder}; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        self._log = log
        for left_over in self.folder.glob(f".{self.checkpoint.name}.*"):  # of a process killed while it saved
            left_over.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()

    def read(self) -> dict[str, Any] | None:
        """The checkpoint with its tensors on the CPU; None if there is none.

        Raises:
            InputError: it cannot be read, or it belongs to another run; the message names the differences.
        """
        if not self.checkpoint.exists():
            return None
        try:
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self.damaged(reason) from None
        if not isinstance(saved, dict) or saved.keys() != ENTRIES or not isinstance(saved["step"], int):
            raise self.damaged(f"expected the entries {', '.join(sorted(ENTRIES))}")
        try:
            other = json.loads(saved["identity"])
        except (TypeError, ValueError):
            raise self.damaged("its identity cannot be read") from None
        if other != self.identity:
            raise InputError(
                f"{self.folder} holds a run with other options ({_differences(other, self.identity)}); give "
                "the same ones to resume it, or choose another folder"
            )
        return saved

    def damaged(self, reason: str) -> InputError:
        """The error for a checkpoint that cannot be used."""
        return InputError(
            f"the checkpoint {self.checkpoint} cannot be used ({reason}); put an intact copy in its place, "
            "or remove it to start the run from the beginning"
        )

    def begin(self, step: int) -> None:
        """Remove the log's lines from `step` on, which are written again, and a line that a crash cut off."""
        self._log.seek(0)
        content, kept = self._log.read(), 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n") or not 0 <= _step_of(line) < step:
                break
            kept += len(line)
        if kept < len(content):
            self._log.truncate(kept)

    def log(self, step: int, losses: Mapping[str, float]) -> None:
        """Append the losses of a step.

        Raises:
            SinkError: the disk is full.
        """
        line = json.dumps({"step": step, **losses}).encode() + b"\n"
        try:
            written = self._log.write(line)
            if written != len(line):  # the disk had room for a part; the next write raises the reason
                self._log.write(line[written:])
        except OSError as error:
            raise self._unwritable(self.losses, error) from None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; the old one stays until the new one is whole.

        Args:
            step: number of steps done.
            state: "model", "optimizer" and "average".

        Raises:
            SinkError: the disk is full.
        """
        # in memory first, since torch replaces errors of files by one without the reason
        content = io.BytesIO()
        torch.save({"identity": json.dumps(self.identity), "step": step, **state}, content)
        temporary = self.folder / f".{self.checkpoint.name}.{os.getpid()}"
        try:
            os.fsync(self._log.fileno())  # the log must have every step that the checkpoint counts
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.checkpoint)
        except OSError as error:
            raise self._unwritable(self.checkpoint, error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _unwritable(self, path: Path, error: OSError) -> SinkError:
        return SinkError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder; when "
            "started again, the run continues from its last checkpoint"
        )


def _step_of(line: bytes) -> int:
    """The step of a line of the log; -1 if it has none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _differences(there: Any, here: Any) -> str:
    """The entries in which two nested dictionaries differ, for an error message."""
    ours, theirs = _flat(here), _flat(there)
    names = [name for name in {**theirs, **ours} if theirs.get(name, "absent") != ours.get(name, "absent")]
    shown = [f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here" for name in names]
    return "; ".join(shown[:6]) + (f"; and {len(shown) - 6} more" if len(shown) > 6 else "")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"clips": {"size": 8}} -> {"clips.size": 8}."""
    if not isinstance(value, dict):
        return {name or "run": value}
    parts = [_flat(one, f"{name}.{key}".lstrip(".")) for key, one in value.items()]
    return {key: one for part in parts for key, one in part.items()}
