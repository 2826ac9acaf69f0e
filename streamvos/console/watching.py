"""The streams that somebody watches: their newest pictures, and the frozen ones.

watching = Watching(backend, on_view)
await watching.follow("front")                          # on_view("front", view) with each picture
held = await watching.hold("front", key)

Everything here runs in the event loop. Pictures and masks come from other threads through
`call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from anyio import to_thread

from streamvos.console.backends import Backend, Following
from streamvos.console.feeds import HELD, Feed, Held, Key, View, forget_old
from streamvos.pipeline.clients.published import Mask, Picture
from streamvos.types import InputError, StreamvosError

_LINGER_SECONDS = 5.0  # a stream that nobody watches any more is still followed for so long


class _Watched:
    """A stream that somebody watches."""

    def __init__(self, feed: Feed):
        self.feed = feed
        self.following: Following | None = None
        self.wanted_at = time.monotonic()
        self.arrived = asyncio.Event()  # set with each view


class Watching:
    """Follows streams, as long as somebody wants them.

    Args:
        backend: the pipeline, or the picture.
        on_view: called with a stream's name and what is to be shown next.
        is_up: tells whether the backend answers; while it does not, the last pictures stay.
    """

    def __init__(
        self, backend: Backend, on_view: Callable[[str, View], None], is_up: Callable[[], bool] = lambda: True
    ):
        self._backend, self._on_view, self._is_up = backend, on_view, is_up
        self._watched: dict[str, _Watched] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    async def close(self) -> None:
        """Follow nothing any more."""
        for name in list(self._watched):
            await self._leave(name)

    @property
    def is_following(self) -> bool:
        """Whether any stream is followed."""
        return any(one.following is not None for one in self._watched.values())

    def newest(self, stream: str) -> View | None:
        """What is shown of a stream now, if it is watched."""
        watched = self._watched.get(stream)
        return None if watched is None else watched.feed.newest

    def follow_nothing(self, stream: str) -> None:
        """Note that a stream has no objects, so that pictures do not wait for masks."""
        if (watched := self._watched.get(stream)) is not None:
            watched.feed.follow_nothing()

    async def follow(self, stream: str) -> None:
        """Follow a stream, or go on with it.

        Raises:
            InputError: there is no such stream.
            PipelineError: the pipeline does not answer.
        """
        await self._follow(stream)

    async def view(self, stream: str, seconds: float = 5.0) -> View:
        """The newest picture of a stream with its masks; waits for the first one.

        Raises:
            InputError: no such stream, or it gives no picture.
            PipelineError: the pipeline does not answer.
        """
        watched = await self._follow(stream)
        deadline = time.monotonic() + seconds
        while (newest := watched.feed.newest) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(f"{stream} gave no frame within {seconds:g} s; see its state")
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

    async def tidy(self, wanted: Collection[str], there: Collection[str]) -> None:
        """Leave the streams that nobody wants; look for the others again after the pipeline was away.

        Args:
            wanted: streams that viewers watch.
            there: streams that give frames now.
        """
        now = time.monotonic()
        for name, watched in list(self._watched.items()):
            forget_old(watched.feed.held, now)
            if name in wanted or watched.feed.held:
                watched.wanted_at = now
            if name not in there or now - watched.wanted_at > _LINGER_SECONDS:
                await self._leave(name)
            elif watched.following is None:
                with suppress(StreamvosError):
                    await self._follow(name)

    def drop(self, stream: str) -> None:
        """Forget a stream that is not there any more, with its last picture."""
        watched = self._watched.get(stream)
        if watched is not None and watched.following is None:
            del self._watched[stream]
            self._opening.pop(stream, None)

    async def _follow(self, stream: str) -> _Watched:
        async with self._opening.setdefault(stream, asyncio.Lock()):
            watched = self._watched.get(stream)
            if watched is None:
                watched = _Watched(Feed(stream, lambda view: self._show(stream, view)))
            watched.wanted_at = time.monotonic()
            if watched.following is None and self._is_up():
                feed, loop = watched.feed, asyncio.get_running_loop()

                def pass_on(take: Callable[[Any], None], one: Picture | Mask) -> None:
                    with suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(take, one)

                watched.following = await to_thread.run_sync(
                    lambda: self._backend.follow(
                        stream,
                        lambda picture: pass_on(feed.add_picture, picture),
                        lambda mask: pass_on(feed.add_mask, mask),
                    )
                )
            self._watched[stream] = watched
            return watched

    def _show(self, stream: str, view: View) -> None:
        if (watched := self._watched.get(stream)) is not None:
            watched.arrived.set()
        self._on_view(stream, view)

    async def _leave(self, stream: str) -> None:
        """Follow a stream no longer; its last picture stays, for who looks at it again."""
        watched = self._watched.get(stream)
        if watched is not None and watched.following is not None:
            following, watched.following = watched.following, None
            await to_thread.run_sync(following.close)

    def _bound_held(self) -> None:
        """Drop the frozen frames that were used longest ago."""
        everyone = [
            (one.used, name, token)
            for name, watched in self._watched.items()
            for token, one in watched.feed.held.items()
        ]
        for _, name, token in sorted(everyone)[:-HELD]:
            self.release(name, token)
