"""Names that a package imports when they are first used (PEP 562).

torch takes seconds to import, OpenCV and PyAV tens of MiB. Clients, `streamvos ctl` and the supervisor need
none of them, so a package that they touch offers its names without importing what is behind them.

    __getattr__ = import_on_use(__name__, {"streamvos.sources.opening": ["open_source"]})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def import_on_use(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported on first use.

    Args:
        package: name of the package, for the error message.
        names: module -> the names that it defines and the package offers.
    """
    module_of = {name: module for module, offered in names.items() for name in offered}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return get
