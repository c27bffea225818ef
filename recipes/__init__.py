"""Recipes: what is asked about a clip, in which order, and how the answers are read."""

from recipes.loading import SHIPPED, load_recipe, parse_recipe
from recipes.recipe import Recipe, RecipeResult
from recipes.section import RecipeError
from recipes.video import AskableVideo

__all__ = ["SHIPPED", "AskableVideo", "Recipe", "RecipeError", "RecipeResult", "load_recipe", "parse_recipe"]
