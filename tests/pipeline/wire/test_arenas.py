"""Arenas: what was written is read, what is over is never read, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from streamvos.pipeline.wire.arenas import Arena, ArenaError, packed_bytes
from streamvos.pipeline.wire.messages import Place, Refused


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create("front/frames")
    yield made
    made.close()
    os.close(made.fd)


@pytest.fixture
def reader(arena) -> Iterator[Arena]:
    """The same memory in another mapping, as another process has it."""
    made = Arena(arena.name, os.dup(arena.fd))
    yield made
    made.close()
    os.close(made.fd)


def read(arena: Arena, place: Place, nbytes: int) -> bytes:
    with arena.read(place, nbytes) as view:
        return bytes(view)


def fill(arena: Arena, slot: int, *buffers) -> Place:
    generation, offsets = arena.write(slot, *buffers)
    return Place(arena.name, slot, generation, offsets[0])


def test_memory_that_is_given_back_is_gone_for_all_and_strikes_nobody(arena, reader):
    arena.allocate(4, 2**20)
    place = fill(arena, 2, b"x" * 2**20)
    assert read(reader, place, 2**20) == b"x" * 2**20
    assert os.fstat(arena.fd).st_blocks * 512 >= 4 * 2**20
    arena.free()
    assert os.fstat(arena.fd).st_blocks * 512 <= 4096  # the page that is not whole
    with pytest.raises(Refused):
        read(reader, place, 2**20)
    arena.allocate(2, 100)  # and it may be used anew
    assert read(reader, fill(arena, 1, b"again"), 5) == b"again"


def test_what_is_written_is_read(arena, reader):
    arena.allocate(3, packed_bytes([5, 100, 0]))
    generation, offsets = arena.write(1, b"12345", bytearray(b"x" * 100), b"")
    assert offsets[0] == 0
    assert all(offset % 64 == 0 for offset in offsets)
    contents = [
        read(reader, Place("front/frames", 1, generation, offset), size)
        for offset, size in zip(offsets, (5, 100, 0), strict=True)
    ]
    assert contents == [b"12345", b"x" * 100, b""]
    assert arena.generation(1) == reader.generation(1) == generation > arena.generation(0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[..., ::-1],
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array(7, np.int64),
        np.empty((0, 3), np.uint8),
        np.array([[True, False]]),
        np.arange(6, dtype=np.float16)[::2],
    ],
)
def test_arrays_of_every_kind_are_written_in_c_order(arena, reader, array):
    arena.allocate(1, packed_bytes([array.nbytes]))
    assert read(reader, fill(arena, 0, array), array.nbytes) == array.tobytes()


def test_memory_is_read_only_for_readers(arena, reader):
    arena.allocate(1, 64)
    with reader.read(fill(arena, 0, b"12345"), 5) as view, pytest.raises(TypeError, match="read-only"):
        view[0] = 1


def test_a_slot_that_was_used_anew_is_stale(arena, reader):
    arena.allocate(2, 64)
    old = fill(arena, 0, b"old")
    other = fill(arena, 1, b"other")
    new = fill(arena, 0, b"new")
    with pytest.raises(Refused) as error:
        read(reader, old, 3)
    assert error.value.cause == "stale slot"
    assert read(reader, new, 3) == b"new"
    assert read(reader, other, 5) == b"other"


def test_a_slot_that_is_used_anew_while_it_is_read_is_stale(arena, reader):
    arena.allocate(1, 64)
    place = fill(arena, 0, b"old")
    with pytest.raises(Refused, match="stale slot"), reader.read(place, 3):
        arena.write(0, b"new")
    place = fill(arena, 0, b"old")
    with pytest.raises(Refused, match="stale slot"), reader.read(place, 3):
        arena.allocate(2, 128)


@pytest.mark.parametrize(
    "place",
    [
        Place("front/frames", 2, 0, 0),
        Place("front/frames", 2**62, 0, 0),
        Place("front/frames", 0, 0, 65),
        Place("front/frames", 0, 0, 2**62),
    ],
)
def test_a_place_outside_is_refused(arena, reader, place):
    for one in (arena, reader):
        with pytest.raises(Refused, match="slot"):
            read(one, place, 1)  # nothing is allocated
    arena.allocate(2, 64)
    for one in (arena, reader):
        with pytest.raises(Refused, match="2 slots of 64 bytes"):
            read(one, place, 1)


def test_what_has_no_room_is_not_written(arena):
    with pytest.raises(ArenaError, match="0 slots"):
        arena.write(0, b"")
    arena.allocate(2, 64)
    place = fill(arena, 0, b"12345")
    for slot, buffers in (
        (2, [b"1"]),
        (-1, [b"1"]),
        (0, [bytes(65)]),
        (0, [b"1", b"2"]),
        (0, [b"", bytes(65)]),
    ):
        with pytest.raises(ArenaError, match="slot"):
            arena.write(slot, *buffers)
    assert read(arena, place, 5) == b"12345"
    with pytest.raises(ArenaError, match="slot 2"):
        arena.generation(2)


def test_the_same_sizes_again_keep_what_is_there(arena, reader):
    """A producer that was reborn allocates again."""
    arena.allocate(3, 100)
    place = fill(arena, 2, b"12345")
    reader.allocate(3, 100)
    assert read(reader, place, 5) == b"12345"
    assert fill(reader, 2, b"54321").generation == place.generation + 1


@pytest.mark.parametrize(("slots", "slot_bytes"), [(3, 4096), (30, 100), (1, 10), (2, 100), (3, 65)])
def test_a_new_layout_makes_every_older_place_stale(arena, reader, slots, slot_bytes):
    arena.allocate(3, 100)
    places = [fill(arena, slot, b"\x00" * 100) for slot in range(3) for _ in range(3)]
    assert read(reader, places[-1], 100) == bytes(100)
    arena.allocate(slots, slot_bytes)
    for place in places:
        with pytest.raises(Refused):
            read(reader, place, 10)
    place = fill(arena, 0, b"12345")
    assert read(reader, place, 5) == b"12345"
    assert (reader.slots, reader.slot_bytes) == (slots, slot_bytes)
    assert place.generation > max(one.generation for one in places)


SHORTAGE = """
import os, resource
from streamvos.pipeline.wire.arenas import Arena, ArenaError, available_memory
# if the check fails us, this stops the system call; it would else take all the memory of the machine
resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
arena = Arena.create("front/frames")
for slots, slot_bytes in ((2, available_memory()), (1000, 2**50), (4, 2**23)):
    try:
        arena.allocate(slots, slot_bytes)
    except ArenaError as error:
        print(error)
    assert os.fstat(arena.fd).st_blocks * 512 <= 4096  # the page that is not whole
