"""Finding the images of a recipe's task, with their labels."""

from collections.abc import Sequence
from pathlib import Path

from satmap.data.inventory import Inventory
from satmap.data.layouts.buildings import scan_buildings
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.view_angles import ViewAngle
from satmap.recipes.schema import Recipe


def scan_for(
    recipe: Recipe, directories: Sequence[Path], view_angle: ViewAngle | None = None
) -> Inventory:
    """What the directories hold for a recipe.

    Args:
        recipe: whose task says what to look for.
        directories: searched to any depth.
        view_angle: of images whose names do not say from where they were taken.

    Raises:
        SatmapError: no image was found, or two files claim to be the same image.
    """
    if recipe.task == "roads":
        return scan_roads(directories)
    return scan_buildings(directories, max(member.bands for member in recipe.members), view_angle)
