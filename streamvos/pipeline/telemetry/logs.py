"""What happened, one line per event, on the standard error: for people, or as JSON for programs.

    log = EventLog("text")
    log.event("worker ready", worker="compute", pid=4711)
    log.event("refused", level="warning", cause="dtype", stage="extractor", stream="front")

    2026-11-20T18:24:20.123+00:00 info    worker ready  worker=compute pid=4711
    2026-11-20T18:24:20.131+00:00 warning refused  stream=front stage=extractor cause=dtype

The words of a line never hold a credential: addresses are shortened wherever in a text they stand. What a
stranger can repeat at will (an event with a `cause`) is written once per second, and the others are counted.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TextIO, get_args

from streamvos.addresses import redact
from streamvos.types import InputError

Form = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

LEVELS: tuple[Level, ...] = get_args(Level)

FIRST_FIELDS = ("stream", "stage", "incarnation", "worker")
"""What is written first of an event's fields, if it has them."""

PERIOD = 1.0
"""Seconds within which an event is written once for each cause."""

_CAUSES = 256  # that are told apart at a time; a stranger may invent more
_LONGEST = 2000  # characters of one value

# From a scheme to the last "@" before the next address, blanks included (passwords hold anything), and on to
# the end of the word.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"  # of bounded length, or a long word would take for ever
_ADDRESS = re.compile(rf"{_SCHEME}(?:(?:(?!\b{_SCHEME})[^\n])*@)?(?:(?!\b{_SCHEME})[^\s'\"<>])*")
_SECRET_NAME = re.compile(r"passw|secret|token|credential|authorization", re.IGNORECASE)


class _Handler(logging.Handler):
    def __init__(self, say: Callable[[Level, str], None]):
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say("error" if record.levelno >= logging.ERROR else "warning", record.getMessage()[:_LONGEST])


@contextmanager
def warnings_as_events(say: Callable[[Level, str], None]) -> Iterator[None]:
    """Within the block, what the rooms warn of by Python's own logging is said here and nowhere else.

    Args:
        say: takes a level and the text; from any thread.
    """
    logger, handler = logging.getLogger("streamvos"), _Handler(say)
    others, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = others, propagate


def without_credentials(text: str) -> str:
    """A text whose addresses have lost user, password, query and keys; rather too much than too little.

    >>> without_credentials("cannot open rtsp://admin:s@10.0.0.5/live?token=1: refused")
    'cannot open rtsp://***@10.0.0.5/live?*** refused'
    """
    return _ADDRESS.sub(lambda match: redact(match[0]), text) if "://" in text else text


@dataclass
class _Repeated:
    """An event of one cause: when it was last written, and how often it was not since."""

    written: float
    level: Level
    fields: Mapping[str, Any] = field(default_factory=dict)
    suppressed: int = 0


class EventLog:
    """Writes events. Any thread may call it; it never raises for what is logged, nor when nobody reads.

    Args:
        form: "text" or "json".
        stream: where to; None = the standard error of the moment.
        least: events below this level are not written.
        clock: monotonic seconds.

    Raises:
        InputError: no such form or level.
    """

    def __init__(
        self,
        form: Form = "text",
        stream: TextIO | None = None,
        least: Level = "info",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if form not in get_args(Form):
            raise InputError(f'the log is {form!r}; expected "text" or "json"')
        if least not in LEVELS:
            raise InputError(f"the least level is {least!r}; expected one of {', '.join(LEVELS)}")
        self.form = form
        self._stream, self._least, self._clock = stream, LEVELS.index(least), clock
        self._lock = threading.Lock()
        self._repeated: OrderedDict[tuple[str, ...], _Repeated] = OrderedDict()

    def event(self, event: str, /, level: Level = "info", **fields: Any) -> None:
        """Write one event.

        Args:
            event: what happened, in a few words that are the same every time.
            level: an unknown one counts as "error".
            fields: what else is known; those that are None are left out. One with a `cause` is written once
                per second for each event, cause, stream and stage; how many were not follows as `suppressed`.
        """
        level = level if level in LEVELS else "error"
        if LEVELS.index(level) < self._least:
            return
        with self._lock:
            self._write_suppressed(only_due=True)
            if "cause" in fields and self._is_repeated(event, level, fields):
                return
            self._write(event, level, fields)

    def flush(self) -> None:
        """Write how many events were left out and not told yet; the last thing before the end."""
        with self._lock:
            self._write_suppressed(only_due=False)

    close = flush

    def _is_repeated(self, event: str, level: Level, fields: Mapping[str, Any]) -> bool:
        key = (event, *(str(fields.get(name, ""))[:80] for name in ("cause", "stream", "stage")))
        known = self._repeated.get(key)
        if known is not None:  # `_write_suppressed` has removed it if its second is over
            known.suppressed += 1
            return True
        if len(self._repeated) >= _CAUSES:
            self._tell(*self._repeated.popitem(last=False))
        told = {name: fields[name] for name in ("cause", "stream", "stage") if name in fields}
        self._repeated[key] = _Repeated(self._clock(), level, told)
        return False

    def _write_suppressed(self, only_due: bool) -> None:
        now = self._clock()
        while self._repeated:  # the oldest first, so the rest is not due either
            key, one = next(iter(self._repeated.items()))
            if only_due and now - one.written < PERIOD:
                return
            del self._repeated[key]
            self._tell(key, one)
            if only_due and one.suppressed:  # that was a line of this cause; the next is a second away
                self._repeated[key] = _Repeated(now, one.level, one.fields)

    def _tell(self, key: tuple[str, ...], one: _Repeated) -> None:
        if one.suppressed:
            self._write(key[0], one.level, {**one.fields, "suppressed": one.suppressed})

    def _write(self, event: str, level: Level, fields: Mapping[str, Any]) -> None:
        moment = datetime.now().astimezone().isoformat(timespec="milliseconds")
        first = [name for name in FIRST_FIELDS if name in fields]
        names = [*first, *(name for name in fields if name not in first)]
        values = {name: _plain(fields[name], name) for name in names if fields[name] is not None}
        event = without_credentials(event)
        if self.form == "json":
            reserved = {"time": moment, "level": level, "event": event}
            line = json.dumps({**reserved, **{n: v for n, v in values.items() if n not in reserved}})
        else:
            told = " ".join(f"{name}={_word(value)}" for name, value in values.items())
            line = f"{moment} {level:7} {_one_line(event)}  {told}".rstrip()
        stream = self._stream if self._stream is not None else sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, full, or there is none: the stream goes on
            return


def _plain(value: Any, name: str = "", depth: int = 0) -> Any:
    """What JSON can hold, without credentials."""
    if _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < 4 and isinstance(value, Mapping):
        return {_text(key): _plain(one, str(key), depth + 1) for key, one in value.items()}
    if depth < 4 and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, "", depth + 1) for one in value]
    return _text(value)


def _text(value: Any) -> str:
    try:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    except Exception as error:  # a broken __str__ must not end who logs it
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    text = without_credentials(text)  # before it is cut, lest the cut hide the "@" behind a password
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _word(value: Any) -> str:
    """One value of a text line: as it is where nobody could misread it, else as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and re.fullmatch(r"[^\s\"'=\\{}\[\]]+", value) and value.isprintable():
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _one_line(text: str) -> str:
    """Without line ends and other control characters, which could make one line look like two."""
    return text if text.isprintable() else json.dumps(text)[1:-1]
