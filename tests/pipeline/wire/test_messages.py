"""Messages: what goes in comes out, and what breaks a rule is refused by both ends, with its cause."""

from __future__ import annotations

import math
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch

from streamvos.pipeline.wire.messages import (
    ARRAY_BYTES,
    ITEM_SIZES,
    MAX_ARRAYS,
    Array,
    Message,
    Place,
    Refused,
    decode,
    encode,
    tensor_over,
)

SESSION = b"8 bytes."
NUMPY = [name for name in ITEM_SIZES if name != "bfloat16"]


def there(message: Message) -> Message:
    return decode([bytes(part) for part in encode(message, SESSION)], SESSION)


def with_array(array: Array) -> Message:
    return Message("frame", "front", arrays={"image": array})


def forged(stream: bytes = b"front", buffers: tuple[bytes, ...] = (), **changes: object) -> list[bytes]:
    """A message that is right but for its changes."""
    header = {
        "v": 1,
        "kind": "frame",
        "session": SESSION,
        "stream": "front",
        "incarnation": 1,
        "seq": 0,
        "arrays": {},
    }
    return [stream, msgpack.packb(header | changes), *buffers]


def test_what_lies_in_shared_memory_may_be_larger_than_what_a_message_brings():
    size = ARRAY_BYTES + 1
    large = Message("snapshot", arrays={"snapshot": Array("uint8", (size,), Place("s/snapshots.0", 0, 1, 0))})
    parts = encode(large, SESSION)
    assert decode([bytes(one) for one in parts], SESSION).arrays["snapshot"].nbytes == size
    with pytest.raises(Refused, match="array too large"):
        encode(replace(large, arrays={"snapshot": Array("uint8", (size,), b"")}), SESSION)


def test_a_message_comes_as_it_was_sent():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    place = Array("float32", (2, 3), Place("front/features", 1, 7, 64))
    fields = {"pts": 0.25, "dropped": {"newer frame": 2}, "ids": [1, 2], "none": None, "text": "ü"}
    sent = Message("frame", "door ü", 3, 2**63 - 1, fields, {"image": Array.of(image), "features": place})
    came = there(sent)
    assert (came.kind, came.stream, came.incarnation, came.seq) == ("frame", "door ü", 3, 2**63 - 1)
    assert came.fields == fields
    assert came["pts"] == 0.25
    assert came.get("nothing") is None
    assert came.arrays["features"] == place
    np.testing.assert_array_equal(came.arrays["image"].numpy(), image)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0, 2), (2, 3, 4, 1, 1, 5)])
@pytest.mark.parametrize("dtype", NUMPY)
def test_every_dtype_and_shape_travels_bit_for_bit(dtype, shape):
    generator = np.random.default_rng(len(shape))
    size = math.prod(shape) * ITEM_SIZES[dtype]
    raw = generator.integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8)
    array = raw.view(dtype).reshape(shape)
    array.flags.writeable = False
    came = there(with_array(Array.of(array))).arrays["image"]
    assert came.numpy().dtype == array.dtype
    assert came.numpy().shape == shape
    assert came.numpy().tobytes() == array.tobytes()


def tensor_of(array):
    return tensor_over(np.frombuffer(array.data, np.uint8).copy(), array.dtype, array.shape)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (5, 2)])
@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_tensors_travel_bit_for_bit(dtype, shape):
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 3).to(getattr(torch, dtype))
    came = tensor_of(there(with_array(Array.of(tensor))).arrays["image"])
    assert came.dtype == tensor.dtype
    assert came.shape == tensor.shape
    assert torch.equal(came, tensor)


def test_disorder_in_memory_is_put_in_order():
    image = np.arange(60, dtype=np.int32).reshape(3, 4, 5)
    for array in (image[..., ::-1], image.T, image[::2], np.asfortranarray(image), image.astype(">i4")):
        np.testing.assert_array_equal(there(with_array(Array.of(array))).arrays["image"].numpy(), array)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float().requires_grad_()
    assert torch.equal(tensor_of(there(with_array(Array.of(tensor))).arrays["image"]), tensor)


