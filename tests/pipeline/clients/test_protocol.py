"""docs/protocol.md: its example runs, and what it lists is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pipeline.small_server import Recorder, serving, short_folder

from streamvos.masks.checks import MASK_BYTES
from streamvos.pipeline.clients.control import PENDING_PER_CLIENT, REPLY_SECONDS, Commands
from streamvos.pipeline.clients.published import FORMS
from streamvos.pipeline.clients.subscribing import QUEUE
from streamvos.pipeline.wire import messages
from streamvos.pipeline.wire.runtime import Runtime

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text()


def section(number: int) -> str:
    return TEXT.partition(f"\n## {number}. ")[2].partition("\n## ")[0]


def first_column(number: int) -> list[str]:
    rows = re.findall(r"^\| (`[^|]*`) \|", section(number), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_the_example_gets_a_reply(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        with Runtime.claim("default") as runtime, serving(runtime.control, Recorder()):
            names: dict = {}
            exec(compile(code, "docs/protocol.md", "exec"), names)
            names["socket"].close(linger=0)
            names["socket"].context.term()
    assert (names["reply"]["kind"], names["reply"]["ok"], names["reply"]["id"]) == ("reply", True, 1)
    assert "front" in names["reply"]["streams"]


def test_dtypes_and_the_envelope():
    listed = re.search(r"one of `([a-z0-9 ]+)`", section(1))[1].split()
    assert sorted(listed) == sorted(messages.ITEM_SIZES)
    assert set(first_column(1)) == messages._ENVELOPE


def test_verbs_and_forms():
    verbs = {name for name in vars(Commands) if not name.startswith("_")}
    assert set(first_column(8)) == verbs
    assert tuple(sorted(first_column(9))) == tuple(sorted(FORMS))


@pytest.mark.parametrize(
    ("number", "limit"),
    [
        (1, f"{messages.MAX_ARRAYS} arrays"),
        (1, f"at most {messages.MAX_DIMENSIONS} numbers"),
        (1, f"{messages.ARRAY_BYTES // 2**20} MiB"),
        (1, f"{messages.HEADER_BYTES // 2**20} MiB per header"),
        (1, f"{messages.MAX_NESTING} levels"),
        (1, f"{messages.MAX_ELEMENTS} entries"),
        (8, f"At most {PENDING_PER_CLIENT} requests"),
        (8, f"after {REPLY_SECONDS:g} s"),
        (8, f"2^{MASK_BYTES.bit_length() - 1}\npixels"),
        (9, f"({QUEUE}\nqueue at each end)"),
    ],
)
def test_limits(number, limit):
    assert limit in section(number)
