"""Which networks have not seen an image in training, so that its planes are honest."""

from collections.abc import Sequence

from satmap.data.chip import Chip
from satmap.data.folds import assign_folds
from satmap.inference.weights import WeightFile
from satmap.recipe import Recipe


def held_out_images(
    files: Sequence[WeightFile], recipe: Recipe, chips: Sequence[Chip]
) -> tuple[list[frozenset[str]], list[str]]:
    """For each file the ids of the images that its training held out.

    The files say it. For those of earlier versions, which do not, the folds are dealt anew over the
    labelled chips: the same as in training only if these are the chips of the training.

    Args:
        files: an ensemble of the recipe's.
        recipe: the recipe that they were trained with.
        chips: what the given directories hold.

    Returns:
        A set a file, and what the user should know of them.
    """
    labelled = [chip for chip in chips if chip.label is not None]
    sites = assign_folds({c.site: c.aoi for c in labelled}.items(), recipe.folds, recipe.seed)
    folds = {chip.image_id: sites[chip.site] for chip in labelled}
    fold_of = {member.name: member.fold for member in recipe.members}
    held_out, silent = [], []
    for file in files:
        images = file.held_out
        if images is None:
            silent.append(file.path.name)
            fold = fold_of.get(file.metadata.get("member", ""))
            images = frozenset(image_id for image_id, its in folds.items() if its == fold)
            # Where all chips are of one fold, training has to take them too.
            if len(images) == len(folds):
                images = frozenset()
        held_out.append(images)
    if not silent:
        return held_out, []
    note = (
        f"{len(silent)} of {len(files)} weight files, such as {silent[0]}, do not say which images "
        f"they held out; taken for those of their fold among the {len(labelled)} labelled images "
        "here, which is right only if these are the images of the training"
    )
    return held_out, [note]
