"""Recipes: every part of every method has one, and a file that is none is refused."""

from __future__ import annotations

import pytest
from small_methods import SMALL, VARIANTS

from streamvos.engines.recipes import read_recipe, recipe_for, recipe_named, recipes
from streamvos.methods import METHODS, build
from streamvos.types import InputError


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_every_part_of_every_method_has_a_recipe(name):
    method = build(name.partition("/")[0], {**SMALL, **VARIANTS}[name])
    for part in method.parts():
        recipe = recipe_for(method.name, part)
        assert recipe is not None
        assert METHODS[recipe.method].method is type(method)


def test_every_recipe_is_for_a_part_that_there_is():
    for recipe in recipes().values():
        forms = [options for name, options in VARIANTS.items() if name.partition("/")[0] == recipe.method]
        parts = {
            part for form in (SMALL[recipe.method], *forms) for part in build(recipe.method, form).parts()
        }
        assert recipe.part in parts
        assert (480, 854) in recipe.sizes


def test_a_file_of_one_s_own_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'method = "tvos"\npart = "extractor"\nsizes = [[64, 96], [32, 48]]\nmost = 4\nfreezing = false\n'
    )
    recipe = recipe_named(str(path))
    assert recipe.name == "mine"
    assert not recipe.freezing
    assert (recipe.sizes, recipe.most) == (((64, 96), (32, 48)), 4)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("method = ", "no TOML"),
        ('method = "tvos"\npart = "extractor"', "sizes"),
        ('method = "warp"\npart = "extractor"\nsizes = [[64, 64]]\nmost = 8', "warp"),
        ('method = "tvos"\npart = "extractor"\nsizes = [[4, 64]]\nmost = 8', "16"),
        ('method = "tvos"\npart = "extractor"\nsizes = [[64, 64]]\nmost = 8\nspeed = 9', "speed"),
        ('method = "tvos"\npart = "extractor"\nsizes = [[64, 64]]\nmost = 1', "most"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, word):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        read_recipe(path)


def test_an_unknown_name_lists_those_that_there_are():
    with pytest.raises(InputError, match="tvos-extractor"):
        recipe_named("tvos-everything")
