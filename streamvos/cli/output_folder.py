"""The folder of a run, and the list of the files in it that the run wrote.

A second run into the same folder replaces everything that the first one wrote; otherwise label maps of a
longer first run would remain among those of the second. Files of the user are left alone. So a run lists its
files, each before it is made, in a hidden file, and the next run removes the files on that list.

    out/.streamvos-files        the list
    out/labels/00000.png ...    label maps
    out/overlay.mp4             pictures with the objects drawn over them
    out/results.jsonl           one line per frame
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import TracebackType

from streamvos.cli.output import check_writable
from streamvos.cli.signals import Stopped, signals_held
from streamvos.sinks import MultiSink, open_sinks
from streamvos.sinks.sink import cannot_write, partial_path
from streamvos.sources import Source
from streamvos.types import Frame, InputError, Result, StreamvosError

LIST = ".streamvos-files"
LABELS, OVERLAY, RESULTS = "labels", "overlay.mp4", "results.jsonl"

# Names that a list may hold: the list could have been edited to point outside the folder.
_OWN = re.compile(r"labels/[^/\\\0]+\.png|(overlay|overlay\.partial)\.mp4|(results|results\.partial)\.jsonl")


def check_out(out: Path, source: str) -> None:
    """Check before the work that a run can write into `out`; makes nothing.

    Raises:
        InputError: `out` is a file, or the run would replace its own source.
        SinkError: missing permission.
    """
    check_writable(out)
    place = Path(source.removeprefix("camera:"))
    if not place.exists():
        return
    read = {place.resolve(), place.resolve().parent}
    for name in (LABELS, OVERLAY):
        if (out / name).resolve() in read:
            raise InputError(f"--out {out} would replace {out / name}, the source; choose another folder")


class OutputFolder:
    """The sinks of one run, and the list of its files; a context manager that opens and closes them.

    Args:
        folder: made if missing.
        source: names the label maps.
        labels: whether label-map PNGs are written.
        overlay: whether a video with the objects drawn over the frames is written.
        results: whether lines of JSON are written.

    Attributes:
        written: frames that every sink has written.

    Raises:
        SinkError: on entry; a file cannot be made.
        StreamvosError, Stopped: on exit; says where unfinished files are, if there are any.
    """

    def __init__(
        self, folder: Path, source: Source, labels: bool = True, overlay: bool = True, results: bool = True
    ) -> None:
        self.folder, self._stem = folder, source.stem
        self._kinds = {"labels": labels, "overlay": overlay, "results": results}
        self.written = 0

    def __enter__(self) -> OutputFolder:
        self._sinks: MultiSink = open_sinks(self.folder, stems=self._stem, **self._kinds)
        try:
            files = [OVERLAY] * self._kinds["overlay"] + [RESULTS] * self._kinds["results"]
            opened = [partial_path(Path(name)).name for name in files]
            _remove_earlier(self.folder, keep=opened)  # now that the new run can be written
            self._list = open(self.folder / LIST, "wb", buffering=0)  # a name is written before its file
            self._note(*files, *opened)
        except OSError as error:
            self._sinks.abort()
            raise cannot_write(self.folder / LIST, error) from error
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
            if self._kinds["labels"]:
                try:
                    self._note(f"{LABELS}/{self._stem(frame.index)}.png")
                except OSError as error:
                    raise cannot_write(self.folder / LIST, error) from error
            self._sinks.write(frame, result)
            self.written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._list.close()
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
        labels = [self.folder / LABELS] * self._kinds["labels"]
        partial = [partial_path(path) for name, path in self.paths.items() if name != "labels"]
        found = [str(path) for path in (*labels, *partial) if path.exists()]
        if not self.written or not found:
            return ""
        frames = "1 frame is" if self.written == 1 else f"{self.written} frames are"
        return f"the first {frames} in {', '.join(found)}"

    def _note(self, *names: str) -> None:
        self._list.write("".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))


def _remove_earlier(folder: Path, keep: list[str]) -> None:
    """Remove the files on an earlier run's list."""
    with contextlib.suppress(FileNotFoundError):
        text = (folder / LIST).read_text(encoding="utf-8", errors="surrogateescape")
        for name in text.split("\n"):
            if _OWN.fullmatch(name) and name not in keep:
                with contextlib.suppress(OSError):  # removed already, or not permitted
                    (folder / name).unlink()
        (folder / LIST).unlink()