arena.allocate(1, 10)
arena.write(0, b"fine")
"""


def test_shortage_of_memory_is_an_error_at_once():
    run = subprocess.run([sys.executable, "-c", SHORTAGE], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    first, second, limited = run.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("front/frames needs ")
        assert "MiB are available; use smaller frames" in line
    assert "File too large; use smaller frames or fewer streams" in limited  # the system's own refusal


def test_an_arena_has_one_slot_or_more(arena):
    with pytest.raises(ArenaError, match="one slot or more"):
        arena.allocate(0, 10)


def test_memory_that_somebody_scribbled_on_has_no_slots(arena, reader):
    arena.allocate(2, 64)
    place = fill(arena, 0, b"12345")
    for head in (b"\xff" * 32, bytes(64), b"svosmem1" + b"\xff" * 24):
        os.pwrite(arena.fd, head, 0)
        assert not Arena("other", arena.fd).attach()
        with pytest.raises(Refused, match="slot"):
            read(reader, place, 5)
    arena.allocate(2, 64)
    assert read(reader, fill(arena, 0, b"fine"), 4) == b"fine"


WRITER = """
import struct, sys
from streamvos.pipeline.wire.arenas import Arena
arena = Arena("torn", int(sys.argv[1]))
arena.allocate(2, 2**20)
turn = 0
while True:
    turn += 1
    generation, _ = arena.write(0, bytes([turn % 256]) * 2**20)
    arena.write(1, struct.pack("<QQ", generation, turn))  # stands for the message, which is sent afterwards
    if turn == 1:
        print("ready", flush=True)
"""


def test_a_torn_read_is_always_seen():
    """A writer without manners writes one slot again and again; what is read without a complaint is whole."""
    arena = Arena.create("torn")
    command = [sys.executable, "-c", WRITER, str(arena.fd)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[arena.fd])
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        assert arena.attach()
        whole = torn = 0
        until = time.monotonic() + 60
        while (whole < 20 or torn < 20) and time.monotonic() < until:
            generation, turn = struct.unpack("<QQ", told(arena))
            try:
                copy = read(arena, Place("torn", 0, generation, 0), 2**20)
            except Refused:
                torn += 1
                continue
            assert copy == bytes([turn % 256]) * 2**20
            whole += 1
        assert whole >= 20
        assert torn >= 20
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        generation = arena.generation(0)
        arena.allocate(2, 2**20)  # the reborn one goes on from there, wherever the dead one was
        assert fill(arena, 0, b"fine").generation == generation + 1
    finally:
        writer.kill()
        writer.wait(10)
        writer.stdout.close()
        arena.close()
        os.close(arena.fd)


def told(arena: Arena) -> bytes:
    while True:
        with suppress(Refused):
            return read(arena, Place("torn", 1, arena.generation(1), 0), 16)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_grows(arena, reader):
    def rounds(count: int) -> None:
        for turn in range(count):
            size = 4096 * (1 + turn % 3)
            if turn % 50 == 0:
                arena.allocate(1 + turn % 4, size)
            place = fill(arena, 0, bytes([turn % 256]) * 100)
            assert read(reader, place, 100)[99] == turn % 256
            with pytest.raises(Refused), reader.read(place, 100):
                arena.write(0, b"torn")

    rounds(600)
    gc.collect()
    before, memory = descriptors(), resident()
    rounds(6000)
    gc.collect()
    assert descriptors() == before
    assert (
        resident() - memory < 8 * 2**20
    )  # a mapping that stays would be 120 of up to 64 KiB, and their views
