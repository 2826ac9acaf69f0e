"""What the console knows, and who sees it: streams, viewers, frozen frames, events.

    hub = Hub(backend, names_file)
    await hub.start()
    viewer = hub.join()
    hub.watch(viewer, "front")
    async for message in viewer.messages(): ...

Everything here runs in the event loop. Pictures and masks come from other threads through
`call_soon_threadsafe`. A viewer has one place for the newest picture and one for the newest status, so a slow
one gets fewer, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import to_thread

from streamvos.console.backends import Backend, Following
from streamvos.console.feeds import HELD, Feed, Held, Key, View, forget_old
from streamvos.pipeline.clients.client import PipelineError
from streamvos.pipeline.clients.subscribing import Mask, Picture
from streamvos.types import InputError, StreamvosError

VIEWERS = 128
"""Most viewers at a time."""

IN_FLIGHT = 2
"""Pictures that a viewer may have been sent without having drawn them."""

READY_SECONDS = 10.0
"""A stream that has given no mask for so long is not ready."""

EVENTS = 256
"""Events that are remembered."""

HISTORY = 60
"""Latencies of each stream that are remembered, one per look at the status."""

NAME_LENGTH = 40
"""Longest name of an object."""

_LOOK_SECONDS = 0.5  # between two looks at the status while somebody watches
_IDLE_LOOK_SECONDS = 1.0
_LINGER_SECONDS = 5.0  # a stream that nobody watches any more is still followed for so long
_OVER = ("ended", "failed")
_HEAD = struct.Struct("<I")


class Viewer:
    """One open page.

    Attributes:
        stream: what it watches; "" for nothing.
        sent: pictures that were sent to it.
        skipped: pictures that newer ones have overtaken.
    """

    def __init__(self) -> None:
        self.stream = ""
        self.sent = self.skipped = 0
        self._view: bytes | None = None
        self._texts: dict[str, str] = {}
        self._credit = IN_FLIGHT
        self._changed = asyncio.Event()

    def show(self, view: bytes) -> None:
        """Send a picture when the viewer has time; it replaces one that still waits."""
        self.skipped += self._view is not None
        self._view = view
        self._changed.set()

    def say(self, kind: str, /, **fields: Any) -> None:
        """Send a message; the newest of a kind wins, but events are collected."""
        if kind == "events" and kind in self._texts:
            fields["events"] = (json.loads(self._texts[kind])["events"] + fields["events"])[-EVENTS:]
        self._texts[kind] = json.dumps({"type": kind, **fields}, allow_nan=False)
        self._changed.set()

    def drawn(self) -> None:
        """Note that the viewer has drawn a picture."""
        self._credit = min(IN_FLIGHT, self._credit + 1)
        self._changed.set()

    def forget_view(self) -> None:
        """Do not send the waiting picture."""
        self._view = None

    async def messages(self) -> AsyncIterator[str | bytes]:
        """What is to be sent, without end."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._texts:
                yield self._texts.pop(next(iter(self._texts)))
            if self._view is not None and self._credit > 0:
                view, self._view = self._view, None
                self._credit -= 1
                self.sent += 1
                yield view
                self._changed.set()


class _Watched:
    """A stream that somebody watches."""

    def __init__(self, feed: Feed):
        self.feed = feed
        self.following: Following | None = None
        self.wanted_at = time.monotonic()
        self.arrived = asyncio.Event()  # set with each view


