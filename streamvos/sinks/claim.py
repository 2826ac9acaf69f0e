"""The right to write outputs: nobody else writes them now, and nothing of the user's is in their place.

    claim = Claim(files=[Path("out/results.jsonl")], folders=[Path("out/labels")])
    claim.check()               # before anything starts; makes nothing
    with claim:                 # folders are made and locked, unfinished files of an earlier run removed
        sink = JsonLinesSink("out/results.jsonl", record=claim.record(Path("out/results.jsonl")))

A folder is locked with flock, so that the lock ends with its process. Which files are ours says the record of
each folder (`record.py`). A folder of label maps is recorded in the folder above where other outputs lie
there, so that it holds nothing but label maps; otherwise in itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from streamvos.sinks.record import RECORD, Entry, OutputRecord, read_record, write_record
from streamvos.sinks.sink import cannot_write, make_folder
from streamvos.types import InputError

_SHOWN = 3  # names of the user's files in a message


def always(_: str) -> bool:
    """Whether a label map may have a name, where the names are not known."""
    return True


class FolderLocks:
    """Locks of folders, which claims of one process may share, such as those of two streams of a pipeline.

    flock alone would keep them apart. From any thread.
    """

    def __init__(self) -> None:
        self._held: dict[Path, tuple[int, int]] = {}  # folder -> descriptor, number of holders
        self._lock = threading.Lock()

    def acquire(self, folder: Path) -> None:
        """Lock a folder, or share it.

        Raises:
            InputError: another process has it.
            OSError: it cannot be opened.
        """
        with self._lock:
            descriptor, holders = self._held.get(folder) or (_lock(folder), 0)
            self._held[folder] = descriptor, holders + 1

    def release(self, folder: Path) -> None:
        """Give up a folder; the last one unlocks it."""
        with self._lock:
            descriptor, holders = self._held.pop(folder)
            if holders > 1:
                self._held[folder] = descriptor, holders - 1
                return
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def is_shared(self, folder: Path) -> bool:
        """Whether several hold a folder."""
        with self._lock:
            return self._held.get(folder, (0, 0))[1] > 1


class Claim:
    """A context manager that holds outputs for one writer.

    Args:
        files: the files that will be written.
        folders: the folders that label maps will be written to.
        recordings: the folders of rosbag2 recordings that will be written, see `files_of_recording`.
        homes: folders that are locked, too, and that hold the records of what lies in them.
        replaced: outputs of which an earlier run's finished files are removed at the beginning, written anew
            or not; of all others, only unfinished files are.
        may_name: whether a label map may get a name (without suffix).
        overwrite: whether files of the user are replaced.
        hint: how a user insists, for messages.
        locks: locks that are shared with other claims of this process.

    Raises:
        InputError: an output is in use by another run, or a file of the user is in its place.
        SinkError: a folder cannot be made or written.
    """

    def __init__(
        self,
        files: Iterable[Path] = (),
        folders: Iterable[Path] = (),
        *,
        recordings: Iterable[Path] = (),
        homes: Iterable[Path] = (),
        replaced: Iterable[Path] = (),
        may_name: Callable[[str], bool] = always,
        overwrite: bool = False,
        hint: str = "--overwrite",
        locks: FolderLocks | None = None,
    ) -> None:
        self._files, self._folders = list(files), list(folders)
        self._recordings, self._replaced = list(recordings), list(replaced)
        self._homes = [*homes, *(one.parent for one in self._recordings)]
        self._may_name, self._overwrite, self._hint = may_name, overwrite, hint
        self._locks = FolderLocks() if locks is None else locks
        self._held: list[Path] = []
        self._records: list[OutputRecord] = []

    def record(self, output: Path) -> OutputRecord:
        """The record of one of the outputs."""
        made = self._record_of(output)
        self._records.append(made)
        return made

    def check(self) -> None:
        """Refuse what `__enter__` would refuse; makes nothing."""
        for place in self._places():
            if place.is_dir():
                with contextlib.suppress(PermissionError):
                    self._locks.acquire(place)
                    self._locks.release(place)
        self._refuse_others()

    def __enter__(self) -> Claim:
        self.enter()
        return self

    def enter(self, begin: bool = True) -> None:
        """Lock the folders, and begin the outputs anew; `begin=False` goes on with those that are there."""
        try:
            for place in self._places():
                make_folder(place)
                try:
                    self._locks.acquire(place)
                except OSError as error:
                    raise cannot_write(place, error) from error
                self._held.append(place)
            if begin:
                self._refuse_others()
                self._remove_earlier()
        except BaseException:
            self.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let others write."""
        for record in self._records:
            record.close()
        for folder in self._held:
            self._locks.release(folder)
        self._records, self._held = [], []

    def _places(self) -> list[Path]:
        """The folders that are locked, each once."""
        places = [*self._homes, *(one.parent for one in self._files), *self._folders]
        return list(dict.fromkeys(Path(os.path.realpath(one)) for one in places))

    def _outputs(self) -> list[tuple[Path, bool]]:
        inside = [file for one in self._recordings for file in files_of_recording(one)]
        return [*((one, False) for one in [*self._files, *inside]), *((one, True) for one in self._folders)]

    def _record_of(self, output: Path) -> OutputRecord:
        return record_of(output, self._files, self._homes, self._overwrite)

    def _refuse_others(self) -> None:
        """Refuse files of the user that are in the place of an output."""
        theirs: list[Path] = []
        is_ours = _Ours()
        for recording in self._recordings:
            refuse_others_in(recording)
        for output, is_folder in self._outputs():
            real = _real(output)
            if is_folder:
                inside = _pngs(real, output)
                candidates = [output / name for name in inside if self._may_name(name.removesuffix(".png"))]
            elif real.is_dir():
                raise InputError(f"cannot write {output}: it is a folder; choose another place")
            else:
                candidates = [output] if os.path.lexists(output) else []
            for path in candidates:
                if not is_ours(path):
                    _refuse_special(path)
                    theirs.append(path)
        if theirs and not self._overwrite:
            more = "" if len(theirs) <= _SHOWN else f" and {len(theirs) - _SHOWN} more"
            verb = "is" if len(theirs) == 1 else "are"
            raise InputError(
                f"{', '.join(map(str, theirs[:_SHOWN]))}{more} {verb} there already, and not as streamvos "
                f"left it; choose another place, or give {self._hint} to replace such files"
            )

    def _remove_earlier(self) -> None:
        """Remove what an earlier run wrote for the same outputs, and begin their records."""
        locked, by_folder = set(self._places()), dict[Path, dict[str, bool]]()
        outputs = [(one, False) for one in [*self._files, *self._folders, *self._recordings]]
        emptied: set[Path] = set()
        for output, finished in [*outputs, *((one, True) for one in self._replaced)]:
            real = _real(output)
            by_folder.setdefault(real.parent, {})[real.name] = finished
            if real.is_dir():  # it may have a record of its own
                by_folder.setdefault(real, {})["."] = finished
        for folder, own in by_folder.items():
            entries, kept = read_record(folder), list[Entry]()
            try:
                for name, entry in entries.items():
                    if entry.of not in own or not (own[entry.of] or entry.partial is not None):
                        kept.append(entry)
                    elif _leads_nowhere_else(folder, name):
                        emptied.add((folder / name).parent)
                        if entry.is_as_written(folder / name):
                            with contextlib.suppress(OSError):  # removed already, or not permitted
                                (folder / name).unlink()
                # a writer of another claim would go on appending to the record that is replaced
                if entries and folder in locked and not self._locks.is_shared(folder):
                    write_record(folder, kept)
            except OSError as error:
                raise cannot_write(folder / RECORD, error) from error
        for one in emptied - locked:
            with contextlib.suppress(OSError):  # something else is in it
                one.rmdir()


