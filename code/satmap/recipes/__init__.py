"""Recipes: a solution as data."""
