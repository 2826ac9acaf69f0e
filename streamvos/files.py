"""Reading files that users name: regular files of a bounded size, decoded with one line for every mistake.

A path may lead to a FIFO, a device or a folder, to a text in another encoding, or to one that is nested so
deeply that a parser gives up. All of that ends here, in an `InputError`.

    with open_file("first.png", "the mask") as file:
        ...
    table = read_toml("pipeline.toml")
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from streamvos.types import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT_BYTES = 2**24
"""The largest text that is read, 16 MiB: configurations, lists and descriptions are far smaller."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def open_file(path: str | Path, what: str, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for a writer.

    Args:
        path: path of the file; symbolic links are followed.
        what: what it should be, for error messages, such as "the mask".
        limit: largest size in bytes; None = any.

    Raises:
        InputError: it does not exist, is not permitted, is no regular file, or is larger than `limit`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise InputError(f"no {what.removeprefix('the ')} at {path}: there is no such file") from None
        if error.errno == errno.ENXIO:
            raise InputError(f"cannot read {what}: {path} is a socket; expected a file") from None
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"cannot read {what} {path!r}: {error}") from None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            kind = _KINDS.get(stat.S_IFMT(state.st_mode), "no file")
            raise InputError(f"cannot read {what}: {path} is {kind}; expected a file")
        if limit is not None and state.st_size > limit:
            raise InputError(
                f"cannot read {what} {path}: it has {state.st_size} bytes; expected at most {limit}"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, what: str, limit: int = TEXT_BYTES) -> bytes:
    """The content of a file; errors as for `open_file`, and also if it cannot be read to its end."""
    with open_file(path, what, limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"cannot read {what} {path}: {error.strerror}") from None
    if len(content) > limit:  # files in /proc have a size of 0
        raise InputError(f"cannot read {what} {path}: it has more than {limit} bytes")
    return content


def read_text(path: str | Path, what: str, limit: int = TEXT_BYTES) -> str:
    """A text in UTF-8, or in the encoding that a byte order mark says, which is removed.

    Raises:
        InputError: see `read_bytes`; or it is no such text.
    """
    content = read_bytes(path, what, limit)
    mark, encoding = next((one for one in _BYTE_ORDER_MARKS if content.startswith(one[0])), (b"", "utf-8"))
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {what} {path}: it is no text in UTF-8 (byte {error.start + len(mark)})"
        ) from None


def read_toml(path: str | Path, what: str = "the TOML file") -> dict[str, Any]:
    """A table from a TOML file; InputError if it cannot be read or is no TOML."""
    text = read_text(path, what)
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise InputError(f"{path} is no TOML that can be read: it is nested too deeply") from None
    except ValueError as error:  # also of int(), which refuses numbers of thousands of digits
        raise InputError(f"{path} is no TOML: {_first_line(error)}") from None


def read_json(path: str | Path, what: str, limit: int = TEXT_BYTES) -> Any:
    """A value from a JSON file; InputError if it cannot be read or is no JSON."""
    text = read_text(path, what, limit)
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"cannot read {what} {path}: its JSON is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"cannot read {what} {path}: it is no JSON ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