class Hub:
    """The console's state.

    Args:
        backend: the pipeline, or the picture.
        names_file: where the names of objects are kept; None keeps them in memory only.

    Attributes:
        backend: as given.
        status: the last status; empty before the first.
        problem: why there is no status now; "" if there is one.
    """

    def __init__(self, backend: Backend, names_file: Path | None = None):
        self.backend = backend
        self.status: dict[str, Any] = {}
        self.problem = "the pipeline has not answered yet"
        self._viewers: set[Viewer] = set()
        self._watched: dict[str, _Watched] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._event_number = 0
        self._history: dict[str, deque[float | None]] = {}
        self._totals: dict[str, tuple[int, float]] = {}  # stream -> count and sum of its latencies
        self._progress: dict[str, tuple[int | None, float]] = {}  # stream -> seq, and when it changed
        self._states: dict[str, str] = {}
        self._object_states: dict[tuple[str, int], str] = {}
        self._names_file = names_file
        self._names: dict[str, dict[str, str]] = _read_names(names_file)
        self._tasks: list[asyncio.Task[None]] = []
        self._look_now = asyncio.Event()

    # ---- life

    async def start(self) -> None:
        """Begin to look at the status."""
        self._loop = asyncio.get_running_loop()
        self._tasks.append(asyncio.create_task(self._look_forever()))

    async def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        for name in list(self._watched):
            await self._leave(name)

    # ---- viewers

    @property
    def viewers(self) -> int:
        """How many there are."""
        return len(self._viewers)

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
        viewer.stream = stream
        if not stream:
            return
        watched = await self._follow(stream)
        if watched.feed.newest is not None:
            viewer.show(self._packed(watched.feed.newest))

    # ---- streams

    def summary(self) -> dict[str, Any]:
        """What pages show of all streams."""
        return {
            "pipeline": self.status.get("pipeline", self.backend.name),
            "kind": self.backend.kind,
            "problem": self.problem,
            "method": self.status.get("method"),
            "streams": [self.stream(name) for name in self.streams],
            "viewers": self.viewers,
            "now_ms": now_ms(),
        }

    @property
    def streams(self) -> list[str]:
        """Names of the streams."""
        return list(self.status.get("streams", {}))

    def stream(self, name: str) -> dict[str, Any]:
        """What is known of a stream.

        Raises:
            InputError: there is no such stream.
        """
        one = self.status.get("streams", {}).get(name)
        if one is None:
            raise InputError(f"there is no stream {name!r}; there are: {', '.join(self.streams) or 'none'}")
        latency = one.get("latencies", {}).get("glass to mask") or {}
        return {
            "name": name,
            "state": one.get("state", ""),
            "reason": one.get("reason") or one.get("waiting_for") or "",
            "last_failure": one.get("last_failure") or "",
            "source": one.get("source"),
            "policy": one.get("policy"),
            "size": one.get("size"),
            "seq": one.get("seq"),
            "fps": one.get("fps"),
            "dropped": one.get("dropped", {}),
            "restarts": one.get("restarts", 0),
            "objects": [int(n) for n in one.get("objects", [])],
            "latency_ms": {key: latency.get(key) for key in ("p50", "p95", "p99")},
            "history_ms": list(self._history.get(name, [])),
            "publishes": name in self.status.get("publish", {}) or self.backend.kind == "picture",
            "ready": self._is_ready(name, one),
        }

    def unready(self) -> list[str]:
        """The streams that have not given a mask in time; without those that ended or were paused."""
        return [name for name, one in self.status.get("streams", {}).items() if not self._is_ready(name, one)]

    async def view(self, stream: str, seconds: float = 5.0, newer_than: Key | None = None) -> View:
        """The newest picture of a stream with its masks; waits for the first one.

        Raises:
            InputError: no such stream, or it gives no picture.
            PipelineError: the pipeline does not answer.
        """
        watched = await self._follow(stream)
        deadline = time.monotonic() + seconds
        while (newest := watched.feed.newest) is None or (newer_than and newest.key <= newer_than):
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(f"{stream} gave no frame within {seconds:g} s; is it paused, or over?")
            watched.arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(watched.arrived.wait(), left)
        return newest

    async def hold(self, stream: str, key: Key | None) -> Held:
        """Freeze a frame of a stream; see `Feed.hold`."""
        if key is None:
            await self.view(stream)
        watched = await self._follow(stream)
        held = watched.feed.hold(key)
        self._bound_held()
        return held

    def held(self, stream: str, token: str) -> Held:
        """A frozen frame.

        Raises:
            InputError: it is not there (any more).
        """
        watched = self._watched.get(stream)
        held = watched.feed.held.get(token) if watched else None
        if held is None:
            raise InputError("the frozen frame is not there any more; freeze another one")
        held.used = time.monotonic()
        return held

    def release(self, stream: str, token: str) -> None:
        """Forget a frozen frame."""
        if (watched := self._watched.get(stream)) is not None:
            watched.feed.held.pop(token, None)

    # ---- objects

    def name_of(self, stream: str, object_id: int) -> str:
        """The name that somebody gave an object, or ""."""
        return self._names.get(stream, {}).get(str(object_id), "")

    def rename(self, stream: str, object_id: int, name: str) -> None:
        """Name an object; "" takes its name away."""
        self.stream(stream)
        names = self._names.setdefault(stream, {})
        name = " ".join(name.split())[:NAME_LENGTH]
        if name:
            names[str(object_id)] = name
        else:
            names.pop(str(object_id), None)
        self._save_names()
        self._show_again(stream)

    def drop_name(self, stream: str, object_id: int) -> None:
        """Forget an object's name and state."""
        self._object_states.pop((stream, object_id), None)
        if self._names.get(stream, {}).pop(str(object_id), None) is not None:
            self._save_names()

    # ---- events

    def event(self, kind: str, stream: str = "", /, **fields: Any) -> None:
        """Note that something happened, and tell all viewers."""
        self._event_number += 1
        one = {"number": self._event_number, "time": time.time(), "kind": kind, "stream": stream, **fields}
        self._events.append(one)
        for viewer in self._viewers:
            viewer.say("events", events=[one])

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The remembered events with a number above `after`."""
        return [one for one in self._events if one["number"] > after]

    def look_soon(self) -> None:
        """Look at the status now, as something was commanded."""
        self._look_now.set()

    # ---- inside

    async def _look_forever(self) -> None:
        while True:
            try:
                self._take_status(await to_thread.run_sync(self.backend.status))
            except StreamvosError as error:
                self._lose(str(error))
            except Exception as error:  # a malformed status: the next one may be better
                self._lose(f"the pipeline's status cannot be read: {type(error).__name__}: {error}")
            await self._tidy()
            seconds = _LOOK_SECONDS if self._viewers else _IDLE_LOOK_SECONDS
            self._look_now.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), seconds)

    def _take_status(self, status: dict[str, Any]) -> None:
        if self.problem and self.status:
            self.event("connected")
        self.status, self.problem = status, ""
        now = time.monotonic()
        for name, one in status.get("streams", {}).items():
            seq, _ = self._progress.get(name, (None, 0.0))
            if one.get("seq") != seq:
                self._progress[name] = (one.get("seq"), now)
            state = str(one.get("state", ""))
            if state != self._states.get(name, state):
                self.event(
                    "state", name, state=state, reason=one.get("reason") or one.get("waiting_for") or ""
                )
            self._states[name] = state
            self._history.setdefault(name, deque(maxlen=HISTORY)).append(self._latency(name, one))
            watched = self._watched.get(name)
            if watched is not None and not one.get("objects"):
                watched.feed.follow_nothing()
        self._say_status()

    def _lose(self, problem: str) -> None:
        if not self.problem:
            self.event("lost", reason=problem)
        self.problem = problem
        self._say_status()

    def _say_status(self) -> None:
        summary = self.summary()
        for viewer in self._viewers:
            viewer.say("status", **summary)

    def _latency(self, name: str, one: Mapping[str, Any]) -> float | None:
        """Mean latency since the last look, in ms; None if there was no mask."""
        found = one.get("latencies", {}).get("glass to mask") or {}
        count = int(found.get("count") or 0)
        total = count * float(found.get("mean") or 0)
        count_before, total_before = self._totals.get(name, (0, 0.0))
        self._totals[name] = (count, total)
        if count <= count_before:
            return None
        return max(0.0, (total - total_before) / (count - count_before))

    def _is_ready(self, name: str, one: Mapping[str, Any]) -> bool:
        state = one.get("state")
        if state in ("ended", "paused", "still"):
            return True
        seq, since = self._progress.get(name, (None, 0.0))
        return state != "failed" and seq is not None and time.monotonic() - since < READY_SECONDS

    async def _follow(self, stream: str) -> _Watched:
        """Follow a stream, or go on with it."""
        if not self.status:
            raise PipelineError(self.problem)
        self.stream(stream)
        async with self._opening.setdefault(stream, asyncio.Lock()):
            watched = self._watched.get(stream)
            if watched is None:
                watched = _Watched(Feed(stream, lambda view: self._on_view(stream, view)))
            watched.wanted_at = time.monotonic()
            if watched.following is None and not self.problem:
                feed = watched.feed
                watched.following = await to_thread.run_sync(
                    lambda: self.backend.follow(
                        stream,
                        lambda picture: self._pass_on(feed.add_picture, picture),
                        lambda mask: self._pass_on(feed.add_mask, mask),
                    )
                )
            self._watched[stream] = watched
            return watched

    def _pass_on(self, take: Any, one: Picture | Mask) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(take, one)

    def _on_view(self, stream: str, view: View) -> None:
        if view.mask is not None:
            self._note_objects(stream, view.mask)
        watchers = [viewer for viewer in self._viewers if viewer.stream == stream]
        if watchers:
            packed = self._packed(view)
            for viewer in watchers:
                viewer.show(packed)
        if (watched := self._watched.get(stream)) is not None:
            watched.arrived.set()

    def _show_again(self, stream: str) -> None:
        watched = self._watched.get(stream)
        if watched is not None and watched.feed.newest is not None:
            self._on_view(stream, watched.feed.newest)

    def _note_objects(self, stream: str, mask: Mask) -> None:
        for number, one in mask.objects.items():
            before = self._object_states.get((stream, number))
            if before != one.state:
                self._object_states[stream, number] = one.state
                if before is not None:
                    self.event("object", stream, object=number, state=one.state, seq=mask.seq)

    def objects(self, stream: str, view: View | None) -> list[dict[str, Any]]:
        """What is known of a stream's objects in a view."""
        if view is None or view.mask is None:
            return []
        return [
            {
                "id": number,
                "name": self.name_of(stream, number),
                "state": one.state,
                "score": round(one.score, 4),
                "area": one.area,
                "box": None if one.box is None else list(one.box),
            }
            for number, one in sorted(view.mask.objects.items())
        ]

    def described(self, view: View) -> dict[str, Any]:
        """A view without its picture: the frame, its objects and their run lengths."""
        picture, mask = view.picture, view.mask
        runs = {} if mask is None else mask.runs
        objects = [{**one, "rle": runs.get(one["id"])} for one in self.objects(picture.stream, view)]
        return {
            "stream": picture.stream,
            "seq": picture.seq,
            "incarnation": picture.incarnation,
            "captured_ms": picture.captured_ns / 1e6,
            "pts": picture.pts,
            "size": list(picture.size),
            "masked": mask is not None,
            "mask_ms": None if mask is None else (mask.received_ns - mask.captured_ns) / 1e6,
            "objects": objects,
        }

    def _packed(self, view: View) -> bytes:
        header = json.dumps({"type": "view", **self.described(view)}).encode()
        return _HEAD.pack(len(header)) + header + view.picture.jpeg

    def _bound_held(self) -> None:
        """Drop the frozen frames that were used longest ago."""
        everyone = [
            (one.used, name, token)
            for name, watched in self._watched.items()
            for token, one in watched.feed.held.items()
        ]
        for _, name, token in sorted(everyone)[:-HELD]:
            self.release(name, token)

    async def _tidy(self) -> None:
        """Leave the streams that nobody watches; look for the others again after the pipeline was away."""
        now = time.monotonic()
        streams = {viewer.stream for viewer in self._viewers}
        for name, watched in list(self._watched.items()):
            forget_old(watched.feed.held, now)
            if name in streams or watched.feed.held:
                watched.wanted_at = now
            gone = self.status.get("streams", {}).get(name, {}).get("state") in (*_OVER, None)
            if self.problem or gone or now - watched.wanted_at > _LINGER_SECONDS:
                await self._leave(name)
            elif watched.following is None:
                with suppress(StreamvosError):
                    await self._follow(name)

    async def _leave(self, stream: str) -> None:
        """Follow a stream no longer; its last picture stays, for who looks at it again."""
        watched = self._watched.get(stream)
        if watched is not None and watched.following is not None:
            following, watched.following = watched.following, None
            await to_thread.run_sync(following.close)

    def _save_names(self) -> None:
        if self._names_file is None:
            return
        temporary = self._names_file.with_suffix(".tmp")
        with suppress(OSError):  # names are a comfort
            temporary.write_text(json.dumps(self._names))
            os.replace(temporary, self._names_file)


def now_ms() -> float:
    """The clock of captured frames, in ms."""
    return time.monotonic_ns() / 1e6


def _read_names(path: Path | None) -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_text()) if path is not None else {}
        return {
            str(stream): {str(key): str(name)[:NAME_LENGTH] for key, name in names.items()}
            for stream, names in found.items()
        }
    return {}