def test_an_array_in_order_is_not_copied():
    image = np.zeros((4, 4), np.float32)
    assert np.shares_memory(Array.of(image).numpy(), image)
    tensor = torch.zeros(4, 4)
    assert Array.of(tensor).numpy().ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U4", "O", "i4,f4", "uint32", "V8"])
def test_other_dtypes_do_not_travel(dtype):
    with pytest.raises(Refused, match="dtype") as error:
        Array.of(np.empty(2, dtype))
    assert error.value.cause == "dtype"


def test_bytes_that_lie_elsewhere_are_not_made_up():
    placed = Array("uint8", (2,), Place("front/frames", 0, 1, 0))
    with pytest.raises(Refused, match="where"):
        placed.numpy()


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (Message("frame", fields={"kind": "credit"}), "field"),
        (Message("frame", fields={"session": b"another."}), "field"),
        (Message("frame", seq=-1), "header"),
        (Message("frame", seq=2**63), "header"),
        (Message("frame", incarnation=True), "header"),
        (Message("frame", fields={"n": 2**64}), "header"),
        (Message("frame", fields={"n": object()}), "header"),
        (Message("frame", fields={"n": {1: 2}}), "header"),
        (Message("frame", fields={"n": nested(20)}), "header"),
        (Message("frame", fields={"n": nested(5000)}), "header"),
        (Message("frame", fields={"n": [0] * 5000}), "header"),
        (Message("frame", "\ud800"), "header"),
        (Message("frame", fields={"n": bytes(2**20)}), "header too large"),
        (with_array(Array("uint8", (3,), b"12")), "buffer"),
        (with_array(Array("uint32", (3,), bytes(12))), "dtype"),
        (with_array(Array("uint8", (1,) * 7, b"1")), "shape"),
        (with_array(Array("uint8", (-1,), b"")), "shape"),
        (with_array(Array("uint8", (2**29,), b"")), "array too large"),
        (Message("frame", arrays={str(n): Array("uint8", (0,), b"") for n in range(65)}), "arrays"),
    ],
)
def test_what_would_be_refused_there_is_not_sent(message, cause):
    with pytest.raises(Refused) as error:
        encode(message, SESSION)
    assert error.value.cause == cause


def test_a_packer_that_failed_starts_afresh():
    for _ in range(3):
        with pytest.raises(Refused):
            encode(Message("frame", fields={"a": "half of it", "n": object()}), SESSION)
        assert there(Message("frame", fields={"a": 1})).fields == {"a": 1}


