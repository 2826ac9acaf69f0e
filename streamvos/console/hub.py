"""What the console knows, and who sees it: viewers, events, and what is shown to whom.

hub = Hub(backend, names_file)
await hub.start()
viewer = hub.join()
await hub.watch(viewer, "front")
async for message in viewer.messages(): ...

Everything here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import to_thread

from streamvos.console.backends import Backend
from streamvos.console.feeds import Held, Key, View
from streamvos.console.names import Names
from streamvos.console.status import OVER, Statuses
from streamvos.console.viewers import EVENTS, Viewer
from streamvos.console.watching import Watching
from streamvos.pipeline.clients.client import PipelineError
from streamvos.pipeline.clients.published import Mask
from streamvos.types import InputError, StreamvosError

VIEWERS = 128
"""Most viewers at a time."""

_LOOK_SECONDS = 0.5  # between two looks at the status while somebody watches
_FOLLOWING_LOOK_SECONDS = 1.0
_IDLE_LOOK_SECONDS = 5.0  # a status costs the supervisor some milliseconds; who asks for it gets a new one
_FRESH_SECONDS = 1.0
_HEAD = struct.Struct("<I")


class Hub:
    """The console's state.

    Args:
        backend: the pipeline, or the picture.
        names_file: where the names of objects are kept; None keeps them in memory only.

    Attributes:
        backend: as given.
        statuses: what the pipeline says of its streams.
    """

    def __init__(self, backend: Backend, names_file: Path | None = None):
        self.backend = backend
        self.statuses = Statuses(backend.name, backend.kind)
        self._watching = Watching(backend, self._on_view, lambda: not self.statuses.problem)
        self._names = Names(names_file)
        self._viewers: set[Viewer] = set()
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._event_number = 0
        self._object_states: dict[str, dict[int, str]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._look_now = asyncio.Event()
        self._looked_at = 0.0

    # ---- life

    async def start(self) -> None:
        """Begin to look at the status."""
        self._tasks.append(asyncio.create_task(self._look_forever()))

    async def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await self._watching.close()

    async def fresh(self) -> None:
        """Look at the status, unless that has been done just now."""
        if time.monotonic() - self._looked_at > _FRESH_SECONDS:
            await self.look()

    async def look(self) -> None:
        """Look at the status now, and return when it is there."""
        self._looked_at = time.monotonic()
        try:
            self._take_status(await to_thread.run_sync(self.backend.status))
        except StreamvosError as error:
            self._lose(str(error))
        except Exception as error:  # a malformed status: the next one may be better
            self._lose(f"the pipeline's status cannot be read: {type(error).__name__}: {error}")

    def look_soon(self) -> None:
        """Look at the status now, as something was commanded."""
        self._look_now.set()

    async def _look_forever(self) -> None:
        while True:
            await self.look()
            streams = self.statuses.status.get("streams", {})
            there = {name for name, one in streams.items() if one.get("state") not in OVER}
            wanted = {viewer.stream for viewer in self._viewers}
            await self._watching.tidy(wanted, set() if self.statuses.problem else there)
            seconds = _FOLLOWING_LOOK_SECONDS if self._watching.is_following else _IDLE_LOOK_SECONDS
            seconds = _LOOK_SECONDS if self._viewers else seconds
            self._look_now.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), seconds)

    def _take_status(self, status: dict[str, Any]) -> None:
        if self.statuses.problem and self.statuses.status:
            self.event("connected")
        for change in self.statuses.take(status):
            if change.state:
                self.event("state", change.stream, state=change.state, reason=change.reason)
            else:
                self.event("removed", change.stream)
                self._object_states.pop(change.stream, None)
                self._names.drop_stream(change.stream)
                self._watching.drop(change.stream)
        for name, one in status.get("streams", {}).items():
            if not one.get("objects"):
                self._watching.follow_nothing(name)
        self._say_status()

    def _lose(self, problem: str) -> None:
        if not self.statuses.problem:
            self.event("lost", reason=problem)
        self.statuses.problem = problem
        self._say_status()

    def _say_status(self) -> None:
        summary = self.summary()
        for viewer in self._viewers:
            viewer.say("status", **summary)

    # ---- viewers

    def join(self) -> Viewer:
        """A new viewer.

        Raises:
            InputError: there are too many.
        """
        if len(self._viewers) >= VIEWERS:
            raise InputError(f"{VIEWERS} pages are open already; close one")
        viewer = Viewer()
        self._viewers.add(viewer)
        viewer.say("status", **self.summary())
        self._look_now.set()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer."""
        self._viewers.discard(viewer)

    async def watch(self, viewer: Viewer, stream: str) -> None:
        """Show a stream to a viewer; "" shows none.

        Raises:
            InputError: there is no such stream.
            PipelineError: the pipeline does not answer.
        """
        viewer.forget_view()
        viewer.stream = ""
        if not stream:
            return
        await self.need(stream)
        viewer.stream = stream
        await self._watching.follow(stream)
        if (newest := self._watching.newest(stream)) is not None:
            viewer.show(self._packed(newest))

    # ---- streams and their frames

    def summary(self) -> dict[str, Any]:
        """What pages show of all streams."""
        return {**self.statuses.summary(), "viewers": len(self._viewers), "now_ms": now_ms()}

    async def view(self, stream: str) -> View:
        """The newest picture of a stream with its masks; see `Watching.view`."""
        await self.need(stream)
        return await self._watching.view(stream)

    async def hold(self, stream: str, key: Key | None) -> Held:
        """Freeze a frame of a stream; see `Watching.hold`."""
        await self.need(stream)
        return await self._watching.hold(stream, key)

    def held(self, stream: str, token: str) -> Held:
        """A frozen frame; see `Watching.held`."""
        return self._watching.held(stream, token)

    def release(self, stream: str, token: str) -> None:
        """Forget a frozen frame."""
        self._watching.release(stream, token)

    async def need(self, stream: str) -> None:
        """Do nothing if there is such a stream.

        Raises:
            UnknownStreamError: there is not.
            PipelineError: the pipeline has not answered yet.
        """
        if stream not in self.statuses.streams:
            await self.fresh()  # others may have added it
        if not self.statuses.status:
            raise PipelineError(self.statuses.problem)
        self.statuses.stream(stream)

    # ---- objects

    def name_of(self, stream: str, object_id: int) -> str:
        """The name that somebody gave an object, or ""."""
        return self._names.get(stream, object_id)

    def rename(self, stream: str, object_id: int, name: str) -> None:
        """Name an object; "" takes its name away."""
        self.statuses.stream(stream)
        self._names.set(stream, object_id, name)
        if (newest := self._watching.newest(stream)) is not None:
            self._on_view(stream, newest)

    def drop_object(self, stream: str, object_id: int) -> None:
        """Forget an object's name and state."""
        self._object_states.get(stream, {}).pop(object_id, None)
        self._names.set(stream, object_id, "")

    def described(self, view: View) -> dict[str, Any]:
        """A view without its picture: the frame, its objects and their run lengths."""
        picture, mask = view.picture, view.mask
        objects = [] if mask is None else [self._object(view, mask, n) for n in sorted(mask.objects)]
        late = mask is None or mask.repeated
        return {
            "stream": picture.stream,
            "seq": picture.seq,
            "incarnation": picture.incarnation,
            "captured_ms": picture.captured_ns / 1e6,
            "pts": picture.pts,
            "size": list(picture.size),
            "masked": mask is not None,
            "mask_ms": None if late or mask is None else (mask.received_ns - mask.captured_ns) / 1e6,
            "objects": objects,
        }

    def _object(self, view: View, mask: Mask, number: int) -> dict[str, Any]:
        one = mask.objects[number]
        return {
            "id": number,
            "name": self.name_of(view.picture.stream, number),
            "state": one.state,
            "score": round(one.score, 4),
            "area": one.area,
            "box": None if one.box is None else list(one.box),
            "rle": mask.runs.get(number),
        }

    def _on_view(self, stream: str, view: View) -> None:
        if view.mask is not None:
            self._note_objects(stream, view.mask)
        watchers = [viewer for viewer in self._viewers if viewer.stream == stream]
        if watchers:
            packed = self._packed(view)
            for viewer in watchers:
                viewer.show(packed)

    def _note_objects(self, stream: str, mask: Mask) -> None:
        states = self._object_states.setdefault(stream, {})
        for number, one in mask.objects.items():
            before = states.get(number)
            if before != one.state:
                states[number] = one.state
                if before is not None:
                    self.event("object", stream, object=number, state=one.state, seq=mask.seq)

    def _packed(self, view: View) -> bytes:
        header = json.dumps({"type": "view", **self.described(view)}).encode()
        return _HEAD.pack(len(header)) + header + view.picture.jpeg

    # ---- events

    def event(self, kind: str, stream: str = "", /, **fields: Any) -> None:
        """Note that something happened, and tell all viewers."""
        self._event_number += 1
        one = {"number": self._event_number, "time": time.time(), "kind": kind, "stream": stream, **fields}
        self._events.append(one)
        for viewer in self._viewers:
            viewer.tell(one)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The remembered events with a number above `after`."""
        return [one for one in self._events if one["number"] > after]


def now_ms() -> float:
    """The clock of captured frames, in ms."""
    return time.monotonic_ns() / 1e6
