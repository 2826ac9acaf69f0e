"""The pipeline's log: one line per event on the standard error, as text for people or JSON for programs.

    log = EventLog("text")
    log.event("worker ready", worker="compute", pid=4711)
    log.event("refused", level="warning", cause="dtype", stage="extractor", stream="front")

    2026-11-20T18:24:20.123+00:00 info    worker ready  worker=compute pid=4711
    2026-11-20T18:24:20.131+00:00 warning refused  stream=front stage=extractor cause=dtype

Python's `logging` does the work: a filter removes credentials, a formatter writes text or JSON, and a handler
limits events with a `cause`, which strangers can provoke, to one line per second, and counts the others.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TextIO, get_args

from streamvos.addresses import redact
from streamvos.pipeline.telemetry.lines import LineWriter

Form = Literal["text", "json"]
Level = Literal["info", "warning", "error"]

PERIOD = 1.0
"""Seconds within which an event with a `cause` is written once."""

_FIRST_FIELDS = ("stream", "stage", "incarnation", "worker")
_REPETITION = ("cause", "stream", "stage")  # events with equal values of these repeat each other
_CAUSES = 256  # repeated events that are remembered at a time; strangers may invent causes
_LONGEST = 2000  # characters of one value

# From a scheme to the last "@" before the next address, blanks included (passwords contain anything), and on
# to the end of the word.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"  # of bounded length, so that long words take no quadratic time
_ADDRESS = re.compile(rf"{_SCHEME}(?:(?:(?!\b{_SCHEME})[^\n])*@)?(?:(?!\b{_SCHEME})[^\s'\"<>])*")
_SECRET_NAME = re.compile(r"passw|secret|token|credential|authorization", re.IGNORECASE)


class EventLog:
    """Writes events, from any thread. It never raises, whatever is logged and wherever the lines go.

    Args:
        form: "text" or "json".
        stream: where the lines go; None = the standard error, which is never waited for (`lines`).
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        form: Form = "text",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = None if stream is not None else _standard_error(self._dropped)
        self._handler = _OncePerSecond(self._lines or stream, clock)
        self._handler.addFilter(_without_credentials)
        self._handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
        self._logger = logging.Logger("streamvos.pipeline")
        self._logger.addHandler(self._handler)

    def event(self, event: str, /, level: Level = "info", **fields: Any) -> None:
        """Write one event.

        Args:
            event: what happened, in a few words that are the same every time.
            level: an unknown one counts as "error".
            fields: further facts; those that are None are left out. An event with a `cause` is written once
                per second for each event, cause, stream and stage; a later line has the number of the others
                as `suppressed`.
        """
        number = getattr(logging, level.upper()) if level in get_args(Level) else logging.ERROR
        self._logger.log(number, event, extra={"fields": fields})

    def close(self) -> None:
        """Write how many events have been suppressed, as far as somebody reads; the log stays usable."""
        self._handler.write_suppressed()
        if self._lines is not None:
            self._lines.finish()

    def _dropped(self, count: int) -> str:
        """The line that says how many lines nobody has read in time."""
        fields = {"fields": {"count": count}, "levelno": logging.WARNING, "levelname": "WARNING"}
        return self._handler.format(logging.makeLogRecord({"msg": "lines_dropped", **fields})) + "\n"


@contextmanager
def warnings_as_events(say: Callable[[Level, str], None]) -> Iterator[None]:
    """Within the block, warnings that streamvos logs through Python's logging go only to `say`.

    Args:
        say: receives a level and the text, in any thread.
    """

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level: Level = "error" if record.levelno >= logging.ERROR else "warning"
            say(level, record.getMessage()[:_LONGEST])

    logger, handler = logging.getLogger("streamvos"), Forward(logging.WARNING)
    others, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = others, propagate


def without_credentials(text: str) -> str:
    """A text without users, passwords, queries and keys in its addresses; it removes rather too much.

    >>> without_credentials("cannot open rtsp://admin:s@10.0.0.5/live?token=1: refused")
    'cannot open rtsp://***@10.0.0.5/live?*** refused'
    """
    return _ADDRESS.sub(lambda match: redact(match[0]), text) if "://" in text else text


