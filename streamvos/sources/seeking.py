"""Seeking to a frame of a video file by its number, without decoding all frames before it.

    frames = frames_from(decoder, 54_000)       # an iterator whose first frame is number 54,000; or None

Containers find times, not numbers. So the packets up to the frame are read, not decoded, for their times: in
order of presentation the n-th time is that of frame n, if every packet becomes one frame. Decoding begins at
the second keyframe before the frame, because pictures just after a keyframe may depend on earlier ones (open
groups of pictures, intra refresh), and every decoded frame must have the time of its packet. If one of these
conditions fails, the answer is None, and the caller decodes the file from its beginning.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator

import av
import av.error

from streamvos.sources.decoding import BrokenError, Decoder
from streamvos.types import SourceError

_KEYFRAMES_BACK = 2

_PACKETS_BEYOND = 64
"""Packets to read beyond the frame; codecs reorder frames by fewer."""


def frames_from(
    decoder: Decoder, number: int, note_progress: Callable[[], None] = lambda: None
) -> Iterator[av.VideoFrame] | None:
    """Frames of a video from `number` on, identical to those of decoding from the start.

    Args:
        decoder: a new decoder of a newly opened container.
        number: number of the first frame, from 0 in the order of decoding.
        note_progress: called for every packet and frame on the way.

    Returns:
        An iterator; None if the file does not allow it, and the container must be closed.
    """
    container, stream = decoder.container, decoder.stream
    try:
        times = _times(container, stream, number, note_progress)
        if times is None:
            return None
        shown, keys = times
        key = bisect.bisect_right(keys, shown[number]) - _KEYFRAMES_BACK
        if key < 0:
            return None  # at the beginning, or close to it
        first = bisect.bisect_left(shown, keys[key])
        container.seek(keys[key], stream=stream, backward=True, any_frame=False)
        frames = decoder.frames()
        for expected in shown[first:number]:
            note_progress()
            frame = next(frames, None)
            while frame is not None and frame.pts is not None and frame.pts < keys[key]:
                frame = next(frames, None)  # it belongs to the group before, or depends on it
            if frame is None or frame.pts != expected or frame.is_corrupt:
                return None
        following = next(frames, None)
        if following is None or following.pts != shown[number]:
            return None
    except (av.error.FFmpegError, OSError, ValueError, BrokenError, SourceError):
        return None
    return itertools.chain([following], frames)


def _times(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    number: int,
    note_progress: Callable[[], None],
) -> tuple[list[int], list[int]] | None:
    """Times of all frames up to `number`, and of the keyframes among them, ascending, in stream units."""
    shown: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        note_progress()
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        shown.append(packet.pts)
        if packet.is_keyframe:
            if keys and packet.pts <= keys[-1]:
                return None  # the clock goes back: joined files
            keys.append(packet.pts)
        if len(shown) > number + _PACKETS_BEYOND:
            break
    shown.sort()
    keys.sort()
    same = any(a == b for a, b in itertools.pairwise(shown))
    return None if same or number >= len(shown) else (shown, keys)
