"""Which files a source reads, so that nothing is written over them.

[(path, reads)] = files_of("shots/*.png")
reads(Path("shots/7.png"))      # True
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from streamvos.addresses import is_url
from streamvos.pictures.listing import IMAGE_SUFFIXES

RECORDINGS = (".mcap", ".db3")
"""Suffixes of recordings of messages, also compressed ones (.zstd)."""

_MOST = 10_000  # files of a glob that are looked at one by one; what they link to is protected, too


def files_of(source: str) -> list[tuple[Path, Callable[[Path], bool]]]:
    """The files and folders that a source reads, each with a function that tells whether a path is read, too.

    A camera, network stream or generated source reads none.
    """
    text = source.removeprefix("camera:")
    if text != source and text.isdecimal():
        return []
    if text.lower().startswith("file:"):
        text = unquote(urlsplit(text).path)
    if is_url(text) or text == "-" or text.partition(":")[0] == "synthetic":
        return []
    path = Path(text).expanduser()
    if path.is_file():
        return [(path, _never)]
    if not path.exists() and glob.has_magic(text):
        pattern = os.path.abspath(path)
        found = () if "**" in text else islice(glob.iglob(text), _MOST)
        return [(path, lambda one: _matches(one, pattern)), *((Path(one), _never) for one in found)]
    if is_recording(path):
        return [(path, lambda one: _is_recording_in(one, path))]
    return [(path, lambda one: _is_picture_in(one, path))]


def is_recording(path: Path) -> bool:
    """Whether a path names a recording of messages: a file by its name, or a folder by the files in it."""
    if path.is_dir():
        with os.scandir(path) as found:
            return any(_has_suffix(one.name) for one in found)
    return _has_suffix(path.name)


def _has_suffix(name: str) -> bool:
    return name.lower().removesuffix(".zstd").endswith(RECORDINGS)


def _is_recording_in(path: Path, folder: Path) -> bool:
    return _has_suffix(path.name) and os.path.realpath(path.parent) == os.path.realpath(folder)


def _never(_: Path) -> bool:
    return False


def _is_picture_in(path: Path, folder: Path) -> bool:
    is_picture = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return is_picture and os.path.realpath(path.parent) == os.path.realpath(folder)


def _matches(path: Path, pattern: str) -> bool:
    """Whether a glob finds a path, without looking for all that it finds."""
    for one in {os.path.abspath(path), os.path.realpath(path)}:
        if "**" in pattern:
            if fnmatch.fnmatchcase(one, pattern.replace("**/", "*")):
                return True
        else:
            names, wanted = one.split(os.sep), pattern.split(os.sep)
            if len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted)):
                return True
    return False


def may_name(source: str) -> Callable[[str], bool]:
    """A function that tells whether a label map of a source may have a name (without suffix).

    Label maps of pictures have the pictures' names; all others are numbered ("00000"). What is not known
    before the source is opened counts as possible.
    """
    places = files_of(source)
    if not places or places[0][0].is_file():  # also the pictures of one file are numbered
        own = places[0][0].stem if places and places[0][0].suffix.lower() in IMAGE_SUFFIXES else None
        return lambda stem: stem == own or (len(stem) >= 5 and stem.isdecimal())
    path, _ = places[0]
    folder = path if path.is_dir() else path.parent
    if glob.has_magic(str(folder)):
        return lambda _: True
    return lambda stem: any((folder / f"{stem}{suffix}").exists() for suffix in IMAGE_SUFFIXES)
