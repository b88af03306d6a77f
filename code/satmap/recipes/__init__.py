"""Recipes: a solution as data."""

from satmap.recipes.schema import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]
