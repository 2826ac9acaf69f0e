"""Messages as they travel: a MessagePack header and raw arrays, checked before use (docs/protocol.md, 1).

    parts = encode(Message("frame", "front", 1, 7, {"pts": 0.23}, {"image": Array.of(image)}), session)
    message = decode(parts, session)
    message.arrays["image"].numpy()

Nothing that arrives is trusted: a message that breaks a rule raises `Refused`, whose cause is one of a few
short texts to count by.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np

from streamvos.types import StreamvosError

if TYPE_CHECKING:
    import torch

VERSION = 1
HEADER_BYTES = 2**20
ARRAY_BYTES = 2**28  # the largest array in a message
STATE_BYTES = 2**26  # the largest state of a stream in a request or a reply
PLACE_BYTES = 2**40  # the largest array in shared memory
MAX_ARRAYS = 64
MAX_DIMENSIONS = 6
MAX_NESTING = 16  # of lists and maps, so that walking a header never recurses far
MAX_ELEMENTS = 4096  # of one list or map: msgpack allocates the length that a list claims before reading it

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}
"""dtype -> bytes per item."""

_ENVELOPE = frozenset(("v", "kind", "session", "stream", "incarnation", "seq", "arrays"))
_CONTAINERS = (list, tuple, dict)

_logger = logging.getLogger("streamvos.pipeline")

Buffer = bytes | bytearray | memoryview

_packers = threading.local()  # a packer brings a buffer of 256 KiB: one for each thread, not for each message


class Refused(StreamvosError, ValueError):  # noqa: N818
    """A message that breaks a rule; `cause` is one of a few texts, to count by."""

    def __init__(self, cause: str, detail: str = ""):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class RejectionCounter(Counter[str]):
    """Cause -> count; each cause is logged at most once a second, so that a flood does not fill the log.

    Causes are a few fixed texts, never text that a peer chose, so the counter stays small. `where` names the
    place in the log.
    """

    def __init__(self, where: str):
        super().__init__()
        self._where = where
        self._logged: dict[str, float] = {}

    def count(self, cause: str, detail: object = "") -> None:
        """Count a cause once more; the detail goes to the log, shortened."""
        self[cause] += 1
        now = time.monotonic()
        if now - self._logged.get(cause, float("-inf")) >= 1.0:
            self._logged[cause] = now
            text = f" ({str(detail)[:120]!r})" if detail != "" else ""
            _logger.warning("%s: refused: %s%s, %d so far", self._where, cause, text, self[cause])


def public_session(session: bytes) -> bytes:
    """Represents a session in messages to clients, which must not learn the session itself (8 bytes)."""
    return hashlib.sha256(b"public" + session).digest()[:8]


class Place(NamedTuple):
    """Place of an array in shared memory: slot of an arena, the slot's generation, bytes from its start."""

    arena: str
    slot: int
    generation: int
    offset: int


@dataclass(frozen=True, slots=True)
class Array:
    """An array of a message.

    Attributes:
        dtype: one of `ITEM_SIZES`.
        shape: at most six numbers.
        data: the bytes; or their `Place`; or, within one process, `Held` with any object.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the array itself."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @classmethod
    def of(cls, value: np.ndarray | torch.Tensor) -> Array:
        """An array to send; copied only if it is not contiguous, little-endian and on the CPU.

        Raises:
            Refused: its dtype is not one of `ITEM_SIZES`.
        """
        if isinstance(value, np.ndarray):
            _check_dtype(value.dtype.name)
            ordered = value.dtype.newbyteorder("<")
            flat = np.ascontiguousarray(value, ordered).reshape(-1)
            return cls(value.dtype.name, value.shape, flat.view(np.uint8).data)
        dtype = str(value.dtype).removeprefix("torch.")
        _check_dtype(dtype)
        host = value.detach().cpu().contiguous().reshape(-1)
        import torch  # workers of sources and sinks do not need it

        return cls(dtype, tuple(value.shape), host.view(torch.uint8).numpy().data)

    def numpy(self) -> np.ndarray:
        """A view, read-only if the buffer is; bfloat16, which NumPy lacks, becomes uint16.

        Raises:
            Refused: its bytes are not in the message.
        """
        if not isinstance(self.data, (bytes, bytearray, memoryview)):
            raise Refused("where", f"the message lacks the bytes of {self.dtype} {self.shape}")
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype
        return np.frombuffer(self.data, dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; see docs/protocol.md for the kinds and their fields."""

    kind: str
    stream: str = ""
    incarnation: int = 0
    seq: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A field.

        Raises:
            Refused: it is missing.
        """
        try:
            return self.fields[name]
        except KeyError:
            raise Refused("field", f"{self.kind} lacks {name}") from None

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default`."""
        return self.fields.get(name, default)


