"""Pictures and masks that belong together, and what is kept for a frozen frame."""

from __future__ import annotations

import numpy as np
import pytest
from console.scene import SIZE, _mask

from streamvos.console import feeds
from streamvos.console.feeds import Feed, thinned
from streamvos.pipeline.clients.published import Picture
from streamvos.types import InputError


def picture(seq: int, size: int = 10, incarnation: int = 1) -> Picture:
    return Picture("front", seq, incarnation, seq, 0.0, SIZE, bytes(size))


def mask(seq: int):
    return _mask("front", seq, np.eye(*SIZE, dtype=np.uint8))


def test_a_picture_waits_for_its_mask_while_something_is_followed():
    shown = []
    feed = Feed("front", shown.append)
    feed.add_picture(picture(1))
    assert [one.picture.seq for one in shown] == [1]  # nothing is followed yet
    feed.add_mask(mask(1))
    feed.add_picture(picture(2))
    feed.add_picture(picture(3))
    assert [(one.picture.seq, one.mask is not None) for one in shown] == [(1, False), (1, True)]
    feed.add_mask(mask(3))
    feed.add_mask(mask(2))  # too late
    feed.add_mask(mask(9))  # its picture was skipped
    assert [one.picture.seq for one in shown] == [1, 1, 3]
    feed.follow_nothing()
    feed.add_picture(picture(4))
    assert shown[-1].picture.seq == 4


def test_a_frozen_frame_keeps_what_came_since_and_not_too_much():
    feed = Feed("front", lambda view: None)
    for seq in range(5):
        feed.add_picture(picture(seq))
    held = feed.hold((1, 2))
    assert [one.seq for one in held.later] == [3, 4]
    for seq in range(5, 1000):
        feed.add_picture(picture(seq))
    assert len(held.later) <= feeds.LATER
    assert held.seen == 997
    assert held.later[-1].seq == 999
    gaps = np.diff([one.seq for one in held.later])
    assert gaps.max() < 1000 / 8  # spread over all of the time
    with pytest.raises(InputError, match="not there any more"):
        feed.hold((1, 2))


def test_pictures_are_bounded_in_number_and_bytes():
    feed = Feed("front", lambda view: None)
    for seq in range(2000):
        feed.add_picture(picture(seq))
    assert len(feed._views) == feeds.KEPT_FRAMES
    for seq in range(2000, 2010):
        feed.add_picture(picture(seq, size=feeds.KEPT_BYTES // 4))
    assert len(feed._views) == 4


@pytest.mark.parametrize(("length", "count"), [(0, 3), (1, 3), (3, 3), (4, 3), (100, 24), (25, 24), (7, 1)])
def test_thinning_is_even_and_keeps_the_last(length, count):
    frames = [picture(seq) for seq in range(length)]
    chosen = [one.seq for one in thinned(frames, count)]
    assert len(chosen) == min(length, count)
    assert chosen == sorted(set(chosen))
    assert chosen[-1:] == [length - 1][:length]
    if len(chosen) > 1:
        assert np.ptp(np.diff(chosen)) <= 1


def test_a_mask_that_comes_before_its_picture_is_shown_with_it():
    shown = []
    feed = Feed("front", shown.append)
    feed.add_mask(mask(4))  # in a pause, the last frame and its masks come in any order
    feed.add_picture(picture(4))
    assert [(one.picture.seq, one.mask is not None) for one in shown] == [(4, True)]
