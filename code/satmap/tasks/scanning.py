"""Finding the images of a recipe's task, with their labels."""

from collections.abc import Sequence
from pathlib import Path

from satmap.data.inventory import Inventory
from satmap.data.layouts.buildings import scan_buildings
from satmap.data.layouts.spacenet_roads import scan
from satmap.data.view_angles import Look
from satmap.recipes.schema import Recipe


def scan_for(recipe: Recipe, directories: Sequence[Path], look: Look | None = None) -> Inventory:
    """What the directories hold for a recipe.

    Args:
        recipe: whose task says what to look for.
        directories: searched to any depth.
        look: of images whose names do not say from where they were taken.

    Raises:
        SatmapError: no image was found, or two files claim to be the same image.
    """
    if recipe.task == "roads":
        return scan(directories)
    return scan_buildings(directories, max(member.bands for member in recipe.members), look)
