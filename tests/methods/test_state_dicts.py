"""State dicts of targets: their parts come back whole, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch

from streamvos.methods.state_dicts import check_shapes, ids_of, part_of, with_prefix
from streamvos.types import InputError

STATE = {"a": torch.zeros(2, 3), "b": torch.ones(1)}


def test_parts_come_back_and_do_not_mix():
    whole = {**with_prefix("1.", STATE), **with_prefix("11.", {"a": torch.zeros(0)})}
    assert part_of(whole, "1.") == STATE
    assert part_of(whole, "11.").keys() == {"a"}
    assert part_of(whole, "2.") == {}


@pytest.mark.parametrize("ids", [(), (1,), (3, 254)])
def test_ids_that_ascend_are_taken(ids):
    assert ids_of({"object_ids": torch.tensor(ids, dtype=torch.int64)}, "TVOS") == ids


@pytest.mark.parametrize("ids", [(2, 1), (1, 1), (0, 1), (255,)])
def test_other_ids_are_refused(ids):
    with pytest.raises(InputError, match="must ascend"):
        ids_of({"object_ids": torch.tensor(ids)}, "TVOS")


def test_a_state_without_ids_is_none():
    with pytest.raises(InputError, match="no state of a TVOS target"):
        ids_of(STATE, "TVOS")


def test_shapes_are_checked():
    check_shapes(STATE, {"a": (2, 3), "b": (1,)})
    with pytest.raises(InputError, match=r"a must have shape \(3, 2\), got \(2, 3\)"):
        check_shapes(STATE, {"a": (3, 2)})
    with pytest.raises(InputError, match=r"c must have shape .* got no such tensor"):
        check_shapes(STATE, {"c": (1,)})
