"""Lines for a reader that is slow, absent or gone; and lines of processes that must not wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from streamvos.pipeline.telemetry.lines import MOST_LINES, ROOM_BYTES, LineWriter, WorkerOutput


@pytest.fixture
def pipe():
    """Reading and writing end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def read_lines(descriptor, until, found=None):
    """Lines from a pipe, up to one that `until` accepts."""
    rest, found = b"", [] if found is None else found
    while not (found and until(found[-1])):
        *lines, rest = (rest + os.read(descriptor, 2**16)).split(b"\n")
        found += [line.decode() for line in lines]
    return found


def test_lines_come_in_order_and_at_the_end_all_of_them(pipe):
    writer = LineWriter(pipe[1], "{} lost\n".format)
    for number in range(200):
        writer.write(f"line {number}\n")
    writer.finish()
    os.close(pipe[1])
    assert os.read(pipe[0], 2**16).decode().splitlines() == [f"line {number}" for number in range(200)]


def test_without_a_reader_nothing_waits_and_what_is_dropped_is_counted(pipe):
    writer, line = LineWriter(pipe[1], "{} lost\n".format), "x" * 999 + "\n"
    sent = 2 * ROOM_BYTES // len(line)
    began = time.monotonic()
    for _ in range(sent):
        writer.write(line)
    writer.finish()  # nobody reads
    assert time.monotonic() - began < 20
    reader_found: list[str] = []
    reader = threading.Thread(target=read_lines, args=(pipe[0], lambda one: one == "last", reader_found))
    reader.start()
    writer.finish()  # somebody reads
    writer.write("last\n")
    reader.join(20)
    assert not reader.is_alive()
    (note,) = [one for one in reader_found if one.endswith("lost")]
    assert int(note.split()[0]) + reader_found.count("x" * 999) == sent
    assert reader_found[-2:] == [note, "last"]


def test_a_reader_that_is_gone_and_a_closed_descriptor_are_no_error(pipe):
    os.close(pipe[0])
    writer = LineWriter(pipe[1], "{} lost\n".format)
    for _ in range(10):
        writer.write("x" * 10000 + "\n")
        writer.finish()
    number = os.dup(pipe[1])
    os.close(number)
    gone = LineWriter(number, "{} lost\n".format)
    gone.write("x\n")
    gone.finish()


def test_processes_never_wait_for_who_reads_what_they_print():
    said: list[str] = []
    program = """
import os, sys
print("hello", flush=True)
for _ in range(20):
    os.write(2, b"x" * 50_000 + b"\\n")
print("end of it", flush=True)
"""
    with WorkerOutput(said.append) as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=output.descriptor, stderr=output.descriptor
        )
        assert process.wait(30) == 0
    assert said[0] == "hello"
    assert said[-1] in ("end of it", "x" * 4096)  # unless there were too many lines
    # a long line comes in pieces, each as long as what could be read at once
    assert sum("x" in one for one in said) >= 20


def test_a_flood_of_lines_is_cut_and_the_number_of_the_others_told():
    said: list[str] = []
    program = "for k in range(3000): print(k)\nimport time; time.sleep(1.1); print('later')"
    with WorkerOutput(said.append) as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output.descriptor)
        assert process.wait(30) == 0
    more = [int(one.split()[2]) for one in said if one.startswith("... and")]
    shown = [one for one in said if one.isdigit()]
    assert said[-1] == "later"
    assert len(shown) + sum(more) == 3000
    assert len(shown) <= 2 * MOST_LINES