def files_of_recording(folder: Path, name: str | None = None) -> tuple[Path, Path]:
    """The two files of a rosbag2 recording in MCAP that we write.

    Args:
        folder: the folder that holds them.
        name: name of the recording; that of the folder if None.
    """
    return folder / f"{name or folder.name}.mcap", folder / "metadata.yaml"


def refuse_others_in(folder: Path) -> None:
    """Refuse a recording's folder that is something else, or holds more than the recording.

    Raises:
        InputError: it does. A reader would take other recordings in it for parts of this one.
    """
    if folder.is_symlink():
        raise InputError(f"cannot write a recording to {folder}: it is a link; choose another place")
    try:
        if not os.path.lexists(folder):
            return
        inside = sorted(os.listdir(folder))
    except NotADirectoryError:
        raise InputError(f"cannot write a recording to {folder}: it is a file; give a folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    own = {file.name for file in files_of_recording(folder)}
    others = [name for name in inside if name not in own and not name.startswith(".")]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of the recording to be written there; choose "
            "another place"
        )


def record_of(
    output: Path, files: Iterable[Path] = (), homes: Iterable[Path] = (), overwrite: bool = False
) -> OutputRecord:
    """The record of an output.

    Args:
        output: a file, or a folder of label maps.
        files: all files that are written with it.
        homes: folders that hold the records of what lies in them.
        overwrite: whether files that are not ours may be replaced.
    """
    real = _real(output)
    places = {os.path.realpath(one) for one in [*homes, *(one.parent for one in files)]}
    if str(real.parent) in places:
        return OutputRecord(real.parent, real.name, overwrite)
    return OutputRecord(real, ".", overwrite)


def foreign_maps(folder: Path) -> set[str]:
    """Names, without suffix, of the PNGs in a folder that are not as a run has left them."""
    is_ours = _Ours()
    return {name.removesuffix(".png") for name in _pngs(folder, folder) if not is_ours(folder / name)}


class _Ours:
    """Whether files are as a run has left them, whichever record lists them; each record is read once."""

    def __init__(self) -> None:
        self._records: dict[Path, dict[str, Entry]] = {}

    def __call__(self, path: Path) -> bool:
        real = Path(os.path.realpath(path.absolute().parent)) / path.name
        for folder in real.parents[:2]:
            if folder not in self._records:
                self._records[folder] = read_record(folder)
            entry = self._records[folder].get(real.relative_to(folder).as_posix())
            if entry is not None and entry.is_as_written(real):
                return True
        return False


def _real(path: Path) -> Path:
    """A path without links, except that a link in the place of a file stays one."""
    if path.is_dir():
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.absolute().parent)) / path.name


def _leads_nowhere_else(folder: Path, name: str) -> bool:
    place = (folder / name).parent
    return os.path.realpath(place) == os.path.join(os.path.realpath(folder), *Path(name).parts[:-1])


def _pngs(folder: Path, shown: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(one.name for one in found if one.name.endswith(".png"))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise InputError(f"cannot write label maps into {shown}: it is a file; give a folder") from None
    except OSError as error:
        raise cannot_write(shown, error) from error


def _refuse_special(path: Path) -> None:
    mode = os.lstat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InputError(f"cannot write {path}: something that is no file is there; choose another place")


def _lock(folder: Path) -> int:
    """Lock a folder for this process; InputError if another has it, OSError if it cannot be opened."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise InputError(
                f"another run is writing to {folder}; wait until it has ended, or choose another place"
            ) from None
        # some network file systems lock no folders; random names of unfinished files keep runs apart there
    return descriptor
