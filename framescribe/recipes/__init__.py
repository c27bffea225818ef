"""Recipes: what is asked about a clip, in which order, and how the answers are read."""

from framescribe.recipes.loading import SHIPPED, RecipeError, load_recipe, parse_recipe
from framescribe.recipes.recipe import AskableVideo, Recipe, RecipeResult

__all__ = ["SHIPPED", "AskableVideo", "Recipe", "RecipeError", "RecipeResult", "load_recipe", "parse_recipe"]
