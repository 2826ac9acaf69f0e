"""Which files in a folder are ours: the record that every writer of outputs keeps.

Each folder with outputs holds a hidden file, `.streamvos-files`. A file is listed before it is made, and
again with its size and time when it is whole. A file that is not listed, or that was changed since, is the
user's.

    record = OutputRecord(Path("out"), "overlay.mp4")
    partial, descriptor = record.new_partial(Path("out/overlay.mp4"))    # out/overlay.3f9a41c2.partial.mp4
    ...
    record.expect(path); os.replace(partial, path); record.finished(path)

A line is a JSON object: "name", relative to the folder; "of", the output that it belongs to; "partial", the
number of a part that is not finished; or "size" in bytes and "mtime" in ns. A line that cannot be read says
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streamvos.sinks.sink import cannot_write
from streamvos.types import InputError, SinkError

RECORD = ".streamvos-files"
_LONGEST_NAME = 255  # bytes, of nearly all file systems


@dataclass(frozen=True, slots=True)
class Entry:
    """What a record says of one file.

    Attributes:
        name: relative to the record's folder: "overlay.mp4" or "labels/00000.png".
        of: the output that the file belongs to, such as "labels".
        partial: number of the part that it is the unfinished file of; None = it has its final name.
        size, mtime: of the finished file, in bytes and ns; None if it was not finished. The size of a partial
            file is 0 once it has been made.
    """

    name: str
    of: str
    partial: int | None = None
    size: int | None = None
    mtime: int | None = None

    def is_as_written(self, path: Path) -> bool:
        """Whether the file at `path` is the one that was listed."""
        try:
            found = os.lstat(path)
        except (OSError, ValueError):
            return False
        if not stat.S_ISREG(found.st_mode):
            return False
        return self.mtime is None or (found.st_size, found.st_mtime_ns) == (self.size, self.mtime)


class OutputRecord:
    """The files of one output, in the record of a folder.

    Several writers may append to a record; only a `Claim` removes lines.

    Args:
        folder: the folder of the record; it must exist when something is listed.
        of: name of the output, relative to the folder: "overlay.mp4" or "labels".
        overwrite: whether files that are not ours may be replaced.
    """

    def __init__(self, folder: Path, of: str, overwrite: bool = False):
        self.folder, self.of, self.overwrite = folder, of, overwrite
        self._file: int | None = None
        self._prefix: tuple[Path, str] | None = None  # a folder, and how names of files in it begin

    def expect(self, path: Path, partial: int | None = None) -> None:
        """List a file that will be made.

        Raises:
            SinkError: the record cannot be written.
        """
        self._append({"partial": partial} if partial is not None else {}, path)

    def finished(self, path: Path) -> None:
        """List a finished file as it is."""
        found = os.lstat(path)
        self._append({"size": found.st_size, "mtime": found.st_mtime_ns}, path)

    def new_partial(self, path: Path, number: int = 1) -> tuple[Path, int]:
        """Make and list the unfinished file of an output, as the function `new_partial` does."""
        partial, descriptor = new_partial(path, lambda made: self.expect(made, number))
        self._append({"partial": number, "size": 0}, partial)  # it has been made
        return partial, descriptor

    def partials(self) -> list[tuple[int, Path]]:
        """Number and path of this output's unfinished files, in order."""
        own = [one for one in read_record(self.folder).values() if one.of == self.of]
        found = [(one.partial, self.folder / one.name) for one in own if one.partial is not None]
        return sorted((number, path) for number, path in found if is_plain_file(path))

    def has_begun(self) -> bool:
        """Whether a file of this output has been made, still there or not."""
        entries = read_record(self.folder).values()
        return any(one.of == self.of and one.size is not None for one in entries)

    def is_ours(self, path: Path) -> bool:
        """Whether the file at a path is one of this output, as it was written."""
        found = read_record(self.folder).get(self._name(path))
        return found is not None and found.of == self.of and found.is_as_written(path)

    def close(self) -> None:
        """Close the record; listing a file opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, values: dict[str, int], path: Path) -> None:
        # a line begins with a line feed, too, so that a torn one spoils no other
        line = "\n" + json.dumps({"name": self._name(path), "of": self.of, **values}) + "\n"
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
                self._file = os.open(self.folder / RECORD, flags, 0o666)
            data = line.encode()
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the disk is full
        except OSError as error:
            raise cannot_write(self.folder / RECORD, error) from error

    def _name(self, path: Path) -> str:
        if self._prefix is None or self._prefix[0] != path.parent:
            inside = os.path.relpath(os.path.realpath(path.parent), os.path.realpath(self.folder))
            self._prefix = path.parent, "" if inside == "." else f"{inside}/"
        return self._prefix[1] + path.name


def read_record(folder: Path) -> dict[str, Entry]:
    """The files that the record of a folder lists, by name; none if there is no record.

    Names that lead out of the folder are left out.

    Raises:
        InputError: the record is no regular file.
        SinkError: it cannot be read.
    """
    path = folder / RECORD
    entries: dict[str, Entry] = {}
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return entries
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"{path} is a link; streamvos keeps its own record there: remove it") from None
        raise SinkError(f"cannot read {path}, the record of our own files: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no regular file; streamvos keeps its own record there: remove it")
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            entry = _entry(line)
            if entry is not None:
                entries[entry.name] = entry
    return entries


def write_record(folder: Path, entries: Iterable[Entry]) -> None:
    """Replace the record of a folder, whole or not at all; OSError if that is not possible."""
    temporary = folder / f"{RECORD}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for one in entries:
                values = {"name": one.name, "of": one.of, "partial": one.partial}
                values |= {"size": one.size, "mtime": one.mtime}
                known = {key: value for key, value in values.items() if value is not None}
                file.write(json.dumps(known).encode() + b"\n")
        os.replace(temporary, folder / RECORD)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def new_partial(path: Path, before: Callable[[Path], None] | None = None) -> tuple[Path, int]:
    """Make the unfinished file of an output: results.jsonl -> results.3f9a41c2.partial.jsonl, beside it.

    The file is new: neither a file nor a link that is there already is opened.

    Args:
        path: the finished file.
        before: function that is called with the path before the file is made.

    Returns:
        Its path, and a descriptor to write and read it.

    Raises:
        SinkError: it cannot be made.
    """
    ending = f".{secrets.token_hex(4)}.partial{path.suffix}"
    stem = os.fsencode(path.stem)[: max(0, _LONGEST_NAME - len(os.fsencode(ending)))]
    partial = path.with_name(os.fsdecode(stem) + ending)
    if before is not None:
        before(partial)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return partial, os.open(partial, flags, 0o666)
    except OSError as error:
        raise cannot_write(partial, error) from error


def give_name(partial: Path, path: Path, record: OutputRecord | None) -> None:
    """Give an unfinished file its final name, and list it.

    Raises:
        SinkError: something that is not ours has been put there meanwhile; the partial file stays.
        OSError: it cannot be renamed.
    """
    if record is None:
        os.replace(partial, path)
        return
    if os.path.lexists(path) and not (record.overwrite or record.is_ours(path)):
        raise SinkError(f"{path} was put there by somebody else meanwhile; the result stays in {partial}")
    with contextlib.suppress(SinkError):  # on a full disk the file counts as the user's from now on
        record.expect(path)
    os.replace(partial, path)
    with contextlib.suppress(SinkError):
        record.finished(path)


def file_identity(file: int | Path) -> tuple[int, int] | None:
    """Device and inode of an open file, or of what is at a path; None if nothing is there."""
    try:
        found = os.fstat(file) if isinstance(file, int) else os.lstat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def check_is_there(path: Path, identity: tuple[int, int] | None) -> None:
    """SinkError if a file that is being written has been removed, or replaced by another one."""
    if file_identity(path) != identity:
        raise SinkError(f"{path} was removed while it was written; what was in it is lost")


def is_plain_file(path: Path) -> bool:
    """Whether a path is a regular file and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _entry(line: bytes) -> Entry | None:
    try:
        values = json.loads(line)
        name, of = values["name"], values["of"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = [values.get(key) for key in ("partial", "size", "mtime")]
    if not (_is_inside(name) and _is_inside(of)) or not all(
        number is None or type(number) is int for number in numbers
    ):
        return None
    return Entry(name, of, *numbers)


def _is_inside(name: object) -> bool:
    """Whether a name is a file's, in a folder or in a folder of that; a record may have been edited."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    parts = PurePosixPath(name)
    return not parts.is_absolute() and len(parts.parts) <= 2 and ".." not in parts.parts
