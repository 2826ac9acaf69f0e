"""The folder of a run: checked before the work, locked and filled during it.

A second run into the same folder replaces everything that the first one wrote; files of the user are left
alone, and one in the place of an output is refused before anything starts.

    out/.streamvos-files        the record of our own files
    out/labels/00000.png ...    label maps
    out/overlay.mp4             pictures with the objects drawn over them
    out/results.jsonl           one line per frame
    out/results.mcap, out/rosbag/    recordings, if asked for
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from streamvos.cli.output import check_writable
from streamvos.cli.signals import Stopped, signals_held
from streamvos.sinks import MultiSink, open_sinks
from streamvos.sinks.claim import Claim, files_of_recording
from streamvos.sinks.conflicts import Place, refuse_conflicts
from streamvos.sinks.multi import LABELS, MCAP, OVERLAY, RESULTS, ROSBAG, claim_folder
from streamvos.sources import Source
from streamvos.sources.places import files_of, may_name
from streamvos.types import Frame, Result, StreamvosError


def read_from(source: str) -> list[Place]:
    """What a source reads, for `refuse_conflicts`."""
    return [Place(path, "the source", reads=reads) for path, reads in files_of(source)]


def claim_out(
    out: Path,
    source: str,
    kinds: dict[str, bool],
    written: Iterable[Place],
    read: Iterable[Place],
    overwrite: bool,
) -> Claim:
    """Check before the work that a run can write into `out`; makes nothing.

    Args:
        out: the folder.
        source: the run's source.
        kinds: "labels", "overlay", "results", "mcap" and "rosbag" -> whether it is written.
        written: what the run writes elsewhere.
        read: what the run reads besides its source.
        overwrite: whether files of the user are replaced.

    Returns:
        The claim of the outputs, to be entered when the first frame is written.

    Raises:
        InputError: `out` is a file or in use, the run would replace what it reads, or a file of the user.
        SinkError: missing permission.
    """
    check_writable(out)
    # files of an earlier run are removed, so even what is not written must not be read
    outputs = [
        Place(out / name, "--out", is_folder=name == LABELS) for name in (LABELS, OVERLAY, RESULTS, MCAP)
    ]
    outputs += [Place(path, "--out") for path in files_of_recording(out / ROSBAG)]
    refuse_conflicts([*outputs, *written], [*read_from(source), *read])
    claim = claim_folder(
        out,
        labels=kinds["labels"],
        overlay=kinds["overlay"],
        results=kinds["results"],
        mcap=kinds.get("mcap", False),
        rosbag=kinds.get("rosbag", False),
        may_name=may_name(source),
        overwrite=overwrite,
    )
    claim.check()
    return claim


class OutputFolder:
    """The sinks of one run, and the list of its files; a context manager that opens and closes them.

    Args:
        folder: made if missing.
        source: names the label maps.
        claim: of the folder's outputs.
        kinds: as for `claim_out`.
        mask_size: (H, W) of label maps and results; None = that of the frames.
        given: (H, W) uint8 of that size, the label map that the first frame was given.
        rerun: file or viewer that Rerun logs to.
        uncertain_below: score below which an object is uncertain.

    Attributes:
        written: frames that every sink has written.

    Raises:
        InputError: on entry; another run is writing there now, or a file of the user is in the way.
        SinkError: on entry; a file cannot be made.
        StreamvosError, Stopped: on exit; says where unfinished files are, if there are any.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        claim: Claim,
        kinds: dict[str, bool],
        mask_size: tuple[int, int] | None = None,
        given: np.ndarray | None = None,
        rerun: str | None = None,
        uncertain_below: float = 0.0,
    ) -> None:
        self.folder, self._stem = folder, source.stem
        self._options: dict[str, Any] = {
            **kinds,
            "mask_size": mask_size,
            "given": given,
            "epoch_ns": source.epoch_ns,
            "rerun": rerun,
            "uncertain_below": uncertain_below,
        }
        self._claim = claim
        self.written = 0

    def __enter__(self) -> OutputFolder:
        self._sinks: MultiSink = open_sinks(self.folder, stems=self._stem, claim=self._claim, **self._options)
        return self

    @property
    def paths(self) -> dict[str, Path]:
        """Kind of output -> its path after the run."""
        return self._sinks.paths

    def write(self, frame: Frame, result: Result) -> None:
        """Write one frame to every sink; a signal is handled afterwards.

        Raises:
            SinkError: it cannot be written.
        """
        with signals_held():
            self._sinks.write(frame, result)
            self.written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = error if isinstance(error, (Stopped, StreamvosError)) else None
        try:
            self._sinks.__exit__(kind, error, trace)
        except StreamvosError as own:
            failure = own
        if isinstance(failure, Stopped):
            failure.note = self._unfinished()
        elif failure is not None:
            note = self._unfinished()
            raise type(failure)(f"{failure}; {note}" if note else str(failure)) from failure

    def _unfinished(self) -> str:
        """Where the frames of an interrupted run are."""
        found = [str(path) for path in self._sinks.places if path.exists()]
        if not self.written or not found:
            return ""
        frames = "1 frame is" if self.written == 1 else f"{self.written} frames are"
        return f"the first {frames} in {', '.join(found)}"
