"""What a frame costs, from a file: for `streamvos eval --streaming --latencies FILE`.

    [{"method": "tvos", "height": 480, "seconds": 0.131, "first_seconds": 0.2}]

A file is such a list, or the JSON lines of `streamvos bench latency`, of which the mean counts: a method that
learns at every eighth frame is busy for as long as the mean says, not the median.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamvos.datasets.davis import DavisSequence
from streamvos.files import read_text
from streamvos.metrics.sequences import Cost
from streamvos.segmenter import Segmenter
from streamvos.types import InputError

_FORMS = (
    'expected the JSON lines of `streamvos bench latency`, or a list of {"method": NAME, "height": ROWS, '
    '"seconds": A_FRAME, "first_seconds": THE_FIRST_FRAME (optional), "objects": COUNT (optional)}'
)


class Latency(BaseModel):
    """What a frame of one method costs at one height.

    Attributes:
        height: rows of the frames.
        seconds: of every frame but the first.
        first_seconds: of the first, whose objects are learned; None: it costs as much as the others.
        objects: how many are followed; None: any number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str
    height: int = Field(ge=1)
    seconds: float = Field(ge=0)
    first_seconds: float | None = Field(None, ge=0)
    objects: int | None = Field(None, ge=1)

    def cost(self, frame: int) -> float:
        """Seconds for the frame of this number, counted from 0."""
        return self.seconds if frame or self.first_seconds is None else self.first_seconds


def read_latencies(path: Path) -> list[Latency]:
    """The latencies in a file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    text = read_text(path, "the latencies")
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(one) for one in text.splitlines() if one.strip()]
        found = [Latency.model_validate(_plain(row)) for row in rows if not _failed(row)]
    except (ValueError, RecursionError) as error:  # ValidationError is a ValueError
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            reason = f"it is no JSON ({(str(error).splitlines() or ['nested too deeply'])[0]})"
        raise InputError(f"cannot use the latencies in {path}: {reason}; {_FORMS}") from None
    if not found:
        raise InputError(f"{path} holds no latency; {_FORMS}")
    return found


def latency_for(latencies: Sequence[Latency], method: str, height: int, objects: int, path: Path) -> Latency:
    """The latency of a method at a height, with so many objects.

    Raises:
        InputError: there is none, or there are several.
    """
    of_size = [one for one in latencies if (one.method, one.height) == (method, height)]
    fitting = [one for one in of_size if one.objects == objects]
    fitting = fitting or [one for one in of_size if one.objects is None]
    if len(fitting) == 1:
        return fitting[0]
    wanted = f"{method} at height {height} with {objects} object{'s' * (objects != 1)}"
    if fitting:
        raise InputError(f"{path} has {len(fitting)} latencies of {wanted}; leave the one that is meant")
    known = sorted({f"{one.method} {one.height}" for one in latencies})
    counts = sorted({one.objects for one in of_size if one.objects is not None})
    has = f"it has those of {', '.join(map(str, counts))} objects" if counts else f"it has {', '.join(known)}"
    raise InputError(f"{path} has no latency of {wanted}; {has}")


@dataclass(frozen=True, slots=True)
class Clock:
    """What frames cost while a video goes on.

    Attributes:
        fps: frames per second of the video.
        speed: how many times as fast as the latencies say the device is.
        latencies: seconds by method and height; None: what a frame takes here.
        path: the file that they are from.
    """

    fps: float
    speed: float
    latencies: Sequence[Latency] | None
    path: Path | None

    def cost(self, method: str, sequence: DavisSequence, height: int | None) -> Cost:
        """What the frames of a sequence cost.

        Raises:
            InputError: the file has no latency for them.
        """
        if self.latencies is None or self.path is None:
            return lambda frame, measured: measured / self.speed
        mask = sequence.first_mask()
        found = latency_for(
            self.latencies, method, height or mask.shape[0], len(sequence.object_ids), self.path
        )
        return lambda frame, measured: found.cost(frame) / self.speed

    def check(self, loaded: Iterable[Segmenter], data: Iterable[DavisSequence], height: int | None) -> None:
        """Check before the work that there is a latency for everything; InputError if not."""
        for vos in loaded:
            for sequence in data:
                self.cost(vos.method.loaded_as, sequence, height)


def _failed(row: Any) -> bool:
    return isinstance(row, dict) and "case" in row and ("failed" in row or row.get("bench") != "latency")


def _plain(row: Any) -> Any:
    """A row of `bench latency` as the fields of a `Latency`; anything else as it is."""
    if not isinstance(row, dict) or not isinstance(row.get("case"), dict):
        return row
    case, unit = row["case"], {"ms": 1e-3, "s": 1.0}.get(row.get("unit", "ms"))
    if unit is None or not isinstance(row.get("mean"), int | float):
        return row
    first = row.get("first_frame_ms")
    return {
        **{name: case[name] for name in ("method", "height", "objects") if case.get(name) is not None},
        "seconds": row["mean"] * unit,
        "first_seconds": first / 1e3 if isinstance(first, int | float) else None,
    }
