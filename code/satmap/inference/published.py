"""Published weights into a directory of weights, so that training and prediction find them."""

from pathlib import Path
from typing import get_args

from satmap.errors import SatmapError
from satmap.files import require_writable
from satmap.models.encoders import ENCODERS
from satmap.models.pretrained import PretrainedEncoder, encoder_file, save_encoder
from satmap.models.published import PublishedNetwork, read_published, source_metadata
from satmap.models.reference import REFERENCE_STRETCH
from satmap.models.weights import save_weights
from satmap.recipe import Checkpoint, Member, Recipe

_SUFFIX = ".safetensors"


def import_weights(source: Path, out: Path, recipe: Recipe) -> Path:
    """Read a published weight file and write satmap's own; nothing of the file is run.

    Args:
        source: see ``satmap.models.published.read_published``.
        out: a directory of weights, or the ``.safetensors`` file. In a directory, encoders go to
            ``imagenet/``; networks are named after the recipe's member and the checkpoint, which
            must then stand in the source's name as the author wrote it
            (``..._dpn92_3_best_apls``). A file's name must end in the checkpoint
            (``x.best_apls.safetensors``) for a network.
        recipe: what a network is to predict with.

    Returns:
        The file written.

    Raises:
        SatmapError: the source is no published weight file, the recipe has no such network, or the
            file to write has no usable name, exists, or cannot be written.
    """
    imported = read_published(source)
    if isinstance(imported, PretrainedEncoder):
        path = _encoder_path(out, imported)
        _require_new(path)
        save_encoder(path, imported, source_metadata(source, source.name))
        return path
    member = _member(source, imported, recipe)
    path = _network_path(source, out, imported, member)
    _require_new(path)
    metadata = {
        **imported.metadata,
        **source_metadata(source, source.name),
        "recipe": recipe.model_dump_json(),
        "member": member.name,
    }
    save_weights(path, imported.network, metadata)
    return path


def _encoder_path(out: Path, encoder: PretrainedEncoder) -> Path:
    if out.suffix != _SUFFIX:
        return encoder_file(out, encoder.name)
    if out.stem in ENCODERS and out.stem != encoder.name:
        raise SatmapError(
            f"{out} is where weights of {out.stem} are looked for, but these are of "
            f"{encoder.name}. Name the file after that, or give the directory of weights."
        )
    return out


def _member(source: Path, imported: PublishedNetwork, recipe: Recipe) -> Member:
    """The member of the recipe that the network stands for."""
    encoder = imported.network.encoder
    low, high = REFERENCE_STRETCH
    if (recipe.stretch.low, recipe.stretch.high) != (low, high):
        raise SatmapError(
            f"{source} was trained on images stretched between percentiles {low} and {high}, but "
            f"recipe {recipe.name} stretches between {recipe.stretch.low} and "
            f"{recipe.stretch.high}. Pass another --recipe."
        )
    fitting = [
        member
        for member in recipe.members
        if (member.encoder, member.bands) == (encoder.name, encoder.in_channels)
        and imported.fold in (None, member.fold)
    ]
    if not fitting:
        fold = "" if imported.fold is None else f" of fold {imported.fold}"
        raise SatmapError(
            f"{source} is {encoder.name} on {encoder.in_channels} bands{fold}, which recipe "
            f"{recipe.name} does not have; it has "
            f"{', '.join(member.name for member in recipe.members)}. Pass another --recipe."
        )
    return fitting[0]


def _network_path(source: Path, out: Path, imported: PublishedNetwork, member: Member) -> Path:
    checkpoints = get_args(Checkpoint)
    if out.suffix == _SUFFIX:
        if out.stem.rpartition(".")[2] not in checkpoints:
            raise SatmapError(
                f"{out}: prediction knows a network's checkpoint by its file's name. End it in "
                f"{', '.join(f'.{name}{_SUFFIX}' for name in checkpoints)}."
            )
        return out
    if imported.fold is None or imported.checkpoint is None:
        raise SatmapError(
            f"{source}: its name says no fold and checkpoint, as ..._3_best_apls does. Give the "
            f"file to write, such as {out / f'{member.name}.last{_SUFFIX}'}."
        )
    return out / f"{member.name}.{imported.checkpoint}{_SUFFIX}"


def _require_new(path: Path) -> None:
    """A network of one's own took days to train: nothing is ever replaced."""
    require_writable(path)
    if path.exists():
        raise SatmapError(f"{path} exists already. Remove it, or write to another directory.")
