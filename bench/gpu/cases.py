"""The cases of `bench gpu`, and their goals."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "rgmp bundled": ("rgmp", "default", {}),
    "tvos bundled": ("tvos", "default", {}),
    "frtm-fast": ("frtm-fast", "default", {}),  # bundled, too
    "joint bundled": ("joint", "default", {}),
    "feelvos bundled": ("feelvos", "default", {}),
    "joint": ("joint", None, {"precision": "auto"}),
    "tvos": ("tvos", None, {"precision": "auto"}),  # the authors' ResNet-50 and 9 references
    "rgmp": ("rgmp", None, {"precision": "auto"}),
    "frtm": ("frtm", None, {"precision": "auto"}),
    "feelvos": ("feelvos", None, {"precision": "auto"}),
    "tvos float32": ("tvos", None, {}),
}
"""Name -> method, weights, options; the most telling first."""

GOALS = dict.fromkeys(CASES, 30.0) | {"tvos bundled": 300.0, "frtm-fast": 250.0, "joint": 60.0}
"""Frames a second at 480 x 854 with three objects."""

PROPAGATION = (
    "authors float32",
    "authors bfloat16",
    "no prior bfloat16",
    "bundled bfloat16",
    "best float32",
)
"""Settings of propagation that kernels are measured with, see `kernels.SETTINGS`."""

MATCHING = ("global matching", "local matching")


def parts_of(case: str) -> list[str]:
    """The names of a case's parts, the extractor first; without making its networks."""
    from streamvos.engines.recipes import recipes
    from streamvos.methods import METHODS

    method = METHODS[CASES[case][0]].method
    parts = {one.part for one in recipes().values() if METHODS[one.method].method is method}
    return sorted(parts, key=lambda part: (part != "extractor", part))
