"""Several sinks as one, and the usual set of them.

with open_sinks("out", stems=source.stem) as sinks:
    sinks.write(frame, result)
sinks.paths  # {'labels': Path('out/labels'), 'overlay': Path('out/overlay.mp4'), ...}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from streamvos.sinks.json_lines import JsonLinesSink
from streamvos.sinks.label_maps import LabelMapSink
from streamvos.sinks.overlay import Overlay
from streamvos.sinks.overlay_video import OverlayVideoSink
from streamvos.sinks.sink import Sink, make_folder
from streamvos.types import Frame, Result


class MultiSink(Sink):
    """Writes every result to each of several sinks, in their order, and closes them together.

    If closing one fails, the others are still closed, and the first error is raised.

    Args:
        path: the folder that they share.
        sinks: name -> sink; this sink closes them.
    """

    _repeatable: ClassVar[bool] = False  # some of the sinks have the frame already

    def __init__(self, path: str | Path, sinks: Mapping[str, Sink]) -> None:
        super().__init__(path)
        self._sinks = dict(sinks)

    @property
    def paths(self) -> dict[str, Path]:
        """Name of each sink -> its path."""
        return {name: sink.path for name, sink in self._sinks.items()}

    def _write(self, frame: Frame, result: Result) -> None:
        for sink in self._sinks.values():
            sink.write(frame, result)

    def _finish(self) -> None:
        errors: list[Exception] = []
        for sink in self._sinks.values():
            try:
                sink.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _abandon(self) -> None:
        for sink in self._sinks.values():
            sink.abort()


def open_sinks(
    folder: str | Path,
    *,
    stems: Callable[[int], str] | None = None,
    labels: bool = True,
    overlay: Overlay | bool = True,
    results: bool = True,
) -> MultiSink:
    """The usual sinks in one folder: labels/ (PNG), overlay.mp4 and results.jsonl.

    Args:
        folder: the folder; made if missing.
        stems: frame index -> name of its label map without suffix, such as `source.stem`.
        labels: whether to write labels/.
        overlay: whether to write overlay.mp4, or how to draw it.
        results: whether to write results.jsonl.

    Raises:
        SinkError: a file or folder cannot be made; nothing is left open.
    """
    folder = Path(folder)
    make_folder(folder)
    sinks: dict[str, Sink] = {}
    try:
        if labels:
            sinks["labels"] = LabelMapSink(folder / "labels", stems=stems)
        if overlay is not False:
            drawing = overlay if isinstance(overlay, Overlay) else None
            sinks["overlay"] = OverlayVideoSink(folder / "overlay.mp4", overlay=drawing)
        if results:
            sinks["results"] = JsonLinesSink(folder / "results.jsonl")
    except BaseException:
        for sink in sinks.values():
            sink.abort()
        raise
    return MultiSink(folder, sinks)
