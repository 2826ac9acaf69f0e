"""The cases of `bench engines`."""

from __future__ import annotations

from typing import Any

from streamvos.cli.options import BUNDLED_NAMES

AUTHORS: dict[str, tuple[str, dict[str, Any]]] = {
    "tvos of the authors": ("tvos", {}),
    "frtm of the authors": ("frtm", {}),
    "feelvos stride 16": ("feelvos", {"output_stride": 16}),
    "rgmp of the authors": ("rgmp", {}),
    "frtm of the authors/refiner": ("frtm", {}),
    "rgmp of the authors/run": ("rgmp", {"scales": (1.0,)}),
    "joint of the authors/backbone": ("joint", {}),
    "joint of the authors/decoder": ("joint", {}),
    "feelvos stride 16/head": ("feelvos", {"output_stride": 16}),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in BUNDLED_NAMES},
    "tvos float32": ("tvos", {"precision": "float32"}),
    "tvos/refiner": ("tvos", {}),
    "rgmp/run": ("rgmp", {}),
    "frtm-fast/refiner": ("frtm-fast", {}),
    "joint/decoder": ("joint", {}),
    "feelvos/head": ("feelvos", {}),
    **{name: (method, {"weights": None, **options}) for name, (method, options) in AUTHORS.items()},
}
"""Name -> method and options; "weights" None = random ones of the authors' network.

What follows a slash is the part, else it is the extractor; of an inner part the batch is the objects.
"""
