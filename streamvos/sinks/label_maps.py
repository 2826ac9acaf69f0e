"""Label maps as palette PNGs, one per frame: the form in which DAVIS and YouTube-VOS take results.

with LabelMapSink("out/labels", stems=source.stem) as sink:
    sink.write(frame, result)  # out/labels/00000.png
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from streamvos.masks.labelmap import write_label_map
from streamvos.sinks.claim import foreign_maps
from streamvos.sinks.record import OutputRecord
from streamvos.sinks.sink import Sink, make_folder
from streamvos.types import Frame, InputError, Result, SinkError

logger = logging.getLogger(__name__)


class LabelMapSink(Sink):
    """Writes `result.mask` of each frame as a PNG with the DAVIS palette.

    Each file appears whole, so an exception leaves the maps of the frames so far. PNGs of an earlier run with
    other names stay and cause a warning, since a score over the folder would count them.

    Args:
        folder: the folder; made if missing.
        stems: frame index -> file name without suffix, such as `source.stem`; "%05d" if None.
        resume: whether the maps in the folder are those of a killed writer of the same stream.
        record: lists the maps, and tells which earlier ones may be replaced; without it, files of the same
            name are replaced.

    Raises:
        InputError: later: a map would replace a file that is not ours.
        SinkError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        stems: Callable[[int], str] | None = None,
        resume: bool = False,
        record: OutputRecord | None = None,
    ) -> None:
        super().__init__(folder)
        make_folder(self.path)
        self._stems, self._resumed, self._record = stems, resume, record
        self._temporary = self.path / f".{secrets.token_hex(8)}.tmp"
        if record is not None:
            for _, left in record.partials():
                left.unlink(missing_ok=True)
            record.expect(self._temporary, partial=0)
        # Names of earlier PNGs not yet replaced; unlike this run's names, they do not grow in number.
        self._earlier = {path.stem for path in self.path.glob("*.png")}
        is_guarded = record is not None and not record.overwrite and bool(self._earlier)
        self._foreign = foreign_maps(self.path) if is_guarded else set()

    def _write(self, frame: Frame, result: Result) -> None:
        stem = self._stems(frame.index) if self._stems else f"{frame.index:05d}"
        if not stem or Path(stem).name != stem or stem.startswith("."):
            raise InputError(f"{stem!r} cannot name the label map of frame {frame.index}; give a plain name")
        path = self.path / f"{stem}.png"
        if stem not in self._earlier and path.exists():
            raise InputError(f"frame {frame.index} would overwrite {stem}.png of this run; names must differ")
        if stem in self._foreign:
            raise InputError(f"{path} is there already, and not as streamvos left it; choose another folder")
        self._list(path, "expect")
        write_label_map(path, result.mask, self._temporary)
        self._list(path, "finished")
        self._earlier.discard(stem)

    def _list(self, path: Path, event: Literal["expect", "finished"]) -> None:
        if self._record is not None:
            with contextlib.suppress(SinkError):  # a map that is not listed counts as the user's
                getattr(self._record, event)(path)

    def _finish(self) -> None:
        strangers = sum((self.path / f"{stem}.png").exists() for stem in self._earlier)
        if strangers and not self._resumed:
            logger.warning("%s also holds %d PNG files that this run did not write", self.path, strangers)

    def _abandon(self) -> None:
        pass
