"""Files that are no files, and texts that are none, end in one line."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from streamvos.files import read_bytes, read_json, read_text, read_toml
from streamvos.types import InputError
from streamvos.weights.checkpoints import LARGEST, read_checkpoint

KINDS = {
    "absent": (lambda path: None, "no thing at"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "FIFO": (lambda path: os.mkfifo(path), "is a FIFO"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "huge": (lambda path: path.touch() or os.truncate(path, 2**40), "at most"),
    "without end": (lambda path: path.symlink_to("/proc/self/maps"), "more than 8 bytes"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, kind):
    make, words = KINDS[kind]
    make(tmp_path / "it")
    with pytest.raises(InputError, match=words) as caught:
        read_bytes(tmp_path / "it", "the thing", limit=8 if kind == "without end" else 1000)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "it") in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(tmp_path, encoding):
    (tmp_path / "list.txt").write_text("bär\n", encoding=encoding)
    assert read_text(tmp_path / "list.txt", "the list") == "bär\n"


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match=r"no text in UTF-8 \(byte 3\)"):
        read_text(tmp_path / "list.txt", "the list")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "1" * 6000, "is no TOML: Exceeds"),
        ("a = " + "[" * 20000, "nested too deeply"),
        ("a = ", "is no TOML"),
    ],
)
def test_toml_of_giant_numbers_or_nesting_is_refused(tmp_path, text, words):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize(("text", "words"), [("[" * 100_000, "nested too deeply"), ("{", "is no JSON")])
def test_json_of_nesting_is_refused(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_json(tmp_path / "a.json", "the list")


def test_weights_that_would_unpack_to_gigabytes_are_refused_unread(tmp_path: Path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 64)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24  # the size after unpacking, in the list of contents
    content[place : place + 4] = (LARGEST + 1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"would unpack to 2\.0 GiB"):
        read_checkpoint(path)
