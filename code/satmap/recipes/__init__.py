"""Recipes: complete solutions as YAML files."""

from satmap.recipes.schema import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]
