"""Recipes: which parts are compiled, for which sizes, with which options. One TOML file each.

    recipes()["tvos-extractor"].shapes()        # (batch, (H, W)), ...

They lie in engines/ at the top of a checkout, and setup.py puts them into the wheel; a path to a file of
one's own is taken too. A stream asks for the recipe of its method and part, for the options: what was
built with others is another engine.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

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
        name: of the file, without its ending.
        method: a name of `streamvos.methods.METHODS`.
        part: of the method.
        sizes: (H, W) of frames, exact: padding would move the border of every convolution, and with it the
            features there, away from eager's.
        batches: frames at once; of a part that works on objects, how many of them are followed.
        precision: "method" computes as the method's own option says; the others are autocast around it.
        aoti, inductor, tensorrt: options of each backend, see its module.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    part: str
    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    batches: tuple[int, ...] = Field(min_length=1)
    precision: Literal["method", "bfloat16", "float16"] = "method"
    aoti: dict[str, Setting] = Field(default_factory=dict)
    inductor: dict[str, Setting] = Field(default_factory=dict)
    tensorrt: dict[str, Setting] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; one of: {', '.join(METHODS)}")
        if any(side < 16 for size in self.sizes for side in size) or any(b < 1 for b in self.batches):
            raise ValueError("sizes are at least 16 x 16, batches at least 1")
        return self

    def shapes(self) -> list[tuple[int, tuple[int, int]]]:
        """Every batch of every size: (B, (H, W)), small ones first."""
        return [(batch, size) for size, batch in product(sorted(self.sizes), sorted(self.batches))]

    def settings(self, backend: str) -> dict[str, Any]:
        """Of one backend."""
        return dict(getattr(self, backend, {}))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file.

    Raises:
        InputError: it cannot be read, or is no recipe.
    """
    try:
        return Recipe.model_validate({"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))})
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; known recipes: {_known()}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise InputError(f"{path}: {where}: {first['msg']} (got {first['input']!r})") from None
    except ValueError as error:
        raise InputError(f"{path} is no TOML file: {error}") from None


@lru_cache
def recipes() -> dict[str, Recipe]:
    """Those that come with the package, by name."""
    return {path.stem: read_recipe(path) for path in sorted(FOLDER.glob("*.toml"))}


def recipe_named(name: str) -> Recipe:
    """One that comes with the package, or a file.

    Raises:
        InputError: no such recipe.
    """
    return recipes()[name] if name in recipes() else read_recipe(Path(name))


def recipe_for(method: str, part: str) -> Recipe | None:
    """What a stream's part is built by.

    Args:
        method: `Method.name`, under which several names of `METHODS` may go.
        part: of it.
    """
    same = (one for one in recipes().values() if METHODS[one.method].method.name == method)
    return next((one for one in same if one.part == part), None)


def _known() -> str:
    return ", ".join(recipes())
