"""Streams that users add, until they are admitted: one after the other is checked in the background.

A check may wait: for the disk of a mask, or for an address that has to be opened. The supervisor must not,
since the other streams need it. Processes are started by its own thread, since they end with that thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamvos.pipeline.config.adding import with_stream
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.supervision.endings import Endings, answer
from streamvos.pipeline.supervision.streams import Reply, StreamRecord
from streamvos.pipeline.supervision.worker_pool import Context
from streamvos.sinks.claim import Claim
from streamvos.types import InputError, StreamvosError

MOST_STREAMS = 64
"""Most streams that a pipeline has after one was added; each added one has processes of its own."""

CHECK_SECONDS = 45.0
"""A check that takes longer, such as of a disk that is gone, is given up."""

Checked = tuple[PipelineConfig, Claim | None]
"""The configuration with the added stream alone, and the claim of its outputs."""


@dataclass
class Addition:
    """A request to add a stream; `table` and `method` as in `with_stream`."""

    table: Mapping[str, Any]
    method: Mapping[str, Any] | None
    files: bool
    reply: Reply
    state: tuple[int, bytes] | None = None  # to go on from: after which frame it was saved, and the state

    @property
    def name(self) -> str:
        """The stream's name, which has not been checked yet."""
        return str(self.table.get("name"))


class Additions:
    """All requests to add streams that have not been admitted or refused yet.

    Args:
        context: shared by all parts of the supervision.
        streams: the streams that the pipeline has, by name.
        ends: how they end.
        admit: takes an addition, its configuration and its claim; raises StreamvosError if it cannot.
    """

    def __init__(
        self,
        context: Context,
        streams: Mapping[str, StreamRecord],
        ends: Endings,
        admit: Callable[[Addition, PipelineConfig, Claim | None], None],
    ):
        self._context, self._streams, self._ends, self._admit = context, streams, ends, admit
        self._waiting: deque[Addition] = deque()
        self._current: tuple[Addition, Future[Checked], float] | None = None

    @property
    def waiting(self) -> list[str]:
        """Names of the streams that have not been admitted or refused yet."""
        current = [] if self._current is None else [self._current[0]]
        return [one.name for one in (*current, *self._waiting)]

    def request(self, addition: Addition) -> None:
        """Check a stream and admit it, after those that were requested before."""
        self._waiting.append(addition)
        self.watch()

    def watch(self) -> None:
        """Admit or refuse the stream that has been checked, and begin with the next."""
        if self._current is not None:
            self._finish(*self._current)
        while self._current is None and self._waiting:
            addition = self._waiting.popleft()
            try:
                self._begin(addition)
            except StreamvosError as error:
                self._refuse(addition, error)

    def _begin(self, addition: Addition) -> None:
        self._check_place(addition.name)
        others = [one.config for one in self._streams.values()]
        check = partial(_check, self._context, others, addition)
        self._current = addition, self._context.background(check), self._context.clock()

    def _finish(self, addition: Addition, checked: Future[Checked], since: float) -> None:
        if not checked.done():
            if self._context.clock() > since + CHECK_SECONDS:
                self._current = None
                checked.add_done_callback(_release)
                text = f"its files or its source could not be checked within {CHECK_SECONDS:g} s"
                self._refuse(addition, InputError(text))
            return
        self._current = None
        try:
            config, claim = checked.result()
        except Exception as error:  # also what no check foresees must not end the supervisor
            known = isinstance(error, StreamvosError)
            self._refuse(addition, error if known else InputError(f"{type(error).__name__}: {error}"))
            return
        try:
            self._check_place(config.streams[0].name)
            self._admit(addition, config, claim)
        except StreamvosError as error:
            if claim is not None:
                claim.release()
            self._refuse(addition, error)

    def _check_place(self, name: str) -> None:
        if self._ends.all_asked:
            raise InputError("the pipeline is ending, so no stream can be added")
        if name in self._streams:
            over = self._streams[name].over
            hint = "it has ended: remove it first" if over else "choose another name"
            raise InputError(f"there is a stream {name!r} already; {hint}")
        if len(self._streams) >= MOST_STREAMS:
            raise InputError(f"there are {len(self._streams)} streams, at most {MOST_STREAMS} are possible")

    def _refuse(self, addition: Addition, error: Exception) -> None:
        self._context.log.event("addition_refused", "warning", stream=addition.name[:80], error=str(error))
        answer(addition.reply, False, error=str(error))


def in_background(work: Callable[[], Checked]) -> Future[Checked]:
    """Run something in a thread that does not keep the process from ending."""
    future: Future[Checked] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="addition", daemon=True).start()
    return future


def _check(context: Context, others: list[StreamConfig], addition: Addition) -> Checked:
    """Everything about an addition that may wait; in a thread."""
    config = with_stream(context.config, others, addition.table, addition.method, addition.files)
    if addition.state is not None and config.streams[0].effective_policy == "lossless":
        raise InputError('a stream with policy "lossless" begins with its first frame, not with a snapshot')
    return config, context.resources.claim(config)


def _release(checked: Future[Checked]) -> None:
    """Release the outputs of a stream whose check was given up, and has ended after all."""
    if checked.exception() is None and (claim := checked.result()[1]) is not None:
        claim.release()
