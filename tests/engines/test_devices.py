"""Which device: a name that there is, or clear words."""

from __future__ import annotations

import pytest

from streamvos.engines import choose_device
from streamvos.types import InputError


def test_unknown_devices_are_refused():
    with pytest.raises(InputError, match="'toaster'"):
        choose_device("toaster")
    assert choose_device("auto").type in ("cpu", "cuda")
