"""The recipe of every bundled head, by the method's name."""

from __future__ import annotations

from streamvos.training import feelvos, frtm, joint, rgmp, tvos
from streamvos.training.heads import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.method: recipe for recipe in (tvos.RECIPE, rgmp.RECIPE, frtm.RECIPE, joint.RECIPE, feelvos.RECIPE)
}
"""Method -> its recipe."""