def encode(message: Message, session: bytes) -> list[Buffer]:
    """The parts of a message, ready to send.

    Raises:
        Refused: the receiver would refuse it, or a field has a name of the envelope.
    """
    if not _ENVELOPE.isdisjoint(message.fields):
        names = ", ".join(sorted(_ENVELOPE.intersection(message.fields)))
        raise Refused("field", f"{message.kind}: the envelope has its own {names}")
    if not (is_count(message.incarnation) and is_count(message.seq)):
        raise Refused("header", "incarnation or seq")
    if len(message.arrays) > MAX_ARRAYS:
        raise Refused("arrays", f"{len(message.arrays)}")
    fields = dict(message.fields)
    _check_nesting(fields)
    buffers: list[Buffer] = []
    header = {
        **fields,
        "v": VERSION,
        "kind": message.kind,
        "session": session,
        "stream": message.stream,
        "incarnation": message.incarnation,
        "seq": message.seq,
        "arrays": {name: _described(array, buffers) for name, array in message.arrays.items()},
    }
    try:
        packed = _packer().pack(header)
        stream = message.stream.encode()
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused("header", str(error)) from None
    if len(packed) > HEADER_BYTES:
        raise Refused("header too large", f"{len(packed)} bytes")
    return [stream, packed, *buffers]


def decode(parts: Sequence[Buffer], session: bytes | None) -> Message:
    """The message in some received parts.

    Args:
        parts: without a routing id; each one-dimensional, of bytes.
        session: the session that the message must have; None accepts any or none, and an empty first part.

    Raises:
        Refused: it breaks a rule.
    """
    if not 2 <= len(parts) <= 2 + MAX_ARRAYS:
        raise Refused("parts", f"{len(parts)}")
    header = _unpack(parts[1])
    version = header.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise Refused("version", f"{version if isinstance(version, int) else type(version).__name__}")
    if header.pop("session", None) != session and session is not None:
        raise Refused("session")
    kind, stream = header.pop("kind", None), header.pop("stream", "")
    if not isinstance(kind, str) or not isinstance(stream, str):
        raise Refused("header", "kind or stream")
    # clients leave the first part empty, as a REQ socket does
    if parts[0] != stream.encode() and (parts[0] or session is not None):
        raise Refused("header", "stream")
    incarnation, seq = header.pop("incarnation", 0), header.pop("seq", 0)
    if not (is_count(incarnation) and is_count(seq)):
        raise Refused("header", "incarnation or seq")
    described = header.pop("arrays", {})
    if not isinstance(described, dict) or len(described) > MAX_ARRAYS:
        raise Refused("arrays")
    _check_nesting(header)
    unnamed = dict(enumerate(parts[2:]))
    arrays = {name: _array(one, unnamed) for name, one in described.items()}
    if unnamed:
        raise Refused("parts", "buffers that the header does not name")
    return Message(kind, stream, incarnation, seq, header, arrays)