@dataclass
class _Repeated:
    """The last line of an event with a cause: when it was written, and how many more were suppressed."""

    written: float
    record: logging.LogRecord
    suppressed: int = 0


def _standard_error(note: Callable[[int], str]) -> LineWriter | None:
    """The standard error of the moment; None if it is no file, as in tests, or closed."""
    try:
        lines = LineWriter(sys.stderr.fileno(), note)
    except (AttributeError, OSError, ValueError):
        return None
    atexit.register(lines.finish)
    return lines


class _OncePerSecond(logging.StreamHandler[Any]):
    """Writes the first of events that repeat a cause within a second, and later the number of the others."""

    def __init__(self, stream: Any, clock: Callable[[], float]) -> None:
        super().__init__(stream)
        self._clock = clock
        self._repeated: OrderedDict[tuple[str, ...], _Repeated] = OrderedDict()  # the oldest line first

    def handle(self, record: logging.LogRecord) -> bool:
        fields: Mapping[str, Any] = record.__dict__["fields"]
        with self.lock:  # type: ignore[union-attr]
            now = self._clock()
            while self._repeated and now - next(iter(self._repeated.values())).written >= PERIOD:
                key, one = self._repeated.popitem(last=False)
                if self._write_number(one):  # a line with this cause; the next comes after another second
                    self._repeated[key] = _Repeated(now, one.record)
            if "cause" in fields:
                key = (record.msg, *(str(fields.get(name, ""))[:80] for name in _REPETITION))
                if key in self._repeated:
                    self._repeated[key].suppressed += 1
                    return False
                if len(self._repeated) >= _CAUSES:
                    self._write_number(self._repeated.popitem(last=False)[1])
                self._repeated[key] = _Repeated(now, record)
            return super().handle(record)

    def write_suppressed(self) -> None:
        """Write the number of suppressed events of each kind."""
        with self.lock:  # type: ignore[union-attr]
            while self._repeated:
                self._write_number(self._repeated.popitem(last=False)[1])

    def _write_number(self, one: _Repeated) -> bool:
        if one.suppressed:
            fields = {k: v for k, v in one.record.__dict__["fields"].items() if k in _REPETITION}
            changed = {"fields": {**fields, "suppressed": one.suppressed}, "created": time.time()}
            super().handle(logging.makeLogRecord({**one.record.__dict__, **changed}))
        return one.suppressed > 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing: a log that is closed or full does not stop the pipeline."""


def _without_credentials(record: logging.LogRecord) -> bool:
    """Filter: convert the fields to JSON's types, without credentials, in the order of the line."""
    fields: Mapping[str, Any] = record.__dict__["fields"]
    names = dict.fromkeys((*(name for name in _FIRST_FIELDS if name in fields), *fields))
    plain = {name: _plain(fields[name], name) for name in names if fields[name] is not None}
    record.__dict__["fields"], record.msg = plain, without_credentials(record.msg)
    return True


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        first = {"time": _time(record), "level": record.levelname.lower(), "event": record.msg}
        return json.dumps({**first, **record.__dict__["fields"], **first})  # no field replaces these three


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = " ".join(f"{name}={_word(value)}" for name, value in record.__dict__["fields"].items())
        event = record.msg if record.msg.isprintable() else json.dumps(record.msg)[1:-1]  # stays one line
        return f"{_time(record)} {record.levelname.lower():7} {event}  {words}".rstrip()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _plain(value: Any, name: str = "", depth: int = 0) -> Any:
    """A value in JSON's types, without credentials."""
    if _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < 4 and isinstance(value, Mapping):
        return {(name := _text(key)): _plain(one, name, depth + 1) for key, one in value.items()}
    if depth < 4 and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, "", depth + 1) for one in value]
    return _text(value)


def _text(value: Any) -> str:
    try:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    except Exception as error:  # a broken __str__ must not break the caller
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    text = without_credentials(text)  # before it is cut, which might remove the "@" behind a password
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _word(value: Any) -> str:
    """One value of a text line: plain where it is unambiguous, else as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and re.fullmatch(r"[^\s\"'=\\{}\[\]]+", value) and value.isprintable():
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
