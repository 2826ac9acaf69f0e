"""The newest pictures of a stream with their masks, and frozen ones with all that came after them.

    feed = Feed("front", on_view)
    feed.add_picture(picture); feed.add_mask(mask)      # calls on_view(view) with what belongs together
    held = feed.hold(key)                               # the frame that somebody points at
    held.later                                          # the frames since then

Used by one thread, the event loop's.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streamvos.pipeline.clients.published import Mask, Picture
from streamvos.types import InputError

Key = tuple[int, int]
"""Incarnation and seq of a frame."""

KEPT_BYTES, KEPT_FRAMES = 48 * 2**20, 300
"""Limits of the pictures that a feed keeps: to wait for their masks, and to be frozen a little later."""

LATER = 64
"""Frames that are kept since a frozen one; beyond that, every second one goes."""

HELD = 32
"""Frozen frames of all viewers together; the one that was used last goes first."""

HELD_SECONDS = 600.0
"""A frozen frame that nobody has used for so long goes."""

_PATIENCE_NS = 2_000_000_000  # a stream whose masks stay out for so long is shown without


@dataclass(frozen=True)
class View:
    """A picture and the masks that belong to it; None: there are none, or not yet."""

    picture: Picture
    mask: Mask | None = None

    @property
    def key(self) -> Key:
        return key_of(self.picture)


@dataclass
class Held:
    """A frozen frame.

    Attributes:
        token: its name for clients.
        view: the picture and the masks that it had.
        later: the frames since then, oldest first; the newest is always among them.
        seen: how many frames there have been since then.
        used: when somebody used it last, monotonic seconds.
    """

    token: str
    view: View
    later: list[Picture] = field(default_factory=list)
    seen: int = 0
    used: float = field(default_factory=time.monotonic)

    def add(self, picture: Picture) -> None:
        """Keep a newer frame."""
        self.seen += 1
        self.later.append(picture)
        if len(self.later) > LATER:
            self.later = thinned(self.later, LATER // 2)


class Feed:
    """One stream.

    Args:
        stream: its name.
        on_view: called with what is to be shown next.
    """

    def __init__(self, stream: str, on_view: Callable[[View], None]):
        self.stream, self._on_view = stream, on_view
        self.newest: View | None = None
        self.held: dict[str, Held] = {}
        self._views: OrderedDict[Key, View] = OrderedDict()
        self._bytes = 0
        self._early: Mask | None = None  # the last mask that came before its picture
        self._masked_at: int | None = None  # when the last mask came; None: nothing is followed

    def add_picture(self, picture: Picture) -> None:
        """Take the next frame; it is shown at once if no mask is to be expected."""
        view = View(picture)
        if view.key in self._views:  # sent again after a recovery, or for others that came later
            return
        if self._early is not None and key_of(self._early) == view.key:
            view = View(picture, self._early)
        self._views[view.key] = view
        self._bytes += len(picture.jpeg)
        while len(self._views) > KEPT_FRAMES or (self._bytes > KEPT_BYTES and len(self._views) > 1):
            _, gone = self._views.popitem(last=False)
            self._bytes -= len(gone.picture.jpeg)
        for held in self.held.values():
            if view.key > held.view.key:
                held.add(picture)
        if (
            view.mask is not None
            or self._masked_at is None
            or time.monotonic_ns() - self._masked_at > _PATIENCE_NS
        ):
            self._show(view)

    def add_mask(self, mask: Mask) -> None:
        """Take the masks of a frame, and show both."""
        key = key_of(mask)
        self._masked_at = time.monotonic_ns() if mask.objects else None
        view = self._views.get(key)
        if view is None:  # its picture was skipped, as a newer one was there, or is still to come
            self._early = mask
            return
        view = self._views[key] = View(view.picture, mask)
        self._show(view)

    def follow_nothing(self) -> None:
        """Note that the stream has no objects, so that pictures do not wait for masks."""
        self._masked_at = None

    def hold(self, key: Key | None = None) -> Held:
        """Freeze a frame.

        Args:
            key: which; None = what is shown now.

        Raises:
            InputError: it is not there any more, or nothing has come yet.
        """
        view = self.newest if key is None else self._views.get(key)
        if view is None:
            what = "no frame has come yet" if key is None else f"frame {key[1]} is not there any more"
            raise InputError(f"{self.stream}: {what}; try again")
        held = Held(secrets.token_urlsafe(12), view)
        for later, one in self._views.items():
            if later > view.key:
                held.add(one.picture)
        self.held[held.token] = held
        return held

    def _show(self, view: View) -> None:
        before = self.newest
        if before is not None and view.key < before.key:
            return
        self.newest = view
        self._on_view(view)


def key_of(one: Picture | Mask) -> Key:
    """Incarnation and seq."""
    return one.incarnation, one.seq


def thinned(frames: Sequence[Picture], count: int) -> list[Picture]:
    """At most `count` of the frames, evenly chosen, always with the last one."""
    if len(frames) <= count:
        return list(frames)
    last = len(frames) - 1
    chosen = [round(last * (n + 1) / count) for n in range(count)]
    return [frames[n] for n, _ in itertools.groupby(chosen)]


def forget_old(held: dict[str, Held], now: float) -> None:
    """Drop frozen frames that nobody has used for long."""
    for token in [name for name, one in held.items() if now - one.used > HELD_SECONDS]:
        del held[token]
