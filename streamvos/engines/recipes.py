"""Recipes: which parts are compiled, for which sizes and batches, with which options. One TOML file each.

    recipes()["tvos-extractor"].sizes

They lie in engines/ at the top of a checkout (its README.md says how to add one), and setup.py puts them into
the wheel. A stream looks its part's recipe up too: an engine built with other options is another engine.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamvos.methods import METHODS
from streamvos.types import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CHECKOUT = Path(__file__).parents[2]
FOLDER = _CHECKOUT / "engines" if (_CHECKOUT / "setup.py").is_file() else Path(__file__).with_name("files")

Setting = bool | int | float | str


class Recipe(BaseModel):
    """One file.

    Attributes:
        name: of the file, without its suffix.
        method: a name of `streamvos.methods.METHODS`.
        part: a part of the method.
        sizes: (H, W) of frames, exact: padding would move the border of every convolution, and change the
            features there.
        most: one engine takes every batch from 1 to this; frames, or objects of a part that works on objects.
        aoti, tensorrt: options of each backend, see its module.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    part: str
    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    most: int = Field(8, ge=2, le=64)
    aoti: dict[str, Setting] = Field(default_factory=dict)
    tensorrt: dict[str, Setting] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; one of: {', '.join(METHODS)}")
        if any(side < 16 for size in self.sizes for side in size):
            raise ValueError("sizes are at least 16 x 16")
        return self

    def settings(self, backend: str) -> dict[str, Any]:
        """The options of one backend."""
        return dict(getattr(self, backend, {}))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file.

    Raises:
        InputError: it cannot be read, or is no recipe.
    """
    try:
        return Recipe.model_validate({"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))})
    except OSError as error:
        known = ", ".join(recipes())
        raise InputError(f"cannot read {path}: {error.strerror}; known recipes: {known}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise InputError(f"{path}: {where}: {first['msg']} (got {first['input']!r})") from None
    except ValueError as error:
        raise InputError(f"{path} is no TOML file: {error}") from None


@lru_cache
def recipes() -> dict[str, Recipe]:
    """The recipes in the package, by name."""
    return {path.stem: read_recipe(path) for path in sorted(FOLDER.glob("*.toml"))}


def recipe_named(name: str) -> Recipe:
    """A recipe in the package, or one in a file.

    Raises:
        InputError: there is no such recipe.
    """
    return recipes()[name] if name in recipes() else read_recipe(Path(name))


def recipe_for(method: str, part: str) -> Recipe | None:
    """The recipe in the package for a part.

    Args:
        method: `Method.name`; several names of `METHODS` may share it.
        part: name of the part.
    """
    same = (one for one in recipes().values() if METHODS[one.method].method.name == method)
    return next((one for one in same if one.part == part), None)