def array_of(*described: object) -> dict[str, object]:
    return {"arrays": {"image": list(described)}}


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ([], "parts"),
        ([b"front"], "parts"),
        (forged(buffers=(b"",) * 65), "parts"),
        (forged(buffers=(b"1",)), "parts"),
        ([b"front", b""], "header"),
        ([b"front", b"\xc1"], "header"),
        ([b"front", msgpack.packb([1])], "header"),
        ([b"front", msgpack.packb({1: 2})], "header"),
        ([b"front", msgpack.packb({b"v": 1})], "header"),
        ([b"front", msgpack.packb({"v": 1}) + b"1"], "header"),
        ([b"front", b"\xdf\xff\xff\xff\xff"], "header"),  # a map that claims 4 G entries
        ([b"front", b"\x81\xa1v\xdd\xff\xff\xff\xff"], "header"),  # a list
        ([b"front", b"\x81\xa1v\xdb\xff\xff\xff\xff"], "header"),  # a text
        ([b"front", b"\x81\xa1v\xa2\xff\xfe"], "header"),  # no UTF-8
        ([b"front", msgpack.packb({"v": msgpack.ExtType(5, b"12")})], "header"),
        ([b"front", msgpack.packb({"v": msgpack.Timestamp(5)})], "header"),
        ([b"front", b"\x81\xa1v" + b"\x91" * 900 + b"\x90"], "version"),
        ([b"front", b"\x81\xa1v" + b"\x91" * 100_000 + b"\x90"], "header"),
        ([b"front", b"\x81\xa1v" + b"\x81\xa1v" * 100_000], "header"),
        ([b"front", bytes(2**20 + 1)], "header too large"),
        (forged(v=2), "version"),
        (forged(v=True), "version"),
        (forged(v=1.0), "version"),
        (forged(v=None), "version"),
        (forged(session=b"another."), "session"),
        (forged(session=None), "session"),
        (forged(b"back"), "header"),
        (forged(b"\xff"), "header"),
        (forged(kind=None), "header"),
        (forged(stream=7), "header"),
        (forged(seq=-1), "header"),
        (forged(seq=2**63), "header"),
        (forged(seq=1.5), "header"),
        (forged(seq=True), "header"),
        (forged(incarnation=None), "header"),
        (forged(more=nested(200)), "header"),
        (forged(arrays=[]), "arrays"),
        (forged(arrays={str(n): 0 for n in range(MAX_ARRAYS + 1)}), "arrays"),
        (forged(arrays={"image": None}), "arrays"),
        (forged(**array_of("uint8", [1])), "arrays"),
        (forged(**array_of("uint8", [1], 0)), "buffer"),
        (forged(buffers=(b"12",), **array_of("uint8", [1], 0)), "buffer"),
        (forged(buffers=(b"1",), **array_of("float32", [1], 0)), "buffer"),
        (forged(buffers=(b"1",), **array_of("uint8", [1], 1)), "buffer"),
        (forged(buffers=(b"1",), **array_of("uint8", [1], -1)), "where"),
        (forged(buffers=(b"1",), **array_of("uint8", [1], True)), "where"),
        (forged(buffers=(b"1", b"2"), arrays={n: ["uint8", [1], 0] for n in "ab"}), "buffer"),
        (forged(**array_of("object", [1], 0)), "dtype"),
        (forged(**array_of([["uint8"]], [1], 0)), "dtype"),
        (forged(**array_of("uint8", 1, 0)), "shape"),
        (forged(**array_of("uint8", [1] * 7, 0)), "shape"),
        (forged(**array_of("uint8", [-1], 0)), "shape"),
        (forged(**array_of("uint8", [1.0], 0)), "shape"),
        (forged(**array_of("uint8", [ARRAY_BYTES + 1], 0)), "array too large"),
        (forged(**array_of("uint8", [2**40] * 6, 0)), "array too large"),
        (forged(buffers=(b"",), **array_of("uint8", [0, 2**62], 0)), "array too large"),
        (forged(**array_of("uint8", [1], ["object", 1])), "where"),
        (forged(**array_of("uint8", [1], ["thing", 1])), "where"),
        (forged(**array_of("uint8", [1], ["arena", 0, 0])), "where"),
        (forged(**array_of("uint8", [1], ["arena", 0, 0, -1])), "where"),
        (forged(**array_of("uint8", [1], [nested(12), 0, 0, 0])), "where"),
        (forged(**array_of("uint8", [1], nested(500))), "where"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_cause(parts, cause):
    with pytest.raises(Refused) as error:
        decode(parts, SESSION)
    assert error.value.cause == cause


def test_a_header_that_claims_much_more_than_it_brings_costs_little():
    """Every list claims as much as it may, and begins with another: 1000 deep, 5 bytes each."""
    bomb = b"\x81\xa1v" + b"\xdd\x00\x00\x10\x00" * 1000
    with pytest.raises(Refused, match="header"):
        decode([b"", bomb + bytes(2**20 - len(bomb))], SESSION)
    claims = b"\x81\xa1v" + b"\xdd\x00\x08\x00\x00" * 1000  # half a million each: refused at the first
    with pytest.raises(Refused, match="header"):
        decode([b"", claims + bytes(2**20 - len(claims))], SESSION)


def test_clients_may_leave_out_what_has_a_default():
    came = decode([b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status"})], None)
    assert (came.stream, came.incarnation, came.seq, came.fields) == ("", 0, 0, {"verb": "status"})
    with pytest.raises(Refused, match="request lacks object"):
        came["object"]


def test_text_that_is_no_utf_8_is_sent_readably():
    """A worker's error names a file, whose name may be any bytes."""
    name = b"/data/\xff.mp4".decode(errors="surrogateescape")
    message = decode(encode(Message("failed", fields={"error": name}), SESSION), SESSION)
    assert message["error"] == "/data/\\udcff.mp4"
