"""Find the images and labels that a training learns from, whatever they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.data.inventory import Inventory
from satmap.data.judgement import judged_own_data
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.data.view_angles import ViewAngle

if TYPE_CHECKING:
    from satmap.tasks.base import Task


def find_labelled(
    directories: Sequence[Path],
    own: OwnData | None,
    task: "Task",
    cache: Path,
    judgement: Path | None = None,
    view_angle: ViewAngle | None = None,
) -> Inventory:
    """Find a challenge's images or a user's own ones, and cut scenes as the recipe says.

    Args:
        directories: of a challenge's images.
        own: a user's own images and labels instead; None for those of the directories.
        task: with the recipe.
        cache: directory of prepared chips.
        judgement: directory of judged labels to use instead of the images' own; None for none.
        view_angle: off-nadir angle of images whose names lack it.

    Raises:
        SatmapError: there are no images, a label is unusable, or the judgement is one of others.
    """
    if own is not None:
        judged = judged_own_data(own, judgement) if judgement else own
        return find_own_chips(judged, task, task.recipe.bands, cache)
    return task.find_images(directories, view_angle, cache=cache, judgement=judgement)