def tensor_over(memory: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of some dtype and shape that takes over `memory`, (bytes,) uint8."""
    import torch

    if not memory.size:  # torch rejects the strides of an empty NumPy array
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(memory).view(getattr(torch, dtype)).reshape(shape)


def _described(array: Array, buffers: list[Buffer]) -> tuple[str, tuple[int, ...], Any]:
    """The header's entry for an array; bytes that travel in the message are appended to `buffers`."""
    if isinstance(array.data, Place):
        _checked_size(array.dtype, array.shape, PLACE_BYTES)
        return array.dtype, array.shape, list(array.data)
    size = _checked_size(array.dtype, array.shape, ARRAY_BYTES)
    if memoryview(array.data).nbytes != size:
        raise Refused("buffer", f"{array.dtype} {array.shape} needs {size} bytes")
    buffers.append(array.data)
    return array.dtype, array.shape, len(buffers) - 1


def _array(described: Any, unnamed: dict[int, Buffer]) -> Array:
    """The array of a header's entry; its buffer is removed from `unnamed`."""
    if not (isinstance(described, list) and len(described) == 3):
        raise Refused("arrays")
    dtype, shape, where = described
    size = _checked_size(dtype, shape, ARRAY_BYTES if is_count(where) else PLACE_BYTES)
    if is_count(where):
        buffer = unnamed.pop(where, None)
        if buffer is None or len(buffer) != size:
            raise Refused("buffer", f"{dtype} {shape}")
        return Array(dtype, tuple(shape), buffer)
    if (
        isinstance(where, list)
        and len(where) == 4
        and isinstance(where[0], str)
        and all(map(is_count, where[1:]))
    ):
        return Array(dtype, tuple(shape), Place(*where))
    raise Refused("where")


def _unpack(packed: Buffer) -> dict[str, Any]:
    if len(packed) > HEADER_BYTES:
        raise Refused("header too large", f"{len(packed)} bytes")
    try:
        # msgpack itself bounds text and bytes by the length of `packed`; no extensions are used
        header = msgpack.unpackb(
            packed, strict_map_key=True, max_ext_len=0, max_array_len=MAX_ELEMENTS, max_map_len=MAX_ELEMENTS
        )
    except Exception as error:  # msgpack raises many types for bad bytes
        raise Refused("header", type(error).__name__) from None
    if not isinstance(header, dict) or not all(isinstance(name, str) for name in header):
        raise Refused("header", "no map with text keys")
    return header


def _check_nesting(values: dict[str, Any]) -> None:
    """Check that lists and maps are of bounded depth and length, with text keys only."""
    level: list[Any] = [values]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for one in level:
            if len(one) > MAX_ELEMENTS:
                raise Refused("header", f"a list or map of {len(one)} elements; at most {MAX_ELEMENTS}")
            if isinstance(one, dict):
                if not all(isinstance(key, str) for key in one):
                    raise Refused("header", "a map has a key that is no text")
                one = one.values()
            inner += [value for value in one if isinstance(value, _CONTAINERS)]
        if not inner:
            return
        level = inner
    raise Refused("header", f"lists or maps nest more than {MAX_NESTING} deep")


def _checked_size(dtype: Any, shape: Any, most: int) -> int:
    _check_dtype(dtype)
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS or not all(map(is_count, shape)):
        raise Refused("shape")
    # a zero in the shape does not excuse a huge number: NumPy fails on it
    if math.prod(n or 1 for n in shape) * ITEM_SIZES[dtype] > most:
        raise Refused("array too large", f"{dtype} {shape}")
    return math.prod(shape) * ITEM_SIZES[dtype]


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise Refused("dtype", dtype[:40] if isinstance(dtype, str) else type(dtype).__name__)


def is_count(value: Any) -> bool:
    """Whether a received value is an integer of 0 to 2**63 - 1."""
    return type(value) is int and 0 <= value < 2**63


def _packer() -> msgpack.Packer:
    packer = getattr(_packers, "packer", None)
    if packer is None:
        # a name of a file that is no UTF-8 must not keep an error from being told
        packer = _packers.packer = msgpack.Packer(unicode_errors="backslashreplace")
    return packer
