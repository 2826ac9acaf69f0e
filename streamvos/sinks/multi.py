"""Several sinks as one, and the usual set of them.

with open_sinks("out", stems=source.stem) as sinks:
    sinks.write(frame, result)
sinks.paths  # {'labels': Path('out/labels'), 'overlay': Path('out/overlay.mp4'), ...}
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from streamvos.sinks.claim import Claim, always
from streamvos.sinks.json_lines import JsonLinesSink
from streamvos.sinks.label_maps import LabelMapSink
from streamvos.sinks.overlay import Overlay
from streamvos.sinks.overlay_video import OverlayVideoSink
from streamvos.sinks.resizing import at_size
from streamvos.sinks.sink import Sink
from streamvos.types import Frame, Result


class MultiSink(Sink):
    """Writes every result to each of several sinks, in their order, and closes them together.

    If closing one fails, the others are still closed, and the first error is raised.

    Args:
        path: the folder that they share.
        sinks: name -> sink; this sink closes them.
        claim: what holds the folder for them; released when they are closed.
        mask_size: (H, W) of the masks that all sinks but "overlay" get; None = that of the frames.
        given: (H, W) uint8 of that size, the label map of the first frame.
    """

    _repeatable: ClassVar[bool] = False  # some of the sinks have the frame already

    def __init__(
        self,
        path: str | Path,
        sinks: Mapping[str, Sink],
        claim: Claim | None = None,
        mask_size: tuple[int, int] | None = None,
        given: np.ndarray | None = None,
    ) -> None:
        super().__init__(path)
        self._mask_size, self._given = mask_size, given
        self._sinks, self._claim = dict(sinks), claim

    @property
    def paths(self) -> dict[str, Path]:
        """Name of each sink -> its path."""
        return {name: sink.path for name, sink in self._sinks.items()}

    @property
    def places(self) -> list[Path]:
        """Where the sinks write before they are closed, in their order."""
        return [sink.place for sink in self._sinks.values()]

    def _write(self, frame: Frame, result: Result) -> None:
        others = frame, result
        if self._mask_size is not None and self._sinks.keys() - {"overlay"}:
            others = at_size(frame, result, self._mask_size, self._given)
            self._given = None
        for name, sink in self._sinks.items():
            sink.write(*((frame, result) if name == "overlay" else others))

    def _finish(self) -> None:
        errors: list[Exception] = []
        for sink in self._sinks.values():
            try:
                sink.close()
            except Exception as error:
                errors.append(error)
        if self._claim is not None:
            self._claim.release()
        if errors:
            raise errors[0]

    def _abandon(self) -> None:
        for sink in self._sinks.values():
            sink.abort()
        if self._claim is not None:
            self._claim.release()


LABELS, OVERLAY, RESULTS, MCAP = "labels", "overlay.mp4", "results.jsonl", "results.mcap"
ROSBAG = "rosbag"
"""Names of the usual outputs in their folder."""

_FIRST = 10_000  # frames whose names are looked up before anything is written


def claim_folder(
    folder: str | Path,
    *,
    labels: bool = True,
    overlay: bool = True,
    results: bool = True,
    mcap: bool = False,
    rosbag: bool = False,
    may_name: Callable[[str], bool] = always,
    overwrite: bool = False,
    hint: str = "--overwrite",
) -> Claim:
    """The claim of the usual outputs in a folder; what an earlier run wrote there is replaced as a whole.

    Args:
        folder: the folder; made if missing.
        labels, overlay, results, mcap, rosbag: which of them are written.
        may_name: whether a label map may get a name (without suffix).
        overwrite: whether files of the user are replaced.
        hint: how a user insists, for messages.
    """
    folder = Path(folder)
    return Claim(
        [folder / OVERLAY] * overlay + [folder / RESULTS] * results + [folder / MCAP] * mcap,
        [folder / LABELS] * labels,
        recordings=[folder / ROSBAG] * rosbag,
        homes=[folder],
        replaced=[folder / name for name in (LABELS, OVERLAY, RESULTS, MCAP, ROSBAG)],
        may_name=may_name,
        overwrite=overwrite,
        hint=hint,
    )


def open_sinks(
    folder: str | Path,
    *,
    stems: Callable[[int], str] | None = None,
    labels: bool = True,
    overlay: Overlay | bool = True,
    results: bool = True,
    mcap: bool = False,
    rosbag: bool = False,
    epoch_ns: int = 0,
    uncertain_below: float = 0.0,
    rerun: str | None = None,
    overwrite: bool = False,
    claim: Claim | None = None,
    mask_size: tuple[int, int] | None = None,
    given: np.ndarray | None = None,
) -> MultiSink:
    """The usual sinks in one folder: labels/ (PNG), overlay.mp4 and results.jsonl.

    The folder is locked until the sinks are closed. What an earlier run wrote there is removed; files of the
    user stay, and one in the place of an output is an error.

    Args:
        folder: the folder; made if missing.
        stems: frame index -> name of its label map without suffix, such as `source.stem`.
        labels: whether to write labels/.
        overlay: whether to write overlay.mp4, or how to draw it.
        results: whether to write results.jsonl.
        mcap: whether to write results.mcap.
        rosbag: whether to write rosbag/, see `RosbagSink`.
        epoch_ns: the time of `pts` 0 in these two, ns since 1970; 0 = not known.
        uncertain_below: score below which an object is uncertain; rosbag/ says it.
        rerun: file or viewer that Rerun logs to, see `RerunSink`.
        overwrite: whether files of the user are replaced.
        claim: the folder's claim, which these sinks enter and release; None makes one.
        mask_size: (H, W) of label maps and results, such as `source.native_size`; None = that of the frames.
        given: (H, W) uint8 of that size, the label map that the first frame was given.

    Raises:
        InputError: another run is writing to the folder, or a file of the user is in the place of an output.
        SinkError: a file or folder cannot be made; nothing is left open.
    """
    folder = Path(folder)
    if claim is None:
        claim = claim_folder(
            folder,
            labels=labels,
            overlay=overlay is not False,
            results=results,
            mcap=mcap,
            rosbag=rosbag,
            may_name=_may_name(stems),
            overwrite=overwrite,
            hint="overwrite=True",
        )
    sinks: dict[str, Sink] = {}
    claim.__enter__()
    try:
        if labels:
            path = folder / LABELS
            sinks["labels"] = LabelMapSink(path, stems=stems, record=claim.record(path))
        if overlay is not False:
            drawing, path = overlay if isinstance(overlay, Overlay) else None, folder / OVERLAY
            sinks["overlay"] = OverlayVideoSink(path, overlay=drawing, record=claim.record(path))
        if results:
            path = folder / RESULTS
            sinks["results"] = JsonLinesSink(path, record=claim.record(path))
        if mcap:
            from streamvos.sinks.mcap import McapSink

            path = folder / MCAP
            sinks["mcap"] = McapSink(path, epoch_ns=epoch_ns, record=claim.record(path))
        if rosbag:
            from streamvos.sinks.rosbag import RosbagSink

            path = folder / ROSBAG
            sinks["rosbag"] = RosbagSink(
                path, epoch_ns=epoch_ns, uncertain_below=uncertain_below, record=claim.record(path)
            )
        if rerun is not None:
            from streamvos.sinks.rerun import RerunSink

            sinks["rerun"] = RerunSink(rerun)
    except BaseException:
        for sink in sinks.values():
            sink.abort()
        claim.release()
        raise
    return MultiSink(folder, sinks, claim, mask_size, given)


def _may_name(stems: Callable[[int], str] | None) -> Callable[[str], bool]:
    """Which names of label maps count as possible: numbers, and the names of the first frames."""
    names: set[str] = set()
    with contextlib.suppress(Exception):  # there are not so many frames
        for index in range(_FIRST if stems is not None else 0):
            names.add(stems(index))  # type: ignore[misc]
    return lambda stem: stem in names or (len(stem) >= 5 and stem.isdecimal())
