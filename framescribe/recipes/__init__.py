"""Recipes: what is asked about a clip, in which order, and how the answers are read."""

from framescribe.recipes.loading import SHIPPED, RecipeError, load_recipe, parse_recipe
from framescribe.recipes.recipe import AskableVideo, PromptCount, Recipe, RecipeResult, describe_prompts

__all__ = [
    "SHIPPED",
    "AskableVideo",
    "PromptCount",
    "Recipe",
    "RecipeError",
    "RecipeResult",
    "describe_prompts",
    "load_recipe",
    "parse_recipe",
]
