"""The past of a stream: a ring buffer, and which past frames a target frame looks at.

A video has more history than a frame can attend to. The buffer is allocated once, on the device of the first
tensors, and never grows; the schedules choose the references in it: dense in the recent past, where motion is
small, sparse in the distant past, where an occluded object was last seen (TVOS, section 3.3).

    >>> authors_schedule(60)
    [16, 24, 32, 40, 48, 56, 57, 58, 59]
    >>> history = History(capacity=44, keep_first=True)
    >>> history.append(features=torch.zeros(6420, 128), labels=torch.zeros(6420, 2))
    0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from streamvos.types import InputError

Schedule = Callable[[int], list[int]]
"""Target frame t, counted from 0 -> the past frames to look at, ascending, all in 0..t-1."""


def authors_schedule(t: int, count: int = 9, span: int = 40) -> list[int]:
    """References of frame `t` as the TVOS authors' code chooses them.

    Four dense frames t-4..t-1, the others equally spaced from max(t - 4 - span, 0) up to t-4. The paper
    speaks of 9 frames out of 40; the code reaches back 44 (docs/methods.md, TVOS, remark 1).

    Raises:
        InputError: t < 1, or fewer than five references.
    """
    if t < 1 or count < 5:
        raise InputError(f"the authors' schedule needs t >= 1 and at least 5 references, got {t=}, {count=}")
    if t <= count:
        return list(range(t))
    oldest, newest, gaps = max(t - 4 - span, 0), t - 4, count - 4
    spaced = [oldest + k * (newest - oldest) // gaps for k in range(gaps + 1)]  # both ends are taken
    return spaced + list(range(t - 3, t))


def paper_schedule(t: int, count: int = 9, dense: int = 4, span: int = 40) -> list[int]:
    """References of frame `t` as the paper words it: `dense` before t, the others from the rest of `span`.

    The sparse frames are equally spaced over [t - span, t - dense), the oldest one taken.

    Raises:
        InputError: t < 1, count <= dense, or a span that cannot hold `count` frames.
    """
    if t < 1 or not 0 < dense < count <= span:
        raise InputError(
            "the paper's schedule needs t >= 1 and 0 < dense < count <= span, "
            f"got {t=}, {dense=}, {count=}, {span=}"
        )
    if t <= count:
        return list(range(t))
    oldest, sparse, end = max(t - span, 0), count - dense, t - dense
    return [oldest + k * (end - oldest) // sparse for k in range(sparse)] + list(range(end, t))


def keep_first(schedule: Schedule) -> Schedule:
    """The same schedule with frame 0, the annotated one, always among the references.

    Where frame 0 would not be chosen it is added, so that the count grows by one.
    """

    def with_first(t: int) -> list[int]:
        frames = schedule(t)
        return frames if frames and frames[0] == 0 else [0, *frames]

    return with_first


class History:
    """A ring buffer of named tensors, one entry per frame, allocated at the first append.

    Frames are counted from 0 since the last `clear`. Reading gives views, not copies; an entry is overwritten
    `capacity` appends later.

    Args:
        capacity: how many of the newest frames are held.
        keep_first: hold frame 0 too, in a slot of its own.
    """

    def __init__(self, capacity: int, keep_first: bool = False):
        if capacity < 1:
            raise InputError(f"a history needs room for at least one frame, got capacity={capacity}")
        self.capacity, self.keep_first = capacity, keep_first
        self.length = 0
        self._buffers: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        """How many frames were appended since the last `clear`."""
        return self.length

    def __contains__(self, t: int) -> bool:
        return (self.keep_first and t == 0 < self.length) or max(
            0, self.length - self.capacity
        ) <= t < self.length

    def __getitem__(self, t: int) -> dict[str, torch.Tensor]:
        """name -> the tensor that was appended for frame `t` (a view).

        Raises:
            InputError: the frame is not held.
        """
        if t not in self:
            raise InputError(
                f"frame {t} is not in the history, which holds {self.capacity} of {self.length} frames"
            )
        slot = self._slot(t)
        return {name: buffer[slot] for name, buffer in self._buffers.items()}

    def append(self, **tensors: torch.Tensor) -> int:
        """Copy one frame's tensors into the buffer; the oldest frame gives way.

        Names, shapes and devices must be those of the first append; dtypes are converted to its.

        Returns:
            The frame's number.

        Raises:
            InputError: another name or shape than before; nothing is changed.
        """
        expected = {name: tuple(buffer.shape[1:]) for name, buffer in self._buffers.items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if expected and expected != given:
            raise InputError(f"the history holds {expected}, got {given}; clear() it before another shape")
        if not expected:
            slots = self.capacity + int(self.keep_first)
            self._buffers = {
                name: torch.zeros((slots, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
                for name, tensor in tensors.items()
            }
        slot = self._slot(self.length)
        for name, tensor in tensors.items():
            self._buffers[name][slot].copy_(tensor, non_blocking=True)
        self.length += 1
        return self.length - 1

    def clear(self) -> None:
        """Forget every frame and release the buffers."""
        self.length, self._buffers = 0, {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The frames held, for `load_state_dict`; copies, so that the stream may go on."""
        used = min(self.length, next((len(buffer) for buffer in self._buffers.values()), 0))
        state = {f"buffer.{name}": buffer[:used].clone() for name, buffer in self._buffers.items()}
        state["length"] = torch.tensor(self.length)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` of a history with the same capacity gave.

        Raises:
            InputError: it does not fit; nothing is changed.
        """
        names = [name for name in state if name.startswith("buffer.")]
        slots = self.capacity + int(self.keep_first)
        length = int(state["length"]) if "length" in state and state["length"].numel() == 1 else -1
        if (
            length < 0
            or (length > 0) != bool(names)
            or any(len(state[n]) != min(length, slots) for n in names)
        ):
            raise InputError(
                f"this is no state of a history with capacity {self.capacity} (keys {sorted(state)})"
            )
        buffers = {}
        for name in names:
            saved = state[name]
            buffer = torch.zeros((slots, *saved.shape[1:]), dtype=saved.dtype, device=device)
            buffer[: len(saved)].copy_(saved)
            buffers[name.removeprefix("buffer.")] = buffer
        self.length, self._buffers = length, buffers

    def edit(self, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace a whole buffer, (frames, ...), by `change(buffer)`, which keeps the number of frames."""
        if name in self._buffers:
            self._buffers[name] = change(self._buffers[name]).contiguous()

    def _slot(self, t: int) -> int:
        if not self.keep_first:
            return t % self.capacity
        return 0 if t == 0 else 1 + (t - 1) % self.capacity
