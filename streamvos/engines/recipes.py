"""Recipes: which parts are compiled, for which sizes and batches. One TOML file each.

    recipes()["tvos-extractor"].sizes

They lie in engines/ at the top of a checkout (its README.md says how to add one), and setup.py puts them into
the wheel. A stream looks up its part's recipe too: an engine built with another recipe is another engine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from streamvos.files import read_toml
from streamvos.methods import METHODS
from streamvos.types import InputError

_CHECKOUT = Path(__file__).parents[2]
FOLDER = _CHECKOUT / "engines" if (_CHECKOUT / "setup.py").is_file() else Path(__file__).with_name("files")

Side = Annotated[int, Field(ge=16)]


class Recipe(BaseModel):
    """One file.

    Attributes:
        name: the file's name without its suffix.
        method: a name of `streamvos.methods.METHODS`.
        part: a part of the method.
        sizes: (H, W) of frames, exact: padding would change the features at the border.
        most: one engine takes every batch from 1 to this; frames, or objects of a part that works on objects.
        freezing: whether AOTInductor makes weights constants: batch norms fold into convolutions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    part: str
    sizes: tuple[tuple[Side, Side], ...] = Field(min_length=1)
    most: int = Field(8, ge=2, le=64)
    freezing: bool = True

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; one of: {', '.join(METHODS)}")
        return method


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file; InputError if it cannot be read, or is no recipe."""
    try:
        values = read_toml(path, "the recipe")
    except InputError as error:
        raise InputError(f"{error}; known recipes: {', '.join(_names())}") from None
    try:
        return Recipe.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise InputError(f"{path} is no TOML file of a recipe: {error}") from None


def _names() -> list[str]:
    return [path.stem for path in sorted(FOLDER.glob("*.toml"))]


@lru_cache
def recipes() -> dict[str, Recipe]:
    """The recipes in the package, by name."""
    return {path.stem: read_recipe(path) for path in sorted(FOLDER.glob("*.toml"))}


def recipe_named(name: str) -> Recipe:
    """A recipe in the package, or in a file; errors as for `read_recipe`."""
    return recipes()[name] if name in recipes() else read_recipe(Path(name))


def recipe_for(method: str, part: str) -> Recipe | None:
    """The recipe in the package for a part; `method` is `Method.name`, which several `METHODS` may share."""
    same = (one for one in recipes().values() if METHODS[one.method].method.name == method)
    return next((one for one in same if one.part == part), None)
